"""The page people open: one HTML file that needs nothing else, Evidently's pages packed inside."""

import base64
import gzip
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmi.drift.pictures import densities, flat_map
from hcmi.drift.profile import Profile
from hcmi.drift.summary import COLUMNS, DRIFT, OK, SMALL, UNREADABLE, changes
from hcmi.types import Skip

if TYPE_CHECKING:
    from hcmi.drift.stage import BatchReport

CLASSES = {DRIFT: "drift", UNREADABLE: "unreadable", SMALL: "small", OK: "ok"}      # most pressing first
SHOWN_SKIPS = 20
MAP_WIDTH, MAP_HEIGHT = 470, 250
CURVE_WIDTH, CURVE_HEIGHT = 150, 34


def render(result: dict[str, Any], reports: list["BatchReport"], reference: Profile | None,
           pictures: dict[str, list[dict]], library: str, incoming_dir: str, named: Sequence[str] = ()) -> str:
    """`pictures`: batch name -> examples, the reference's under "". `library`: Evidently's JavaScript, or "". `named`:
    the batches that were asked for, where not all of `incoming_dir` were."""
    page = PAGE
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


def _headline(reports: list["BatchReport"]) -> str:
    if not reports:
        return "No new batches"
    counts = {verdict: sum(report.verdict == verdict for report in reports) for verdict in CLASSES}
    words = {DRIFT: "drifted", OK: "as expected"}
    said = [f"{count} {words.get(verdict, verdict)}" for verdict, count in counts.items() if count]
    return f"{len(reports)} new batch{'es' if len(reports) > 1 else ''}: {', '.join(said)}"


def _intro(result: dict[str, Any], incoming_dir: str, named: Sequence[str]) -> str:
    if not result["batches"]:
        empty = ", ".join(f"{incoming_dir}/{name}" for name in named) or incoming_dir
        return (f"There is nothing in <code>{escape(empty)}</code> to look at. Put a folder of videos into "
                f"<code>{escape(incoming_dir)}</code>, with or without a <code>captions.csv</code>, and run "
                "<code>hcmi drift --batch NAME --out reports/watch/NAME</code>.")
    return (f"Each batch is compared with {result['reference']['clips']} held-out clips that the model was tested on. "
            f"A batch that has not changed is called drifted in {result['false_alarm_rate']:.1%} of cases.")


def _card(report: "BatchReport") -> str:
    return (f'<a class="card {CLASSES[report.verdict]}" href="#{escape(report.name)}"><b>{escape(report.name)}</b>'
            f'{_badge(report.verdict)}<p>{escape(report.summary)}</p></a>')


def _badge(verdict: str) -> str:
    return f'<span class="badge {CLASSES[verdict]}">{verdict}</span>'


def _section(number: int, report: "BatchReport", reference: Profile | None,
             pictures: dict[str, list[dict]]) -> str:
    body = [f'<section id="{escape(report.name)}"><h2>{escape(report.name)} {_badge(report.verdict)}</h2>',
            f'<p class="lead">{escape(report.summary)} <b>{escape(report.advice)}</b></p>']
    if len(changes(report.shifts)) > 3 and report.verdict == DRIFT:     # the summary tells the first three
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


def _tiles(report: "BatchReport") -> str:
    sample = report.sample
    assert sample is not None
    tiles = [(f"{len(sample)} <small>of {report.num_found}</small>",
              f"clips looked at, {len(sample.captioned)} of them with a caption")]
    if report.estimate is not None and report.measured is not None and report.expected is not None:
        estimate = report.estimate
        low, high = report.difference or (0.0, 0.0)
        tiles += [(f"{report.measured:.0f} %", "R@1: captions that find their own clip first"),
                  (f"{report.expected:.0f} %", "R@1 of what the model was tested on"),
                  (f"{estimate.recall:.0f} % <small>{estimate.low:.0f} to {estimate.high:.0f}</small>",
                   f"R@1 as estimated without knowing whose caption is whose ({estimate.coverage:.0%} interval)")]
        note = (f"In all three, a caption's own clip stands among the same {report.gallery} clips, which are neither "
                f"of this batch nor of what the model was tested on. The first minus the second is "
                f"{report.measured - report.expected:+.1f} points (95% interval {low:+.1f} to {high:+.1f}).")
    else:
        tiles.append(("&ndash;", "R@1: needs captions in the batch and in the reference, and clips of another split"))
        note = ""
    return "".join([*(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles),
                    f'<p class="note">{note}</p>' if note else ""])


def _map(reference_VD: np.ndarray, batch_VD: np.ndarray) -> str:
    dots = []
    for points_V2, css in zip(flat_map(reference_VD, batch_VD), ("was", "now"), strict=True):
        places = [f'<circle cx="{10 + x * (MAP_WIDTH - 20):.0f}" cy="{10 + y * (MAP_HEIGHT - 20):.0f}" r="2.6"/>'
                  for x, y in points_V2]
        dots.append(f'<g class="{css}">{"".join(places)}</g>')
    return (f'<figure><svg viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}" role="img" aria-label="map of the clips">'
            f'{"".join(dots)}</svg><figcaption>A dot is a clip; dots lie close when the model finds the clips alike. '
            '<i class="was">tested on</i> <i class="now">this batch</i></figcaption></figure>')


def _examples(title: str, clips: list[dict], css: str) -> str:
    if not clips:
        return ""
    cells = []
    for clip in clips:
        frames = "".join(f'<img src="{frame}" alt="">' for frame in clip["frames"])
        words = clip["caption"] or clip["video_id"]
        cells.append(f'<div><div class="strip">{frames}</div><p>{escape(words)}</p></div>')
    return f'<h3 class="{css}">{title}</h3><div class="examples">{"".join(cells)}</div>'


def _table(report: "BatchReport", reference: Profile) -> str:
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
            f'<th>distance, in parts of its limit</th></tr>{"".join(rows)}</table>')


def _bar(ratio: float) -> str:
    """The limit stands at one third of the bar."""
    return f'<div class="bar"><i style="width:{min(ratio, 3) / 3:.0%}"></i></div><small>{ratio:.1f}</small>'


def _curve(reference: np.ndarray, batch: np.ndarray) -> str:
    shares = densities(reference, batch)
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
    """Gzip and base64: a fifth of the size, and nothing in it can end the script element."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Drift report</title><style>
:root{--was:#7d8896;--now:#e0662c;--ok:#1d7d4f;--drift:#b3261e;--small:#55606e;--unreadable:#8a5a00}
*{box-sizing:border-box}
body{margin:0;background:#f4f5f7;color:#1c2430;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:20px;margin:0 0 8px}h3{font-size:15px;margin:22px 0 8px}
code{background:#e9ebef;border-radius:4px;padding:1px 5px;font-size:13px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:14px;margin:20px 0 26px}
.card{display:block;background:#fff;border:1px solid #dde1e7;border-left:5px solid;border-radius:8px;padding:12px 16px;
color:inherit;text-decoration:none}
.card:hover{box-shadow:0 2px 10px #0002}.card p{margin:6px 0 0;color:#46505d;font-size:14px}.card b{font-size:16px}
.card.ok{border-left-color:var(--ok)}.card.drift{border-left-color:var(--drift)}
.card.small{border-left-color:var(--small)}.card.unreadable{border-left-color:var(--unreadable)}
.badge{float:right;font-size:12px;font-weight:600;color:#fff;border-radius:20px;padding:2px 11px}
h2 .badge{float:none;margin-left:8px;vertical-align:3px}
.badge.ok{background:var(--ok)}.badge.drift{background:var(--drift)}
.badge.small{background:var(--small)}.badge.unreadable{background:var(--unreadable)}
section{background:#fff;border:1px solid #dde1e7;border-radius:10px;padding:22px 26px;margin-bottom:22px}
.lead{max-width:820px;margin:0 0 16px}
.columns{display:grid;grid-template-columns:1fr 480px;gap:26px;align-items:start}
.tiles{display:grid;grid-template-columns:repeat(2,1fr);gap:10px}
.tile{background:#f4f5f7;border-radius:8px;padding:10px 14px}.tile b{display:block;font-size:24px;line-height:1.25}
.tile small{font-size:14px;font-weight:400;color:#55606e}.tile span{font-size:13px;color:#55606e;line-height:1.35;
display:block}
.note{grid-column:1/-1;margin:0;font-size:13px;line-height:1.35;color:#55606e}
figure{margin:0}figure svg{width:100%;background:#f9fafb;border:1px solid #e6e9ee;border-radius:8px}
g.was circle{fill:var(--was);fill-opacity:.4}g.now circle{fill:var(--now);fill-opacity:.75}
figcaption{font-size:13px;color:#55606e}figcaption i{font-style:normal;white-space:nowrap;margin-left:6px}
figcaption i::before{content:"";display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:4px}
i.was::before{background:var(--was)}i.now::before{background:var(--now)}
h3.was{border-left:4px solid var(--was);padding-left:8px}h3.now{border-left:4px solid var(--now);padding-left:8px}
.examples{display:grid;grid-template-columns:repeat(5,1fr);gap:12px}.examples p{margin:4px 0 0;font-size:12px;
line-height:1.35;color:#46505d;overflow-wrap:anywhere}
.strip{display:flex;gap:2px}.strip img{width:calc((100% - 4px)/3);aspect-ratio:1;object-fit:cover;border-radius:3px}
table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:600;color:#55606e;font-size:12px}
td,th{padding:4px 10px 4px 0;border-bottom:1px solid #eceff3}tr.over td:first-child{font-weight:600;color:var(--drift)}
.curve{display:block}.curve .was{fill:var(--was);fill-opacity:.45}.curve .now{fill:none;stroke:var(--now);
stroke-width:1.5}
.changes{columns:2;column-gap:40px;margin:0 0 18px;padding-left:18px;font-size:14px;color:#46505d}
.bar{display:inline-block;width:200px;height:9px;background:#e9ebef;border-radius:5px;position:relative;
margin-right:8px;overflow:hidden}.bar i{display:block;height:100%;background:var(--was)}
.bar::after{content:"";position:absolute;left:33.3%;top:0;width:2px;height:100%;background:#1c2430}
tr.over .bar i{background:var(--drift)}
.skipped{font-size:13px;color:#46505d;padding-left:18px}
details{margin-top:20px}summary{cursor:pointer;color:#2456a6;font-weight:600}
iframe{width:100%;height:900px;border:1px solid #dde1e7;border-radius:8px;margin-top:10px}
@media(max-width:900px){.columns{grid-template-columns:1fr}.examples{grid-template-columns:repeat(2,1fr)}}
</style></head><body><main>
<h1>Drift report: <!--headline--></h1><p><!--intro--></p>
<div class="cards"><!--cards--></div><!--sections-->
</main><!--packed--><script>
async function unpack(id){
  const bytes=Uint8Array.from(atob(document.getElementById(id).textContent),c=>c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
document.querySelectorAll("details.evidently").forEach(box=>box.addEventListener("toggle",async()=>{
  const frame=box.querySelector("iframe");
  if(!box.open||frame.srcdoc)return;
  const [page,library]=await Promise.all([unpack(box.dataset.page),unpack("evidently-library")]);
  frame.srcdoc=page.replace("/*evidently-library*/",()=>library);
}));
</script></body></html>
"""
