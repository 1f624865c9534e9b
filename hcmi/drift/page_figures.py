"""What the page draws: the map of the clips, the table of comparisons, and strips of frames."""

from html import escape

import numpy as np

from hcmi.drift.pictures import histograms, map_points
from hcmi.drift.profile import Profile
from hcmi.drift.report import BatchReport
from hcmi.drift.summary import COLUMNS

MAP_WIDTH, MAP_HEIGHT = 470, 250
CURVE_WIDTH, CURVE_HEIGHT = 150, 34


def clip_map(reference_VD: np.ndarray, batch_VD: np.ndarray) -> str:
    dots = []
    for points_V2, css in zip(map_points(reference_VD, batch_VD), ("was", "now"), strict=True):
        places = [f'<circle cx="{10 + x * (MAP_WIDTH - 20):.0f}" cy="{10 + y * (MAP_HEIGHT - 20):.0f}" r="2.6"/>'
                  for x, y in points_V2]
        dots.append(f'<g class="{css}">{"".join(places)}</g>')
    return (f'<figure><svg viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}" role="img" aria-label="map of the clips">'
            f'{"".join(dots)}</svg><figcaption>Each dot is a clip; dots are close when the model finds the clips '
            'similar. <i class="was">tested on</i> <i class="now">this batch</i></figcaption></figure>')


def strips(title: str, clips: list[dict], css: str) -> str:
    """Frames of some clips with their captions; a clip that lost is followed by what won instead."""
    if not clips:
        return ""
    cells = []
    for clip in clips:
        frames = "".join(f'<img src="{frame}" alt="">' for frame in clip["frames"])
        link = f'<a href="{clip["href"]}">{escape(clip["video_id"])}</a>'
        note = f'<em>{escape(clip["note"])}</em> ' if clip.get("note") else ""
        cells.append(f'<div><div class="strip">{frames}</div><p>{note}{escape(clip["caption"])} <small>{link}</small>'
                     "</p></div>")
    return f'<h3 class="{css}">{title}</h3><div class="examples">{"".join(cells)}</div>'


def table(report: BatchReport, reference: Profile) -> str:
    """All comparisons, the largest in terms of its limit first."""
    assert report.profile is not None
    rows = []
    for shift in sorted(report.shifts, key=lambda shift: -shift.ratio):
        column = COLUMNS[shift.name]
        curve, middle = "", "<td></td><td></td>"
        if shift.name in reference.columns:
            curve = _curve(reference.columns[shift.name].to_numpy(), report.profile.columns[shift.name].to_numpy())
            was, now = (f"{value:.{column.digits}f}" for value in (shift.reference, shift.batch))
            middle = f"<td>{was}</td><td><b>{now}</b> {column.unit}</td>"
        rows.append(f'<tr class="{"over" if shift.drifted else ""}"><td>{column.label}</td>{middle}<td>{curve}</td>'
                    f"<td>{_bar(shift.ratio)}</td></tr>")
    return ('<h3>What was compared</h3><div class="wide"><table class="compared"><tr><th></th><th>tested on</th>'
            '<th>this batch</th><th>distribution</th><th>distance divided by its limit</th></tr>'
            f'{"".join(rows)}</table></div>')


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
