"""Limits learned from accepted batches: by hand, and through the stage."""

import json

import pytest
from drift_world import drift, of

from hcmi.dataset import Accepted, accept
from hcmi.drift.compare import Shift
from hcmi.drift.history import newest_records
from hcmi.drift.learned import Learned, learn
from hcmi.errors import DriftError


def write(folder, name: str, ratio: float, column: str = "brightness", model: str = "m", raised: float = 1.0) -> None:
    (folder / name).mkdir(parents=True)
    record = {"batch": name, "verdict": "changed",
              "shifts": [{"name": column, "distance": 7.0, "distance_over_limit": ratio, "limit_raised": raised}]}
    (folder / name / "report.json").write_text(json.dumps({"batches": [record], "reference": {"model": model}}))


def accepted(path, *names: str):
    for name in names:
        accept(path, Accepted(name, f"content of {name}", "changed", "2026-11-27T00:00:00+00:00"))
    return path


def test_factor_is_the_mean_plus_three_standard_deviations_of_accepted_batches_by_this_model(tmp_path):
    """A batch of 16 clips is farther by chance than one of 400, and so is its limit: their ratios are compared."""
    for number in range(8):
        write(tmp_path / "watch", f"b{number}", number % 2)     # mean 0.5, standard deviation (8 / 4 / 7) ** 0.5
    write(tmp_path / "watch", "refused", 99.0)
    write(tmp_path / "watch", "before", 99.0, model="old")
    write(tmp_path / "watch", "rare", 1.0, "motion")
    names = [f"b{row}" for row in range(8)]
    found = learn(newest_records(tmp_path / "watch"),
                  accepted(tmp_path / "accepted.json", *names, "before", "rare"), "m")
    assert set(found.batches) == {*names, "rare"}
    assert found.factors == {"brightness": pytest.approx(0.5 + 3 * (2 / 7) ** 0.5)}


def test_distances_count_as_they_are_when_their_limits_had_been_raised(tmp_path):
    for number in range(8):
        write(tmp_path / "watch", f"b{number}", 0.5, raised=4.0)
    found = learn(newest_records(tmp_path / "watch"),
                  accepted(tmp_path / "a.json", *(f"b{row}" for row in range(8))), "m")
    assert found.factors == {"brightness": 2.0}


def test_seven_batches_and_the_batch_itself_teach_nothing(tmp_path):
    for number in range(8):
        write(tmp_path / "watch", f"b{number}", 2.0)
    found = learn(newest_records(tmp_path / "watch"),
                  accepted(tmp_path / "a.json", *(f"b{row}" for row in range(8))), "m")
    assert found.factors == {"brightness": 2.0}
    assert found.without("b3").factors == {}
    assert learn(newest_records(tmp_path / "watch"), tmp_path / "no.json", "m").factors == {}


def test_a_mistyped_folder_is_refused(world, tmp_path):
    root, params = world
    with pytest.raises(DriftError, match=r"nope: need a folder of drift reports, got none\. Correct"):
        drift(incoming_dir=root / "incoming", model_dir=root / "model", export_dir=root / "export",
              shards_dir=root / "shards", out_dir=tmp_path / "out", params=params, learn_from=tmp_path / "nope")


def test_limits_are_raised_and_never_lowered():
    shifts = [Shift("brightness", 0.5, 0.2, 0.001, 1.0, 2.0), Shift("motion", 0.5, 0.4, 0.001, 1.0, 2.0)]
    some = {f"b{number}": {"brightness": 3.0, "motion": 0.1} for number in range(8)}
    wider = Learned(some).widen(shifts)
    assert [(shift.threshold, shift.raised, shift.drifted) for shift in wider] == [
        (pytest.approx(0.6), 3.0, False), (0.4, 1.0, True)]


def test_a_change_that_accepted_batches_show_too_is_usual(world, result, tmp_path):
    """Eight accepted batches were as bright, so brightness is no news; the page says what is assumed."""
    record = of(result, "brighter")
    for number in range(8):
        name = f"bright_{number}"
        (tmp_path / "watch" / name).mkdir(parents=True)
        (tmp_path / "watch" / name / "report.json").write_text(json.dumps({
            "batches": [record | {"batch": name}], "reference": result["reference"]}))
        accepted(tmp_path / "accepted.json", name)
    root, params = world
    found = drift(incoming_dir=root / "incoming", model_dir=root / "model", export_dir=root / "export",
                  shards_dir=root / "shards", out_dir=tmp_path / "out", params=params, batches=["brighter"],
                  learn_from=tmp_path / "watch", accepted=tmp_path / "accepted.json")
    assert any(shift["drifted"] for shift in record["shifts"])
    for before, after in zip(record["shifts"], of(found, "brighter")["shifts"], strict=True):
        assert after["distance"] == before["distance"]
        assert after["limit"] >= max(before["limit"], before["distance"] * (1 - 1e-3))
    assert found["learned_from"] == 8
    assert "what 8 accepted batches showed" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
