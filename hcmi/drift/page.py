"""The report as one HTML file that needs no other file; Evidently's pages are packed inside."""

import base64
import gzip
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hcmi.drift.page_figures import clip_map, strips, table
from hcmi.drift.profile import Profile
from hcmi.drift.report import SHOWN_SKIPS, BatchReport
from hcmi.drift.severity import LABEL_FREE, Severity
from hcmi.drift.verdict import CHANGED, HURT, OK, UNKNOWN
from hcmi.errors import shown
from hcmi.types import Skip
from hcmi.wording import plural

STATIC = Path(__file__).with_name("static")
CLASSES = {HURT: "hurt", UNKNOWN: "unknown", CHANGED: "changed", OK: "ok"}      # most urgent first
PER_CENT = re.compile(r"(?<=\d) %(?=[^<>]*<)")      # in text, and not in a tag
HEADLINES = {HURT: "search hurt on {}", UNKNOWN: "cannot tell for {}", CHANGED: "{} changed", OK: "{} ok"}


def render(result: dict[str, Any], reports: list[BatchReport], reference: Profile | None,
           pictures: dict[str, dict[str, list[dict]]], library: str, incoming_dir: str,
           named: Sequence[str] = ()) -> str:
    """The page. `reference`: None when there are no batches.

    `pictures`: batch name -> kind -> examples; the reference's are under "". `library`: Evidently's JavaScript, or "".
    `named`: the batches that were asked for; empty for all of `incoming_dir`.
    """
    page = _skeleton()
    reports = sorted(reports, key=lambda report: (list(CLASSES).index(report.verdict),
                                                  report.severity.change if report.severity else 0.0))
    cards = "".join(_card(report) for report in reports)
    sections = "".join(_section(number, report, reference, pictures) for number, report in enumerate(reports))
    packed = "".join(f'<script type="text/plain" id="evidently-{number}">{_pack(report.evidently_page)}</script>'
                     for number, report in enumerate(reports) if report.evidently_page)
    if packed:
        packed += f'<script type="text/plain" id="evidently-library">{_pack(library)}</script>'
    parts = {"headline": headline(reports), "intro": _intro(result, incoming_dir, named), "cards": cards,
             "sections": sections, "packed": packed}
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", PER_CENT.sub("&nbsp;%", text))
    return page


def _skeleton() -> str:
    """The page with its style and script; the other `<!--name-->` marks are for its contents."""
    page, style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    return page.replace("<!--style-->", style).replace("<!--script-->", script)


def headline(reports: Sequence[BatchReport]) -> str:
    """`3 new batches: search hurt on 1, 2 ok`."""
    if not reports:
        return "No new batches"
    counts = {verdict: sum(report.verdict == verdict for report in reports) for verdict in CLASSES}
    said = [HEADLINES[verdict].format(count) for verdict, count in counts.items() if count]
    return f"{plural(len(reports), 'new batch', 'new batches')}: {', '.join(said)}"


def _intro(result: dict[str, Any], incoming_dir: str, named: Sequence[str]) -> str:
    if not result["batches"]:
        empty = ", ".join(f"{incoming_dir}/{name}" for name in named) or incoming_dir
        return (f"There are no videos in <code>{escape(shown(empty))}</code>. Put a folder of videos into "
                f"<code>{escape(shown(incoming_dir))}</code>, with or without a <code>captions.csv</code>, and run "
                "<code>hcmi drift --batch NAME --out reports/watch/NAME</code>.")
    return (f"Each batch is compared with {plural(result['reference']['clips'], 'held-out clip')} that the model was "
            f"tested on. For {result['false_alarm_rate']:.1%} of batches that have not changed, a comparison is beyond "
            "its limit by chance; R@1 and the named causes are judged apart. "
            "Clips that are near copies of each other, or cut from one file, count as one: it is assumed that "
            "everything else in a batch arrived independently." + _learned(result.get("learned_from", 0)))


def _learned(batches: int) -> str:
    return (f" The limits also allow what {plural(batches, 'accepted batch', 'accepted batches')} showed: it is "
            "assumed that these were usual ones. See the history for a change that is slow enough to hide among them."
            if batches else "")


def _card(report: BatchReport) -> str:
    return (f'<a class="card {CLASSES[report.verdict]}" href="#{escape(report.name)}"><div class="top">'
            f'<b>{_name(report.name)}</b>{_badge(report.verdict)}</div>{_dial(report.severity)}'
            f'<p>{escape(report.why)}</p><p class="do">{escape(report.advice)}</p></a>')


def _name(name: str) -> str:
    """A long name may be broken after `_`, and not within a date."""
    text = escape(name).replace("_", "_<wbr>")
    return re.sub(r"\d{4}-\d\d-\d\d_?", r'<span class="date">\g<0></span>', text)


def _dial(severity: Severity | None) -> str:
    """R@1 of the batch as a bar with its interval, and the tested clips' as a mark."""
    if severity is None:
        return ""
    about = "about " if severity.how == LABEL_FREE else ""
    return (f'<div class="dial"><span class="now">R@1 {about}{severity.recall:.0f} %</span>'
            f'<span class="was">tested clips {severity.reference:.0f} %</span><div class="scale">'
            f'<i style="left:{severity.low:.1f}%;width:{max(severity.high - severity.low, 0.8):.1f}%"></i>'
            f'<u style="left:{severity.reference:.1f}%"></u></div></div>')


def _badge(verdict: str) -> str:
    return f'<span class="badge {CLASSES[verdict]}">{verdict}</span>'


def _section(number: int, report: BatchReport, reference: Profile | None,
             pictures: dict[str, dict[str, list[dict]]]) -> str:
    body = [f'<section id="{escape(report.name)}"><h2>{_name(report.name)} {_badge(report.verdict)}</h2>',
            f'<p class="lead">{escape(report.why)} <b>{escape(report.advice)}</b></p>', _causes(report)]
    if report.changes:
        body.append(f'<h3>What changed, in order of size</h3><ul class="changes">'
                    f'{"".join(f"<li>{escape(change)}</li>" for change in report.changes)}</ul>')
    if report.slices:
        body.append('<h3>Where search loses</h3><ul class="changes">'
                    f'{"".join(f"<li>{escape(some.sentence)}</li>" for some in report.slices)}</ul>')
    if report.profile is not None and reference is not None:
        drawn = pictures.get(report.name, {})
        body += [f'<div class="columns"><div class="tiles">{_tiles(report)}</div>',
                 clip_map(reference.embeddings["video_embedding"], report.profile.embeddings["video_embedding"]),
                 "</div>",
                 strips("Captions that lost most, and the clips that won instead", drawn.get("lost", []), "now"),
                 strips("Clips of this batch that are farthest from anything known", drawn.get("far", []), "now"),
                 strips("Other clips of this batch", drawn.get("random", []), "now"),
                 strips("What the model was tested on", pictures.get("", {}).get("random", []), "was"),
                 table(report, reference) if report.shifts else ""]
    if report.skipped:
        body.append(_skipped(report.skipped))
    if report.evidently_page:
        body.append(f'<details class="evidently" data-page="evidently-{number}"><summary>Distributions and tests in '
                    'Evidently</summary><iframe title="Evidently report"></iframe></details>')
    return "".join(body) + "</section>"


def _causes(report: BatchReport) -> str:
    """The causes with their details; one of which the lead says all is left out."""
    rows = []
    for cause in report.causes:
        said = all(detail in cause.sentence for detail in cause.details)
        if said and cause.sentence[1:] in report.why and cause.advice in report.advice:
            continue
        details = "" if said else f"<br><small>{escape('; '.join(cause.details))}</small>"
        rows.append(f"<li><b>{escape(cause.sentence)}.</b> {escape(cause.advice)}{details}</li>")
    return f'<ul class="causes">{"".join(rows)}</ul>' if rows else ""


def _tiles(report: BatchReport) -> str:
    sample = report.sample
    assert sample is not None
    tiles = [(f"{len(sample)} <small>of {report.num_found}</small>",
              f"clips compared, {len(sample.captioned)} of them with a caption")]
    note = ""
    if report.estimate is not None and report.measured is not None:
        measured, estimate = report.measured, report.estimate
        tiles += [(f"{measured.recall:.0f} % <small>{measured.low:.0f} to {measured.high:.0f}</small>",
                   "R@1: captions that find their own clip first (95% interval)"),
                  (f"{measured.reference:.0f} %", "R@1 of the clips that the model was tested on"),
                  (f"{estimate.recall:.0f} % <small>{estimate.low:.0f} to {estimate.high:.0f}</small>",
                   "R@1, estimated without knowing which caption belongs to which clip "
                   f"({estimate.coverage:.0%} interval)")]
        note = (f"In all three, a caption's own clip competes with the same {report.gallery:,} clips, which are "
                f"neither in this batch nor among those that the model was tested on. The first minus the second is "
                f"{measured.change:+.1f} points (95% interval {measured.change_low:+.1f} to "
                f"{measured.change_high:+.1f}).")
    elif report.severity is not None:
        severity = report.severity
        tiles += [(f"about {severity.recall:.0f} % <small>{severity.low:.0f} to {severity.high:.0f}</small>",
                   "R@1, estimated from the clips alone (90% interval)"),
                  (f"{severity.reference:.0f} %", "R@1 of the clips that the model was tested on")]
    else:
        tiles.append(("&ndash;", "R@1: needs captions in the batch and in the reference, and clips of another split"))
    return "".join([*(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles),
                    f'<p class="note">{note}</p>' if note else ""])


def _skipped(skipped: list[Skip]) -> str:
    rows = "".join(f"<li><code>{escape(skip.path)}</code> {escape(skip.reason)}</li>"
                   for skip in skipped[:SHOWN_SKIPS])
    rest = f"<li>and {len(skipped) - SHOWN_SKIPS} more</li>" if len(skipped) > SHOWN_SKIPS else ""
    return f'<h3>Left out</h3><ul class="skipped">{rows}{rest}</ul>'


def _pack(text: str) -> str:
    """Gzip and base64: a fifth of the size, and it cannot contain a tag that ends the script element."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
