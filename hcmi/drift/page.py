"""The report as one HTML file that needs no other file; Evidently's pages are packed inside."""

import base64
import gzip
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hcmi.drift.pictures import histograms, map_points
from hcmi.drift.profile import Profile
from hcmi.drift.report import SHOWN_SKIPS, BatchReport
from hcmi.drift.summary import COLUMNS, DRIFT, OK, SMALL, UNREADABLE, changes
from hcmi.types import Skip

STATIC = Path(__file__).with_name("static")
CLASSES = {DRIFT: "drift", UNREADABLE: "unreadable", SMALL: "small", OK: "ok"}      # most urgent first
MAP_WIDTH, MAP_HEIGHT = 470, 250
CURVE_WIDTH, CURVE_HEIGHT = 150, 34


def render(result: dict[str, Any], reports: list[BatchReport], reference: Profile | None,
           pictures: dict[str, list[dict]], library: str, incoming_dir: str, named: Sequence[str] = ()) -> str:
    """The page. `reference`: None when there are no batches.

    `pictures`: batch name -> examples; the reference's are under "". `library`: Evidently's JavaScript, or "". `named`:
    the batches that were asked for; empty for all of `incoming_dir`.
    """
    page = _skeleton()
    reports = sorted(reports, key=lambda report: list(CLASSES).index(report.verdict))
    cards = "".join(_card(report) for report in reports)
    sections = "".join(_section(number, report, reference, pictures) for number, report in enumerate(reports))
    packed = "".join(f'<script type="text/plain" id="evidently-{number}">{_pack(report.evidently_page)}</script>'
                     for number, report in enumerate(reports) if report.evidently_page)
    if packed:
        packed += f'<script type="text/plain" id="evidently-library">{_pack(library)}</script>'
    parts = {"headline": _headline(reports), "intro": _intro(result, incoming_dir, named), "cards": cards,
             "sections": sections, "packed": packed}
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def _skeleton() -> str:
    """The page with its style and script; the other `<!--name-->` marks are for its contents."""
    page, style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    return page.replace("<!--style-->", style).replace("<!--script-->", script)


def _headline(reports: list[BatchReport]) -> str:
    if not reports:
        return "No new batches"
    counts = {verdict: sum(report.verdict == verdict for report in reports) for verdict in CLASSES}
    words = {DRIFT: "drifted", OK: "as expected"}
    said = [f"{count} {words.get(verdict, verdict)}" for verdict, count in counts.items() if count]
    return f"{len(reports)} new batch{'es' if len(reports) > 1 else ''}: {', '.join(said)}"


def _intro(result: dict[str, Any], incoming_dir: str, named: Sequence[str]) -> str:
    if not result["batches"]:
        empty = ", ".join(f"{incoming_dir}/{name}" for name in named) or incoming_dir
        return (f"There are no videos in <code>{escape(empty)}</code>. Put a folder of videos into "
                f"<code>{escape(incoming_dir)}</code>, with or without a <code>captions.csv</code>, and run "
                "<code>hcmi drift --batch NAME --out reports/watch/NAME</code>.")
    return (f"Each batch is compared with {result['reference']['clips']} held-out clips that the model was tested on. "
            f"A batch that has not changed is reported as drifted in {result['false_alarm_rate']:.1%} of cases.")


def _card(report: BatchReport) -> str:
    return (f'<a class="card {CLASSES[report.verdict]}" href="#{escape(report.name)}"><b>{escape(report.name)}</b>'
            f'{_badge(report.verdict)}<p>{escape(report.summary)}</p></a>')


def _badge(verdict: str) -> str:
    return f'<span class="badge {CLASSES[verdict]}">{verdict}</span>'


def _section(number: int, report: BatchReport, reference: Profile | None,
             pictures: dict[str, list[dict]]) -> str:
    body = [f'<section id="{escape(report.name)}"><h2>{escape(report.name)} {_badge(report.verdict)}</h2>',
            f'<p class="lead">{escape(report.summary)} <b>{escape(report.advice)}</b></p>']
    if len(changes(report.shifts)) > 3 and report.verdict == DRIFT:     # the summary has the first three
        body.append(f'<ul class="changes">{"".join(f"<li>{escape(c)}</li>" for c in changes(report.shifts))}</ul>')
    if report.profile is not None and reference is not None:
        body += [f'<div class="columns"><div class="tiles">{_tiles(report)}</div>',
                 _map(reference.embeddings["video_embedding"], report.profile.embeddings["video_embedding"]), "</div>",
                 _examples("What the model was tested on", pictures.get("", []), "was"),
                 _examples("This batch", pictures.get(report.name, []), "now"),
                 _table(report, reference)]
    if report.skipped:
        body.append(_skipped(report.skipped))
    if report.evidently_page:
        body.append(f'<details class="evidently" data-page="evidently-{number}"><summary>Distributions and tests in '
                    'Evidently</summary><iframe title="Evidently report"></iframe></details>')
    return "".join(body) + "</section>"


def _tiles(report: BatchReport) -> str:
    sample = report.sample
    assert sample is not None
    tiles = [(f"{len(sample)} <small>of {report.num_found}</small>",
              f"clips compared, {len(sample.captioned)} of them with a caption")]
    if report.estimate is not None and report.measured is not None and report.expected is not None:
        estimate = report.estimate
        low, high = report.difference or (0.0, 0.0)
        tiles += [(f"{report.measured:.0f} %", "R@1: captions that find their own clip first"),
                  (f"{report.expected:.0f} %", "R@1 of the clips that the model was tested on"),
                  (f"{estimate.recall:.0f} % <small>{estimate.low:.0f} to {estimate.high:.0f}</small>",
                   "R@1, estimated without knowing which caption belongs to which clip "
                   f"({estimate.coverage:.0%} interval)")]
        note = (f"In all three, a caption's own clip competes with the same {report.gallery} clips, which are neither "
                f"in this batch nor among those that the model was tested on. The first minus the second is "
                f"{report.measured - report.expected:+.1f} points (95% interval {low:+.1f} to {high:+.1f}).")
    else:
        tiles.append(("&ndash;", "R@1: needs captions in the batch and in the reference, and clips of another split"))
        note = ""
    return "".join([*(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles),
                    f'<p class="note">{note}</p>' if note else ""])


def _map(reference_VD: np.ndarray, batch_VD: np.ndarray) -> str:
    dots = []
    for points_V2, css in zip(map_points(reference_VD, batch_VD), ("was", "now"), strict=True):
        places = [f'<circle cx="{10 + x * (MAP_WIDTH - 20):.0f}" cy="{10 + y * (MAP_HEIGHT - 20):.0f}" r="2.6"/>'
                  for x, y in points_V2]
        dots.append(f'<g class="{css}">{"".join(places)}</g>')
    return (f'<figure><svg viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}" role="img" aria-label="map of the clips">'
            f'{"".join(dots)}</svg><figcaption>Each dot is a clip; dots are close when the model finds the clips '
            'similar. <i class="was">tested on</i> <i class="now">this batch</i></figcaption></figure>')


def _examples(title: str, clips: list[dict], css: str) -> str:
    if not clips:
        return ""
    cells = []
    for clip in clips:
        frames = "".join(f'<img src="{frame}" alt="">' for frame in clip["frames"])
        words = clip["caption"] or clip["video_id"]
        cells.append(f'<div><div class="strip">{frames}</div><p>{escape(words)}</p></div>')
    return f'<h3 class="{css}">{title}</h3><div class="examples">{"".join(cells)}</div>'


def _table(report: BatchReport, reference: Profile) -> str:
    assert report.profile is not None
    rows = []
    for shift in sorted(report.shifts, key=lambda shift: -shift.distance / shift.threshold):
        column = COLUMNS[shift.name]
        ratio = shift.distance / shift.threshold
        css = "over" if shift.name in report.failed else ""
        curve = middle = ""
        if shift.name in reference.columns:
            curve = _curve(reference.columns[shift.name].to_numpy(), report.profile.columns[shift.name].to_numpy())
            was, now = (f"{value:.{column.digits}f}" for value in (shift.reference, shift.batch))
            middle = f"<td>{was}</td><td><b>{now}</b> {column.unit}</td>"
        rows.append(f'<tr class="{css}"><td>{column.label}</td>{middle or "<td></td><td></td>"}<td>{curve}</td>'
                    f'<td>{_bar(ratio)}</td></tr>')
    return ('<h3>What was compared</h3><table><tr><th></th><th>tested on</th><th>this batch</th><th>distribution</th>'
            f'<th>distance divided by its limit</th></tr>{"".join(rows)}</table>')


def _bar(ratio: float) -> str:
    """The limit is at one third of the bar."""
    return f'<div class="bar"><i style="width:{min(ratio, 3) / 3:.0%}"></i></div><small>{ratio:.1f}</small>'


def _curve(reference: np.ndarray, batch: np.ndarray) -> str:
    shares = histograms(reference, batch)
    peak = max(part.max() for part in shares)
    step = CURVE_WIDTH / len(shares[0])
    paths = []
    for part, css in zip(shares, ("was", "now"), strict=True):
        tops = [f"{(number + 0.5) * step:.0f},{CURVE_HEIGHT - 2 - value / peak * (CURVE_HEIGHT - 6):.1f}"
                for number, value in enumerate(part)]
        paths.append(f'<polygon class="{css}" points="0,{CURVE_HEIGHT - 2} {" ".join(tops)} '
                     f'{CURVE_WIDTH},{CURVE_HEIGHT - 2}"/>')
    return f'<svg class="curve" width="{CURVE_WIDTH}" height="{CURVE_HEIGHT}">{"".join(paths)}</svg>'


def _skipped(skipped: list[Skip]) -> str:
    rows = "".join(f"<li><code>{escape(skip.path)}</code> {escape(skip.reason)}</li>"
                   for skip in skipped[:SHOWN_SKIPS])
    rest = f"<li>and {len(skipped) - SHOWN_SKIPS} more</li>" if len(skipped) > SHOWN_SKIPS else ""
    return f'<h3>Left out</h3><ul class="skipped">{rows}{rest}</ul>'


def _pack(text: str) -> str:
    """Gzip and base64: a fifth of the size, and it cannot contain a tag that ends the script element."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
