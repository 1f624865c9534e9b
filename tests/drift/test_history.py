"""Every batch once, slow drift found, and quiet histories left in peace."""

import json
import os

import numpy as np
import pytest
from scipy.stats import hypergeom, norm

from hcmi.drift.history import (
    Point,
    _farther,
    _fewer_found,
    comparable,
    first_change,
    most_by_chance,
    newest_records,
    points_of,
    slow_changes,
    write_history,
)
from hcmi.errors import DriftError


def point(name: str, recall: float = 97.0, p_value: float = 0.5, captions: int = 100, model: str = "m") -> Point:
    shared = captions / (captions + 300)
    return Point(name, "2026-01-01", "ok", recall, 97.0, 0.6, p_value, captions, 300, shared, model)


def record(name: str, verdict: str = "ok", p_value: float = 0.5, change: float = 0.0) -> dict:
    return {"batch": name, "verdict": verdict, "clips": 200, "queries": 0, "independent": 200.0,
            "severity": {"recall_at_1": 97.0 + change, "reference": 97.0, "captions": 200, "how": "measured"},
            "shifts": [{"distance_over_limit": 0.6, "p_value": p_value}]}


def write(folder, *records: dict, model: str = "m") -> None:
    folder.mkdir(parents=True)
    reference = {"clips": 600, "captioned": 600, "independent": 600.0, "model": model}
    (folder / "report.json").write_text(json.dumps({"batches": list(records), "reference": reference}))


def quiet(generator: np.random.Generator, count: int, fall: float = 0.0) -> list[Point]:
    """Batches that share the error of one reference, in R@1 and in their distances; `fall`: points of R@1 per batch."""
    tested = 100 * (1 - generator.binomial(300, 0.03) / 300)
    lost = generator.binomial(100, 0.03 + fall / 100 * np.arange(count))
    far = norm.sf(0.5 * generator.normal() + 0.75**0.5 * generator.normal(size=count))
    return [Point(f"{generator.integers(1 << 40)}", "2026-01-01", "changed" if p < 0.01 else "ok", 100.0 - lost[row],
                  tested, 0.6, round(p, 3), 100, 300, 0.25, "m") for row, p in enumerate(far)]


def test_fewer_than_a_twentieth_of_quiet_histories_report_anything_at_any_time():
    """A quarter of the variance of each comparison comes from the reference, which all batches of a history share."""
    generator = np.random.default_rng(0)
    said = {"R@1": 0, "distance": 0, "alarms": 0}
    most = {count: most_by_chance(quiet(generator, count), 0.01) for count in (8, 16, 32, 50)}
    for _ in range(150):
        points = quiet(generator, 50)
        for name in slow_changes(points):
            said[name] += 1
        said["alarms"] += any(sum(one.verdict == "changed" for one in points[:count]) > limit
                              for count, limit in most.items())
    assert sum(said.values()) <= 7


def test_slow_drift_is_found_before_a_single_batch_shows_it():
    """R@1 falls by a tenth of a batch's standard deviation each time; a batch alone is called hurt at about 3."""
    generator = np.random.default_rng(1)
    assert np.mean(["R@1" in slow_changes(quiet(generator, 35, fall=0.17)) for _ in range(25)]) >= 0.8


def test_sudden_fall_is_dated():
    points = [point(f"b{number:02d}", 97.0 if number < 10 else 91.0) for number in range(20)]
    assert slow_changes(points)["R@1"] in ("b10", "b11")


def test_distances_that_grow_are_found_and_constant_ones_are_not():
    grows = [point(f"b{number}", p_value=0.9 - 0.03 * number) for number in range(28)]
    assert "distance" in slow_changes(grows)
    assert "distance" not in slow_changes([point(f"c{number}", p_value=0.2) for number in range(28)])


def test_evidence_is_a_martingale_so_its_mean_stays_at_one():
    """By hand for one batch: 1/2 is kept for later places, 1/2 is put on the first and multiplied by its ratio."""
    scores = norm.isf(np.linspace(0, 1, 20_001)[1:-1])
    ratio = np.exp(0.75 * np.minimum(scores, 3) - 0.75**2 / 2)
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    one = norm.sf(2.0)
    evidence = 0.5 + 0.5 * np.exp(0.75 * 2 - 0.75**2 / 2)
    assert first_change([one], 1 / evidence * 1.001) == 0
    assert first_change([one], 1 / evidence * 0.999) is None
    assert first_change([], 0.02) is None


def test_one_batch_alone_is_no_slow_change():
    assert first_change([0.5, 0.5, 1e-12, 0.5, 0.5], 0.02) is None


def test_planted_trend_of_small_p_values_is_found_where_it_begins():
    assert first_change([0.5] * 10 + [0.05] * 12, 0.02) == 10


def test_chance_of_few_finds_lies_between_the_two_tails_and_later_batches_compare_with_earlier_ones_too():
    first, second = _fewer_found([point("a", 95.0), point("b", 95.0)])
    assert hypergeom.sf(5, 400, 9 + 5, 100) <= first <= hypergeom.sf(4, 400, 9 + 5, 100)
    assert hypergeom.sf(5, 500, 14 + 5, 100) <= second <= hypergeom.sf(4, 500, 14 + 5, 100)


def test_ranks_of_distances_by_hand():
    ranks = _farther([point("a", p_value=0.5), point("b", p_value=0.3), point("c", p_value=0.4)])
    assert 0 < ranks[0] <= 1
    assert 0 < ranks[1] <= 1 / 2
    assert 1 / 3 < ranks[2] <= 2 / 3


def test_only_batches_that_the_newest_model_judged_are_compared():
    points = [point(f"b{number:02d}", 85.0, model="old") for number in range(10)] + [point("new")]
    assert slow_changes(comparable(points[:10]))
    assert slow_changes(comparable(points)) == {}


def test_newest_model_is_that_of_the_latest_report_and_not_of_the_latest_date_in_a_name(tmp_path):
    """A batch of the day before that the new model judged hid it, and the old model's batches were compared."""
    write(tmp_path / "b", record("2026-11-30"), model="old")
    write(tmp_path / "a", record("2026-11-23"), model="new")
    os.utime(tmp_path / "b" / "report.json", (100, 100))
    os.utime(tmp_path / "a" / "report.json", (200, 200))
    points = points_of(newest_records(tmp_path))
    assert [(point.batch, point.model) for point in points] == [("2026-11-23", "new"), ("2026-11-30", "old")]
    assert [point.batch for point in comparable(points)] == ["2026-11-23"]
    assert comparable([]) == []


def test_alarms_of_older_models_and_of_query_logs_are_not_counted(tmp_path):
    """A history of quiet batches beside query logs that changed was said to have changed; so was one after a new model.
    """
    for day in range(10, 16):
        write(tmp_path / f"old-{day}", record(f"2026-11-{day}", "changed", 0.001), model="old")
        write(tmp_path / f"log-{day}", record(f"2026-12-{day}", "changed", 0.001) | {
            "queries": 40, "clips": 0, "severity": None})
        write(tmp_path / f"new-{day}", record(f"2026-12-{day}_films"))
    result = write_history(tmp_path, 0.01)
    assert (len(result["batches"]), result["alarms"], result["slow_changes"]) == (18, 0, {})
    assert [batch["model"] for batch in result["batches"]] == ["old"] * 6 + ["m"] * 12
    page = (tmp_path / "history.html").read_text(encoding="utf-8")
    assert "No slow change over these batches." in page
    assert page.count("judged by model") == page.count("judged by model m from here on") == 1
    assert page.index("2026-11-15") < page.index("judged by model m") < page.index("2026-12-10")
    for day in range(10, 16):
        write(tmp_path / f"worse-{day}", record(f"2026-12-{day}_worse", "changed", 0.001))
    write_history(tmp_path, 0.01)
    assert "6 of 12 batches changed; by chance at most" in (tmp_path / "history.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("made", "message"), [
    ([], "need a folder of drift reports, got none"), (["watch"], "need folders with a report.json in it, got none")])
def test_history_of_a_mistyped_folder_is_refused_and_nothing_is_written(tmp_path, made, message):
    for name in made:
        (tmp_path / name).mkdir()
    with pytest.raises(DriftError, match=rf"watch: {message}"):
        write_history(tmp_path / "watch", 0.01)
    assert sorted(path.name for path in tmp_path.rglob("*")) == made


def test_what_is_no_report_or_was_left_by_a_killed_run_is_passed_over(tmp_path):
    write(tmp_path / "b", record("2026-11-20"))
    write(tmp_path / ".c.abcd1234.tmp", record("2026-11-21"))
    for number, text in enumerate(("[]", "3", '{"batches": 3}', '{"batches": [3]}', '{"batches": [[]]}', "{")):
        (tmp_path / f"odd_{number}").mkdir()
        (tmp_path / f"odd_{number}" / "report.json").write_text(text)
    assert [point.batch for point in points_of(newest_records(tmp_path))] == ["2026-11-20"]


def test_most_alarms_by_hand():
    """Without a common error, of one batch more than 0 with the chance 0.01 of one: not below 0.01 / 2; so 1."""
    alone = point("a", captions=0)
    assert alone.shared == 0
    assert most_by_chance([alone], 0.01) == 1
    assert most_by_chance([alone], 0.001) == 0
    # 64 batches at 1 %: 0.99**64 = 0.53 have none; more than 4 have 0.0005, more than 5 have 0.00005; limit 0.00018
    assert most_by_chance([alone] * 50, 0.01) == 5
    assert most_by_chance([point("a")] * 50, 0.01) > 5
    assert most_by_chance([], 0.01) == 0


def test_each_batch_is_there_once_with_its_newest_report_in_order_of_its_date(tmp_path):
    write(tmp_path / "old", record("2026-11-23"), record("2026-11-20"))
    write(tmp_path / "new", record("2026-11-23", "changed", 0.001))
    os.utime(tmp_path / "old" / "report.json", (1, 1))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "report.json").write_text("{")
    found = points_of(newest_records(tmp_path))
    assert [(point.batch, point.date, point.verdict) for point in found] == [
        ("2026-11-20", "2026-11-20", "ok"), ("2026-11-23", "2026-11-23", "changed")]
    assert (found[0].captions, found[0].tested, found[0].model) == (200, 600, "m")


def test_reports_of_earlier_versions_are_shown_and_not_tested(tmp_path):
    old = {key: value for key, value in record("2026-11-20", change=-20).items()
           if key not in ("independent", "queries")}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_text(json.dumps({"batches": [old], "reference": {"clips": 600}}))
    assert [(point.recall, point.captions) for point in points_of(newest_records(tmp_path))] == [(77.0, 0)]
    assert write_history(tmp_path, 0.01)["slow_changes"] == {}


def test_history_says_since_when(tmp_path):
    for day in range(10, 24):
        write(tmp_path / f"2026-11-{day}", record(f"2026-11-{day}", change=0.0 if day < 14 else -4.0))
    result = write_history(tmp_path, 0.01)
    assert result["slow_changes"] == {"R@1": "2026-11-14"}
    assert json.loads((tmp_path / "history.json").read_text()) == result
    page = (tmp_path / "history.html").read_text()
    assert "R@1 has changed slowly, probably since 2026-11-14" in page
    assert page.count("<svg") == 2
