"""The arithmetic of the benchmarks that compare training runs, on records made up here."""

import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    """The scripts as modules: a script's own folder is on its path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import heads
    import runs

    yield heads, runs
    for name in ("ablation", "heads", "runs", "common"):
        sys.modules.pop(name, None)


def record(seed: int, **r1: float) -> dict:
    return {"seed": seed, "device": "cpu", "r1": r1}


def test_interval_is_students_when_worked_by_hand(benchmarks):
    _, runs = benchmarks
    # mean 2, standard deviation 1, t(0.975, 2) = 4.3027: 2 -+ 4.3027 / sqrt(3)
    assert runs.interval([1.0, 2.0, 3.0]) == pytest.approx([-0.4841, 4.4841], abs=1e-4)
    assert runs.interval([5.0]) is None


def test_lead_is_paired_by_seed_when_records_come_in_any_order(benchmarks):
    heads, _ = benchmarks
    records = {"hcmi": [record(0, main=70.0), record(1, main=66.0)],
               "wti": [record(1, main=60.0), record(0, main=65.0)],
               "mean_pool": [record(0, main=40.0), record(1, main=50.0)],
               "hcmi, MSE off": [record(0, main=69.0)], "xclip": [record(0, long=99.0)]}
    best, best_r1, lead, between = heads.lead_over_best(records, "main")
    assert (best, best_r1, lead) == ("wti", 62.5, 5.5)      # 70 - 65 and 66 - 60
    assert between == pytest.approx([5.5 - 12.706 * 0.5, 5.5 + 12.706 * 0.5], abs=1e-3)
    rows = {row[1]: row for row in heads.compare(records, "main")}
    assert rows["mean_pool"][2:6:3] == (2, 23.0)
    assert rows["mean_pool"][3] == 45.0
    assert rows["hcmi"][5:] == (None, None)
    assert rows["hcmi, MSE off"][4:] == (None, 1.0, None)
    assert "xclip" not in rows, "it was not measured on this gallery"


def test_runs_are_paired_where_both_were_made_when_some_are_missing(benchmarks):
    _, runs = benchmarks
    ours = [record(2, main=9.0), record(0, main=5.0), {**record(1, main=7.0), "device": "cuda"}]
    others = [record(0, main=1.0), record(1, main=2.0), {**record(1, main=4.0), "device": "cuda"}]
    assert runs.paired(ours, others, "main") == [4.0, 3.0]      # seed 0 on the processor, seed 1 on the GPU


def test_spec_key_follows_what_is_trained_and_not_where(benchmarks):
    _, runs = benchmarks
    spec = runs.Spec("standard", 1, {"train.epochs": 3})
    assert spec.resolved().train.epochs == 3
    assert spec.resolved().train.seed == 1
    assert spec.key("cuda:0") == spec.key("cuda:1") != spec.key("cpu")
    others = [runs.Spec("quick", 1, {"train.epochs": 3}), runs.Spec("standard", 2, {"train.epochs": 3}),
              runs.Spec("standard", 1, {"train.epochs": 4}), runs.Spec("long", 1, {"train.epochs": 3})]
    assert len({spec.key("cpu"), *(other.key("cpu") for other in others)}) == 5
    with pytest.raises(AssertionError, match=r"params\.yaml has no train\.epoch$"):
        runs.Spec("standard", 0, {"train.epoch": 3}).resolved()


def test_spec_key_of_a_peer_ignores_the_loss_it_does_not_use(benchmarks):
    _, runs = benchmarks

    def key(head, margin):
        return runs.Spec("standard", 0, {"model.head": head, "train.loss.margin": margin}).key("cpu")

    assert key("wti", 0.2) == key("wti", 0.4)
    assert key("hcmi", 0.2) != key("hcmi", 0.4)


def test_data_lie_elsewhere_when_they_are_made_in_another_way(benchmarks, monkeypatch):
    _, runs = benchmarks
    spec = runs.Spec("standard", 1)
    folder, key, gallery = spec.folder(), spec.key("cpu"), spec.folder("main")
    assert runs.Spec("standard", 2, {"train.epochs": 3}).folder() == folder != runs.Spec("quick").folder()
    assert runs.Spec("noise_20").folder("main") == gallery != spec.folder("order")
    monkeypatch.setitem(runs.DATA, "standard", runs.STANDARD.model_copy(update={"part_captions": 0}))
    assert spec.folder() != folder
    assert spec.key("cpu") != key
    assert spec.folder("main") == gallery, "galleries are made in one way only"


def test_code_identity_changes_with_the_code_and_not_with_its_comments(benchmarks, tmp_path, monkeypatch):
    _, runs = benchmarks
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    found = []
    for text in ('"""One."""\ndef f():\n    """Two."""\n    return 1\n', 'def f():\n    return 1     # why\n',
                 'def f():\n    return 2\n'):
        (tmp_path / "code.py").write_text(text, encoding="utf-8")
        found.append(runs.code_identity(["code.py"]))
    assert found[0] == found[1] != found[2]
    assert found[2].startswith("d17a99c2e9eb"), "other versions of Python give other keys: all runs would be made anew"


def test_benchmarks_ask_for_parameters_that_there_are(benchmarks):
    heads, _ = benchmarks
    import ablation

    wanted = [heads.specs(False, 1), heads.specs(True, 1), ablation.variant_specs(1), ablation.noise_specs(1)]
    for spec in chain(*(specs for by_name in wanted for specs in by_name.values())):
        assert spec.resolved().train.seed == 0
