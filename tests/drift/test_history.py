"""Every batch once, slow drift found, and quiet histories left in peace."""

import json
import os

import numpy as np

from hcmi.drift.history import Point, most_by_chance, read_history, slow_changes, write_history


def points(signals: np.ndarray) -> list[Point]:
    return [Point(f"b{number:02d}", "2026-01-01", "ok", 97.0, 97.0, 0.6, {"R@1": float(recall), "distance": float(far)})
            for number, (recall, far) in enumerate(signals)]


def record(name: str, verdict: str = "ok", p_value: float = 0.5, change: float = 0.0) -> dict:
    return {"batch": name, "verdict": verdict,
            "severity": {"recall_at_1": 97.0 + change, "reference": 97.0, "change": change,
                         "change_interval": [change - 3, change + 3]},
            "shifts": [{"distance_over_limit": 0.6, "p_value": p_value}]}


def write(folder, *records: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"batches": list(records)}))


def test_fewer_than_a_twentieth_of_quiet_histories_report_anything():
    """The reference is shared by all batches of a history, and its own error is a third of a batch's."""
    generator = np.random.default_rng(0)
    said = 0
    for _ in range(400):
        shared = 0.33 * generator.normal(size=2)
        alarms = generator.binomial(50, 0.01)
        said += bool(slow_changes(points(generator.normal(size=(50, 2)) + shared))) or alarms > most_by_chance(50, 0.01)
    assert said <= 20


def test_slow_drift_is_found_before_a_single_batch_shows_it():
    """R@1 falls by a tenth of a batch's standard deviation each time; a batch alone is called hurt at about 2."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(50):
        signals = generator.normal(size=(30, 2)) + np.arange(30)[:, None] * [0.1, 0.0]
        found.append("R@1" in slow_changes(points(signals)))
    assert np.mean(found) >= 0.9


def test_most_alarms_by_hand():
    """1 - 0.99**50 = 0.39, of two or more 0.089, of three or more 0.014."""
    assert most_by_chance(50, 0.01) == 2
    assert most_by_chance(1, 0.01) == 0


def test_each_batch_is_there_once_with_its_newest_report_in_order_of_its_date(tmp_path):
    write(tmp_path / "old", record("2026-11-23"), record("2026-11-20"))
    write(tmp_path / "new", record("2026-11-23", "changed", 0.001))
    os.utime(tmp_path / "old" / "report.json", (1, 1))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "report.json").write_text("{")
    found = read_history(tmp_path)
    assert [(point.batch, point.date, point.verdict) for point in found] == [
        ("2026-11-20", "2026-11-20", "ok"), ("2026-11-23", "2026-11-23", "changed")]


def test_history_says_since_when(tmp_path):
    for day in range(10, 22):
        write(tmp_path / f"2026-11-{day}", record(f"2026-11-{day}", change=0.0 if day < 14 else -4.0))
    result = write_history(tmp_path, 0.01)
    assert result["slow_changes"] == {"R@1": "2026-11-14"}
    assert json.loads((tmp_path / "history.json").read_text()) == result
    page = (tmp_path / "history.html").read_text()
    assert "R@1 has changed slowly since 2026-11-14" in page
    assert page.count("<svg") == 2
