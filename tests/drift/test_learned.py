"""Limits learned from accepted batches: by hand, and through the stage."""

import json

import pytest
from drift_world import drift, of

from hcmi.dataset import Accepted, accept
from hcmi.drift.compare import Shift
from hcmi.drift.learned import Learned, learn


def write(folder, name: str, distance: float, column: str = "brightness") -> None:
    (folder / name).mkdir(parents=True)
    record = {"batch": name, "verdict": "changed", "shifts": [{"name": column, "distance": distance}]}
    (folder / name / "report.json").write_text(json.dumps({"batches": [record]}))


def accepted(path, *names: str):
    for name in names:
        accept(path, Accepted(name, f"content of {name}", "changed", "2026-11-27T00:00:00+00:00"))
    return path


def test_limit_is_the_mean_plus_three_standard_deviations_of_accepted_batches_alone(tmp_path):
    for number in range(8):
        write(tmp_path / "watch", f"b{number}", number % 2)     # mean 0.5, standard deviation (8 / 4 / 7) ** 0.5
    write(tmp_path / "watch", "refused", 99.0)
    write(tmp_path / "watch", "rare", 1.0, "motion")
    found = learn(tmp_path / "watch", accepted(tmp_path / "accepted.json", *(f"b{row}" for row in range(8)), "rare"))
    assert found == Learned(9, {"brightness": pytest.approx(0.5 + 3 * (2 / 7) ** 0.5)})


def test_seven_batches_or_none_teach_nothing(tmp_path):
    assert learn(tmp_path / "nothing", tmp_path / "no.json") == Learned(0, {})
    for number in range(7):
        write(tmp_path / "watch", f"b{number}", 1.0)
    assert learn(tmp_path / "watch", accepted(tmp_path / "a.json", *(f"b{row}" for row in range(7)))).limits == {}


def test_limits_are_raised_and_never_lowered():
    shifts = [Shift("brightness", 0.5, 0.2, 0.001, 1.0, 2.0), Shift("motion", 0.5, 0.4, 0.001, 1.0, 2.0)]
    wider = Learned(8, {"brightness": 0.6, "motion": 0.1}).widen(shifts)
    assert [(shift.threshold, shift.drifted) for shift in wider] == [(0.6, False), (0.4, True)]


def test_a_change_that_accepted_batches_show_too_is_usual(world, result, tmp_path):
    """Eight accepted batches were as bright, so brightness is no news; the page says what is assumed."""
    record = of(result, "brighter")
    for number in range(8):
        name = f"bright_{number}"
        (tmp_path / "watch" / name).mkdir(parents=True)
        (tmp_path / "watch" / name / "report.json").write_text(json.dumps({"batches": [record | {"batch": name}]}))
        accepted(tmp_path / "accepted.json", name)
    root, params = world
    found = drift(incoming_dir=root / "incoming", model_dir=root / "model", export_dir=root / "export",
                  shards_dir=root / "shards", out_dir=tmp_path / "out", params=params, batches=["brighter"],
                  learn_from=tmp_path / "watch", accepted=tmp_path / "accepted.json")
    assert any(shift["drifted"] for shift in record["shifts"])
    for before, after in zip(record["shifts"], of(found, "brighter")["shifts"], strict=True):
        assert after["distance"] == before["distance"]
        assert after["limit"] >= max(before["limit"], before["distance"] - 1e-6)
    assert found["learned_from"] == 8
    assert "what 8 accepted batches showed" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
