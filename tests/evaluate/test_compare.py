"""Two runs compared, from the files that `hcmi evaluate` writes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hcmi.cli import main
from hcmi.errors import DataError
from hcmi.evaluate import compare_runs, compare_text, ranks, summary

NUM_VIDEOS = 40


def write_run(folder, noise: float, split_sha256="s" * 64, order=None, **config):
    """A run of made-up scores: three captions per video, which are found less often with more `noise`."""
    generator = np.random.default_rng(1)
    truth = np.repeat(np.arange(NUM_VIDEOS), 3)
    sims_QV = noise * generator.normal(size=(len(truth), NUM_VIDEOS)) + (truth[:, None] == np.arange(NUM_VIDEOS))
    captions = np.arange(len(truth)).reshape(NUM_VIDEOS, 3).tolist()
    found = {"t2v": ranks(sims_QV, truth), "v2t": ranks(sims_QV.T, captions)}
    names = {"t2v": [f"v{i // 3}#{i % 3}" for i in range(len(truth))], "v2t": [f"v{i}" for i in range(NUM_VIDEOS)]}
    table = pd.concat([pd.DataFrame({
        "direction": direction, "query": names[direction], "video_id": [n.partition("#")[0] for n in names[direction]],
        "greater": r.greater, "tied": r.tied, "winners": r.winners}) for direction, r in found.items()])
    if order is not None:
        table = table.sample(frac=1, random_state=order)
    (folder / "metrics").mkdir(parents=True)
    (folder / "plots").mkdir()
    table.to_parquet(folder / "plots" / "ranks.parquet")
    (folder / "plots" / "run.json").write_text(json.dumps({
        "config": {"train": {"lr": 0.001, **config}}, "model": {"fingerprint": f"{noise:.0f}" * 64},
        "data": {"split_sha256": split_sha256}, "code": {"hcmi.train.loss": "a" * 64},
        "versions": {"torch": "2.13.0"}}))
    (folder / "metrics" / "evaluate.json").write_text(json.dumps({
        "protocol": {"split": "test", "split_sha256": split_sha256, "seed": 0},
        "raw": {direction: summary(r, generator, samples=10) for direction, r in found.items()}}))
    return folder


def test_compare_gives_the_difference_of_the_means_with_a_paired_interval(tmp_path):
    worse, better = write_run(tmp_path / "a", 0.6), write_run(tmp_path / "b", 0.4, lr=0.01)
    found = compare_runs(worse, better)
    row = found["differences"]["t2v"]["R@1"]
    assert row["difference"] == pytest.approx(row["b"] - row["a"], abs=1e-3)
    assert row["difference"] > 0
    assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
    assert found["differences"]["t2v"]["MnR"]["difference"] < 0
    assert found["changed"]["config"] == {"train.lr": [0.001, 0.01]}
    assert found["changed"]["code"] == found["changed"]["data"] == {}


def test_compare_pairs_queries_when_their_order_differs(tmp_path):
    a, b = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.5, order=4)
    found = compare_runs(a, b)
    for figures in found["differences"].values():
        assert all(row["difference"] == 0 and row["ci95"] == [0, 0] for row in figures.values())
    assert "  nothing" in compare_text(found, a, b)


def test_compare_takes_the_json_file_or_one_folder_for_all(tmp_path):
    a = write_run(tmp_path / "a", 0.5)
    flat = tmp_path / "flat"
    shutil.copytree(a / "plots", flat / "plots")
    shutil.copy(a / "metrics" / "evaluate.json", flat / "evaluate.json")
    assert compare_runs(a / "metrics" / "evaluate.json", flat) == compare_runs(a, a)


def test_compare_finds_the_plots_beside_the_folder_that_it_is_called_in(tmp_path, monkeypatch):
    a = write_run(tmp_path / "a", 0.5)
    monkeypatch.chdir(a / "metrics")
    assert compare_runs("evaluate.json", ".") == compare_runs(a, a)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda b: (b / "plots" / "ranks.parquet").unlink(), r"need evaluate.json with the folder plots/ .*no .*ranks"),
    (lambda b: shutil.rmtree(b), r"need evaluate.json with the folder plots/"),
    (lambda b: (b / "metrics" / "evaluate.json").write_text("{"), "need the complete output of `hcmi evaluate`"),
    (lambda b: (b / "metrics" / "evaluate.json").write_text("{}"), "need the complete output of `hcmi evaluate`"),
    (lambda b: (b / "metrics" / "evaluate.json").write_text("5"), "need the complete output of `hcmi evaluate`"),
    (lambda b: (b / "metrics" / "evaluate.json").write_text('{"protocol": "x"}'), "got: no protocol in evaluate.json"),
    (lambda b: (b / "metrics" / "evaluate.json").write_text('{"protocol": {}}'), "got: no figures in evaluate.json"),
    (lambda b: (b / "metrics" / "evaluate.json").write_text('{"protocol": {}, "raw": {"t2v": {"R@1": "x"}}}'),
     "got: no figures in evaluate.json"),
    (lambda b: (b / "plots" / "run.json").write_text('{"code": 1}'), "got: no card of a run in run.json"),
    (lambda b: pd.DataFrame({"a": [1]}).to_parquet(b / "plots" / "ranks.parquet"), "need the complete output of `hcmi"),
    (lambda b: (b / "plots" / "ranks.parquet").write_bytes(b"PAR1"), "need the complete output of `hcmi evaluate`"),
])
def test_compare_says_what_is_missing_when_a_run_is_incomplete(tmp_path, spoil, message):
    a, b = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.5)
    spoil(b)
    with pytest.raises(DataError, match=message):
        compare_runs(a, b)


def test_compare_refuses_figures_whose_plots_are_of_another_run(tmp_path):
    """As after two runs with `--out metrics/a.json` and `--out metrics/b.json`, which share the folder plots/."""
    a, b = write_run(tmp_path / "a", 0.6), write_run(tmp_path / "b", 0.4)
    both = a / "metrics" / "both.json"
    shutil.copy(b / "metrics" / "evaluate.json", both)
    was, now = (json.loads((run / "metrics" / "evaluate.json").read_text())["raw"]["t2v"]["R@1"] for run in (b, a))
    assert was != now
    for pair in ((a / "metrics" / "evaluate.json", both), (both, both)):
        shown = CliRunner().invoke(main, ["evaluate", "--compare", *map(str, pair)])
        assert (shown.exit_code, shown.stdout) == (1, "")
        assert shown.stderr == (
            f"hcmi: {both}: need evaluate.json with the folder plots/ of the same run, got t2v R@1 {was} in the file "
            f"and {now} in plots/. Run `hcmi evaluate --out DIR/metrics/evaluate.json --plots DIR/plots`, and name DIR."
            "\n")


@pytest.mark.parametrize("figure", ["R@1", "R@5", "MnR", "n"])
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_compare_refuses_one_other_figure(tmp_path, direction, figure):
    a = write_run(tmp_path / "a", 0.5)
    path = a / "metrics" / "evaluate.json"
    report = json.loads(path.read_text())
    value = report["raw"][direction][figure]
    report["raw"][direction][figure] += 1
    path.write_text(json.dumps(report))
    with pytest.raises(DataError, match=f"got {direction} {figure} {value + 1} in the file and {value} in "):
        compare_runs(a, a)


def test_compare_refuses_when_the_splits_differ(tmp_path):
    a, b = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.5, split_sha256="t" * 64)
    with pytest.raises(DataError, match="need the same split_sha256 to pair queries, got sss"):
        compare_runs(a, b)


def test_evaluate_verb_prints_the_comparison_or_one_line_when_it_cannot(tmp_path):
    a, b = write_run(tmp_path / "a", 0.6), write_run(tmp_path / "b", 0.4, lr=0.01)
    shown = CliRunner().invoke(main, ["evaluate", "--compare", str(a), str(b)])
    assert shown.exit_code == 0
    assert "config train.lr: 0.001 -> 0.01" in shown.output
    assert json.loads(CliRunner().invoke(main, ["evaluate", "--compare", str(a), str(b), "--json"]).output)["changed"]
    failed = CliRunner().invoke(main, ["evaluate", "--compare", str(a), str(tmp_path / "none")])
    assert failed.exit_code == 1
    assert failed.stderr.startswith(f"hcmi: {tmp_path / 'none'}: need evaluate.json")
    assert failed.stderr.count("\n") == 1
