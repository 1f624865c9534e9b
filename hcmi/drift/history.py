"""All batches together: every batch once, a line per figure, and drift that is too slow for a single batch to show.

It reads the report.json of the reports in a folder, and writes history.json and history.html into it.
"""

import json
from dataclasses import dataclass
from html import escape
from math import comb
from pathlib import Path
from statistics import NormalDist
from typing import Any

from hcmi.drift.causes import plural
from hcmi.drift.severity import LABEL_FREE
from hcmi.drift.workspace import date_of
from hcmi.files import atomic_file

# CUSUM of R@1 and of the comparisons, in standard deviations. All batches share one reference, whose own error moves
# all of them by up to half a standard deviation: `SLACK` is more. With `LIMIT`, fewer than 5 % of histories of 50 quiet
# batches report anything (tests/drift/test_history.py). [ours]
SLACK, LIMIT = 0.75, 9.0
CHANCE = 0.02               # of as many alarms as there are, for calling them more than chance
WIDTH, HEIGHT = 560, 90


@dataclass(frozen=True)
class Point:
    """One batch of a history. `signal`: in standard deviations, above 0 where something is worse or further away."""

    batch: str
    date: str
    verdict: str
    recall: float | None
    reference: float | None
    ratio: float            # the largest distance divided by its limit
    signals: dict[str, float]


def newest_records(folder: str | Path) -> dict[str, tuple[float, dict[str, Any]]]:
    """Batch -> the time of its newest report, and its record there, for all reports in `folder`."""
    newest: dict[str, tuple[float, dict[str, Any]]] = {}
    for path in sorted(Path(folder).glob("*/report.json")):
        try:
            batches = json.loads(path.read_text(encoding="utf-8"))["batches"]
        except (OSError, ValueError, KeyError):
            continue        # a report that is being written; the next history has it
        seconds = path.stat().st_mtime
        for record in batches:
            if record["batch"] not in newest or seconds > newest[record["batch"]][0]:
                newest[record["batch"]] = seconds, record
    return newest


def read_history(folder: str | Path) -> list[Point]:
    """Every judged batch once, oldest first: of two reports on a batch the newer one counts."""
    points = [point_of(record, date_of(record["batch"], seconds).date().isoformat())
              for seconds, record in newest_records(folder).values() if record["shifts"]]
    return sorted(points, key=lambda point: (point.date, point.batch))


def point_of(record: dict[str, Any], date: str) -> Point:
    """The batch of a record of report.json."""
    severity = record["severity"] or {}
    if severity.get("how") == LABEL_FREE:
        severity = {}       # the line of R@1 shows what was measured
    signals = {}
    if severity:
        low, high = severity["change_interval"]
        signals["R@1"] = -severity["change"] / max((high - low) / 3.92, 1e-6)
    # the adjusted p-value of the largest distance is even between 0 and 1 without a change
    signals["distance"] = NormalDist().inv_cdf(1 - min(max(min(shift["p_value"] for shift in record["shifts"]), 5e-4),
                                                       0.9995))
    return Point(record["batch"], date, record["verdict"], severity.get("recall_at_1"), severity.get("reference"),
                 max(shift["distance_over_limit"] for shift in record["shifts"]), signals)


def slow_changes(points: list[Point]) -> dict[str, str]:
    """Figure -> the batch since which it has changed slowly; only figures whose sum of deviations crosses `LIMIT`.

    One-sided CUSUM (Page 1954): deviations beyond `SLACK` add up, and the sum never falls below zero.
    """
    found: dict[str, str] = {}
    for name in ("R@1", "distance"):
        total, since = 0.0, ""
        for point in points:
            if name not in point.signals:
                continue
            # one batch alone cannot cross the limit: its own verdict says so already
            step = min(point.signals[name], 3.0) - SLACK
            if total + step <= 0:
                total, since = 0.0, ""
                continue
            since = since or point.batch
            total += step
            if total >= LIMIT:
                found[name] = since
    return found


def most_by_chance(num_batches: int, false_alarm_rate: float) -> int:
    """The number of alarms that `num_batches` quiet batches exceed in fewer than `CHANCE` of cases (binomial)."""
    below = 0.0
    for count in range(num_batches + 1):
        below += comb(num_batches, count) * false_alarm_rate**count * (1 - false_alarm_rate) ** (num_batches - count)
        if 1 - below < CHANCE:
            return count
    return num_batches


def write_history(folder: str | Path, false_alarm_rate: float) -> dict[str, Any]:
    """Write history.json and history.html into `folder`, and return what the former holds."""
    points = read_history(folder)
    slow = slow_changes(points)
    alarms = sum(point.verdict not in ("ok", "cannot tell") for point in points)
    most = most_by_chance(len(points), false_alarm_rate)
    result = {"batches": [{"batch": point.batch, "date": point.date, "verdict": point.verdict,
                           "recall_at_1": point.recall, "largest_distance_over_limit": round(point.ratio, 3)}
                          for point in points],
              "alarms": alarms, "most_alarms_by_chance": most,
              "slow_changes": slow}
    for name, text in (("history.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n"),
                       ("history.html", _page(points, slow, alarms, most))):
        with atomic_file(Path(folder) / name) as path:
            path.write_text(text, encoding="utf-8")
    return result


def _page(points: list[Point], slow: dict[str, str], alarms: int, most: int) -> str:
    from hcmi.drift.page import STATIC

    said = [f"{name} has changed slowly since {batch}, though no single batch need have shown it."
            for name, batch in slow.items()]
    if alarms > most:
        said.insert(0, f"{alarms} of {plural(len(points), 'batch', 'batches')} changed; by chance at most {most} do.")
    lead = " ".join(said) or "No slow change over these batches."
    recalls = [(point.recall, point.reference) for point in points if point.recall is not None]
    lines = _line("R@1, per cent (mark: tested clips)", [now for now, _ in recalls],
                  recalls[-1][1] if recalls else None, 100) if recalls else ""
    lines += _line("Largest distance, in units of its limit", [point.ratio for point in points], 1.0, None)
    rows = "".join(f"<tr><td>{escape(point.date)}</td><td>{escape(point.batch)}</td><td>{escape(point.verdict)}</td>"
                   f"<td>{'' if point.recall is None else f'{point.recall:.0f} %'}</td><td>{point.ratio:.2f}</td></tr>"
                   for point in points)
    style = (STATIC / "page.css").read_text(encoding="utf-8")
    return ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>Drift history</title><style>{style}</style>'
            f"</head><body><main><h1>{plural(len(points), 'batch', 'batches')}</h1><p><b>{escape(lead)}</b></p>"
            f"<section>{lines}"
            '<div class="wide"><table><tr><th>date</th><th>batch</th><th>verdict</th><th>R@1</th>'
            f"<th>largest distance</th></tr>{rows}</table></div></section></main></body></html>\n")


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
