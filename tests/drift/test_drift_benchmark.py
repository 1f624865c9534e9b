"""benchmarks/drift.py measures the shipped verdict, with all columns and for each kind of change."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_batches import MadeReference, made_sample

from hcmi.drift.profile import CLIP_COLUMNS
from hcmi.types import Clip

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module, which is called as the package's stage is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import drift as script

        yield script
    for name in ("drift", "drift_clips", "common"):
        sys.modules.pop(name, None)


def test_clips_of_the_benchmark_have_every_column_of_the_shipped_verdict(benchmark):
    """The nine pixel columns were left out."""
    clip = Clip("v", "v.mp4", "test", ("a",), 0, 1, 1, "v", {})
    columns, _ = benchmark.pixels_of([clip], np.zeros((1, benchmark.FRAMES, 64, 64, 3), np.uint8))
    assert [*columns, "nearest_known"] == list(CLIP_COLUMNS)       # the reference adds the last one


def test_batches_of_the_benchmark_are_judged_as_the_stage_judges_them(benchmark):
    world = benchmark.World.__new__(benchmark.World)
    world.references, world.rate, world.generator = [MadeReference(100)] * 2, 0.01, np.random.default_rng(0)
    sample = made_sample(40, np.random.default_rng(1))
    report, expected = world.judge(sample), world.references[0].judge(sample, np.random.default_rng(0))
    assert report.to_record() == expected.to_record()
    assert {*CLIP_COLUMNS} - {"width", "height"} <= {shift.name for shift in report.shifts}     # these never vary


def test_power_is_told_for_each_kind_and_the_least_of_them(benchmark):
    """The least power was that of the strongest damage."""
    rows = [("strong", 0.0, 10, 16, 1.0, 1.0, 1.0, 1.0), ("weak", 80.0, 60, 12, 0.75, 0.5, 0.0, 0.25),
            ("never fell by ten points", 97.0, 100, 0, *[float("nan")] * 4)]
    found = benchmark.power_of(rows)
    assert [found[f"min_power_{name}"] for name in ("hurt", "changed", "hurt_no_captions")] == [0.75, 0.5, 0.0]
    assert (found["hurt_strong"], found["hurt_weak"], found["changed_no_captions_weak"]) == (1.0, 0.75, 0.25)
    assert (found["fallen_batches"], found["batches_weak"]) == (28, 12)
    assert not [name for name in found if "never" in name]


def test_coverage_by_hand(benchmark):
    records = [{"severity": {"recall_at_1": recall, "interval": [recall - 2, recall + 1]}} for recall in (90, 92, 97)]
    assert benchmark.coverage_of(records) == {"recall_interval_coverage": 1 / 3, "recall_interval_width": 3.0}  # of 93


def test_what_is_kept_is_measured_again_when_the_code_has_changed(benchmark, tmp_path, monkeypatch):
    model = SimpleNamespace(fingerprint="f" * 40)
    world = SimpleNamespace(references=[SimpleNamespace(model=model)])
    monkeypatch.setattr(benchmark, "WORLD", world, raising=False)
    monkeypatch.setattr(benchmark, "CACHE", tmp_path)
    assert [benchmark.kept("name", lambda value: value, value) for value in (1, 2)] == [1, 1]
    monkeypatch.setattr(benchmark, "_code", lambda: "other")
    assert benchmark.kept("name", lambda value: value, 3) == 3


def test_committed_result_has_every_kind_and_meets_the_targets(benchmark):
    figures = json.loads((ROOT / "benchmarks/results/drift.json").read_text(encoding="utf-8"))["figures"]
    kinds = [*benchmark.HARMFUL, *benchmark.ODD_SEEDS]
    assert "quick" not in figures
    assert (figures["batches"], figures["histories"]) == (300, 40)
    low, high = figures["false_alarm_rate_ci95"]
    assert low <= 0.01 < high <= 0.03
    assert max(figures[f"{batches}_called_hurt{way}"] for batches in ("unchanged", "harmless")
               for way in ("", "_no_captions")) <= 0.02
    assert {kind: figures[f"hurt_{kind}"] for kind in kinds if figures[f"hurt_{kind}"] < 0.95} == {}
    assert {kind: figures[f"changed_{kind}"] for kind in kinds if figures[f"changed_{kind}"] < 0.95} == {}
    assert {kind: figures[f"hurt_no_captions_{kind}"] for kind in kinds
            if kind != "shapes" and figures[f"hurt_no_captions_{kind}"] < 0.8} == {}
    assert figures["history_false_alarm_rate"] <= 0.05
    assert figures["label_free_mae"] <= 4
    assert abs(figures["label_free_bias"]) <= 1
    assert figures["label_free_coverage"] >= 0.88
    assert figures["label_free_width"] <= 20
    assert figures["recall_interval_coverage"] >= 0.92
    assert figures["html_mb"] <= 5


@pytest.mark.xfail(strict=True, reason="with the model of decision 28, 9 of 14 such batches are found (docs/drift.md)")
def test_committed_result_meets_the_target_for_unknown_shapes_without_captions():
    figures = json.loads((ROOT / "benchmarks/results/drift.json").read_text(encoding="utf-8"))["figures"]
    assert figures["hurt_no_captions_shapes"] >= 0.8
