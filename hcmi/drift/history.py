"""All batches together: every batch once, a line per figure, and drift that is too slow for a single batch to show.

It reads the report.json of the reports in a folder, and writes history.json and history.html into it.

Quiet batches seldom raise anything, however many there are: of all histories of one model, at most 5 % do. R@1 and the
distances get 2 % each by Ville's inequality, the number of alarms 1 %.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log
from operator import eq, lt
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom, hypergeom, norm

from hcmi.drift.severity import LABEL_FREE
from hcmi.drift.workspace import date_of
from hcmi.errors import DriftError
from hcmi.files import atomic_file, is_passed_over, write_json
from hcmi.wording import plural

SLOW_CHANCE, COUNT_CHANCE = 0.02, 0.01      # of saying anything about a quiet history: of each figure, of the alarms
SHIFT = 0.75                # standard deviations by which a slow change moves a batch [ours]
MOST_SIGNAL = 3.0           # of one batch: its own verdict says more, and one alone must not be a slow change [ours]
WIDTH, HEIGHT = 560, 90
Records = dict[str, tuple[float, dict[str, Any]]]        # batch -> the time of its newest report, and its record there


@dataclass(frozen=True)
class Point:
    """One batch of a history, and the tested clips that it was compared with."""

    batch: str
    date: str
    verdict: str
    recall: float | None    # measured, per cent
    reference: float | None
    ratio: float            # the largest distance divided by its limit
    p_value: float          # of the largest distance
    captions: int           # of the batch and of the tested clips, as if all were independent of each other
    tested: int
    shared: float           # part of a comparison's variance that comes from the tested clips, which batches share
    model: str
    is_query_log: bool = False
    judged: float = 0.0     # the time of its report


def newest_records(folder: str | Path) -> Records:
    """Those of all reports in `folder`. `reference` in a record is the report's.

    Raises: DriftError when there is no such folder.
    """
    newest: Records = {}
    if not Path(folder).is_dir():
        raise DriftError(f"{folder}: need a folder of drift reports, got none. Correct the name.")
    for path in sorted(Path(folder).glob("*/report.json")):
        if is_passed_over(path.parent.name):
            continue        # left by a killed run
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            batches = {record["batch"]: record | {"reference": report.get("reference", {})}
                       for record in report["batches"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue        # a report that is being written; the next history has it
        seconds = path.stat().st_mtime
        for name, record in batches.items():
            if name not in newest or seconds > newest[name][0]:
                newest[name] = seconds, record
    return newest


def points_of(records: Records) -> list[Point]:
    """Every batch that was compared, oldest first; one that was not (`cannot tell`) has no figures."""
    points = [point_of(record, date_of(record["batch"], seconds).date().isoformat(), seconds)
              for seconds, record in records.values() if record["shifts"]]
    return sorted(points, key=lambda point: (point.date, point.batch))


def point_of(record: dict[str, Any], date: str, judged: float = 0.0) -> Point:
    """The batch of a record of `newest_records`. Reports of earlier versions tell less."""
    severity, reference = record["severity"] or {}, record.get("reference", {})
    if severity.get("how") == LABEL_FREE:
        severity = {}       # the line of R@1 shows what was measured
    size, known = max(record["clips"] or record.get("queries", 0), 1), max(reference.get("clips", 0), 1)
    batch_share, known_share = record.get("independent", 0) / size, reference.get("independent", 0) / known
    return Point(record["batch"], date, record["verdict"], severity.get("recall_at_1"), severity.get("reference"),
                 max(shift["distance_over_limit"] for shift in record["shifts"]),
                 min(shift["p_value"] for shift in record["shifts"]),
                 round(severity.get("captions", 0) * batch_share),
                 round(reference.get("captioned", 0) * known_share), size / (size + known), reference.get("model", ""),
                 bool(record.get("queries")), judged)


def comparable(points: Sequence[Point]) -> list[Point]:
    """The batches of clips that the newest model judged, which is that of the latest report; the last of equal times.

    Distances of query logs are other figures than those of clips.
    """
    newest = max(reversed(points), key=lambda point: point.judged, default=None)
    return [point for point in points if newest and point.model == newest.model and not point.is_query_log]


def slow_changes(points: Sequence[Point]) -> dict[str, str]:
    """Figure -> the batch since which it has probably changed, for figures that have. `points`: `comparable` ones."""
    measured = [point for point in points if point.captions and point.tested]
    found = {}
    for name, some, p_values in (("R@1", measured, _fewer_found(measured)), ("distance", points, _farther(points))):
        if (place := first_change(p_values, SLOW_CHANCE)) is not None:
            found[name] = some[place].batch
    return found


def first_change(p_values: Sequence[float], chance: float) -> int | None:
    """Where the evidence for a change is strongest at the first time that it is enough; None where it never is.

    Of series of independent p-values without a change, however long, at most the share `chance` has one. The evidence
    for a change at place j is the likelihood ratio of normal scores moved by `SHIFT`. These are averaged over all j
    with the weights 1 / j (j + 1), which sum to 1, so the average is a martingale that starts at 1. Source: Ville,
    1939, for the inequality; Shiryaev, 1963, for the average over change points.
    """
    scores = np.minimum(norm.isf(np.asarray(p_values, float)), MOST_SIGNAL)
    places = np.arange(1, len(scores) + 1)
    weights = -np.log(places * (places + 1))        # these, and the ratios, are logarithms
    ratios = np.zeros(len(scores))                  # one for each place so far
    for number, gain in enumerate(SHIFT * scores - SHIFT**2 / 2, 1):
        ratios[:number] += gain
        if np.logaddexp.reduce([*(weights + ratios)[:number], -log(number + 1)]) >= -log(chance):
            return int(ratios[:number].argmax())
    return None


def _fewer_found(points: Sequence[Point]) -> list[float]:
    """For each batch: how often so few of its captions would find their clips if it were like all before it.

    Before it come the tested clips and the earlier batches: compared with the tested clips alone, all batches would
    share the error of these. Such p-values are independent of each other. Source: Hawkins, Self-starting CUSUM, 1987;
    Vovk and others, Algorithmic learning in a random world, 2005, for the independence.
    """
    if not points:
        return []
    captions = np.array([point.captions for point in points])
    recall, reference = (np.array(values, float) / 100 for values in zip(*(
        (point.recall, point.reference) for point in points), strict=True))
    now = np.rint(captions * (1 - recall))
    seen = points[0].tested + np.cumsum(captions)
    lost = np.rint(points[0].tested * (1 - reference[0])) + np.cumsum(now)
    tie = np.array([_tie(point) for point in points])
    return (hypergeom.sf(now, seen, lost, captions) + tie * hypergeom.pmf(now, seen, lost, captions)).tolist()


def _farther(points: Sequence[Point]) -> list[float]:
    """For each batch: its rank among the earlier ones by the p-value of its largest distance, as a share.

    The tested clips are the same for all, so their error moves no rank. Ranks in order of arrival are independent
    (Renyi, 1962).
    """
    so_far: list[float] = []
    ranks = []
    for point in points:
        so_far.append(point.p_value)
        smaller, equal = (sum(compare(value, point.p_value) for value in so_far) for compare in (lt, eq))
        ranks.append((smaller + _tie(point) * equal) / len(so_far))
    return ranks


def _tie(point: Point) -> float:
    """Between 0 and 1, the same again for the same batch: ties are broken at random, so that p-values are even."""
    return float(np.random.default_rng(zlib.crc32(point.batch.encode())).uniform(1e-3, 1))


def most_by_chance(points: Sequence[Point], false_alarm_rate: float) -> int:
    """The number of alarms that quiet histories exceed, at any time, in fewer than `COUNT_CHANCE` of cases.

    The tested clips' own error moves all batches together, so alarms come in clusters: the model has one common factor
    (Vasicek, 1987). Numbers of batches from one power of two to the next share a limit, so that few limits share
    the chance.
    """
    if not points:
        return 0
    doubled = (len(points) - 1).bit_length()
    shared = float(np.mean([point.shared for point in points]))
    error = norm.ppf((np.arange(2_000) + 0.5) / 2_000)
    rates = norm.cdf((norm.ppf(false_alarm_rate) + shared**0.5 * error) / (1 - shared) ** 0.5)
    chance = COUNT_CHANCE / ((doubled + 1) * (doubled + 2))
    return next(count for count in range(2**doubled + 1) if binom.sf(count, 2**doubled, rates).mean() < chance)


def write_history(folder: str | Path, false_alarm_rate: float) -> dict[str, Any]:
    """Write history.json and history.html into `folder`, and return what the former holds.

    Raises: DriftError when `folder` holds no report.
    """
    records = newest_records(folder)
    if not records:
        raise DriftError(f"{folder}: need folders with a report.json in it, got none. Name the folder of all reports.")
    points = points_of(records)
    some = comparable(points)
    slow = slow_changes(some)
    alarms = sum(point.verdict not in ("ok", "cannot tell") for point in some)
    most = most_by_chance(some, false_alarm_rate)
    result = {"batches": [{"batch": point.batch, "date": point.date, "verdict": point.verdict, "model": point.model,
                           "recall_at_1": point.recall, "largest_distance_over_limit": round(point.ratio, 3)}
                          for point in points],
              "alarms": alarms, "most_alarms_by_chance": most, "slow_changes": slow}
    write_json(Path(folder) / "history.json", result)
    with atomic_file(Path(folder) / "history.html") as path:
        path.write_text(_page(points, slow, alarms, most), encoding="utf-8")
    return result


def _page(points: list[Point], slow: dict[str, str], alarms: int, most: int) -> str:
    from hcmi.drift.page import STATIC

    said = [f"{name} has changed slowly, probably since {batch}, though no single batch need have shown it."
            for name, batch in slow.items()]
    some = comparable(points)
    if alarms > most:
        said.insert(0, f"{alarms} of {plural(len(some), 'batch', 'batches')} changed; by chance at most {most} do.")
    lead = " ".join(said) or "No slow change over these batches."
    recalls = [(point.recall, point.reference) for point in points if point.recall is not None]
    lines = _line("R@1, per cent (mark: tested clips)", [now for now, _ in recalls],
                  recalls[-1][1] if recalls else None, 100) if recalls else ""
    lines += _line("Largest distance of clips, in units of its limit",
                   [point.ratio for point in points if not point.is_query_log], 1.0, None)
    rows = "".join(f'{_new_model(before, point)}<tr><td><span class="date">{escape(point.date)}</span></td>'
                   f"<td>{escape(point.batch)}</td><td>{escape(point.verdict)}</td>"
                   f"<td>{'' if point.recall is None else f'{point.recall:.0f}&nbsp;%'}</td>"
                   f"<td>{point.ratio:.2f}</td></tr>"
                   for before, point in zip([*points[:1], *points], points, strict=False))
    style = (STATIC / "page.css").read_text(encoding="utf-8")
    return ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>Drift history</title><style>{style}</style>'
            f"</head><body><main><h1>{plural(len(points), 'batch', 'batches')}</h1><p><b>{escape(lead)}</b></p>"
            f"<section>{lines}"
            '<div class="wide"><table><tr><th>date</th><th>batch</th><th>verdict</th><th>R@1</th>'
            f"<th>largest distance</th></tr>{rows}</table></div></section></main></body></html>\n")


def _new_model(before: Point, point: Point) -> str:
    """A row of the table where another model judges from here on."""
    if point.model == before.model:
        return ""
    return f'<tr><th colspan="5">judged by model {escape(point.model)} from here on</th></tr>'


def _line(title: str, values: list[float], limit: float | None, top: float | None) -> str:
    """A line over all batches, and its limit."""
    peak = top or 1.15 * max([*values, limit or 0.0, 1e-9])
    step = WIDTH / max(len(values) - 1, 1)
    dots = [f"{number * step:.0f},{HEIGHT - value / peak * HEIGHT:.1f}" for number, value in enumerate(values)]
    mark = ""
    if limit is not None:
        height = f"{HEIGHT - limit / peak * HEIGHT:.1f}"
        mark = f'<line x1="0" x2="{WIDTH}" y1="{height}" y2="{height}" stroke="#1c2430" stroke-dasharray="4"/>'
    circles = "".join('<circle cx="{}" cy="{}" r="3" fill="#e0662c"/>'.format(*dot.split(",")) for dot in dots)
    return (f'<h3>{title}</h3><figure><svg viewBox="-6 -6 {WIDTH + 12} {HEIGHT + 12}">{mark}<polyline points='
            f'"{" ".join(dots)}" fill="none" stroke="#e0662c" stroke-width="1.5"/>{circles}</svg></figure>')
