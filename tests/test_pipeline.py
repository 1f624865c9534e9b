"""The pipeline as people run it: a copy of this checkout, parameters made tiny, a real `dvc repro`."""

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from import_graph import ROOT
from PIL import Image

STAGES = ["code", "dataset", "shards", "train", "evaluate", "export", "drift"]
TINY = {"dataset.scenes.num_train": 48, "dataset.scenes.num_val": 12, "dataset.scenes.num_test": 24,
        "dataset.scenes.num_incoming": 24, "shards.size": 32, "shards.num_frames": 4, "model.num_frames": 4,
        "model.scratch.width": 32, "model.scratch.heads": 2, "model.temporal_layers": 1, "train.epochs": 1,
        "train.batch_size": 12, "evaluate.bootstrap_samples": 20}
DESIGN = ["data/manifest/manifest.parquet", "data/manifest/skipped.jsonl", "data/shards/test-000000.tar",
          "data/shards/stats.json", "data/shards/skipped.jsonl", "models/hcmi/config.json",
          "models/hcmi/model.safetensors", "metrics/train/metrics.json", "metrics/evaluate.json",
          "export/videos.parquet", "export/embeddings/video.npy", "export/index", "reports/drift/index.html",
          "reports/drift/report.json"]


@dataclass
class Copy:
    """A copy of this checkout with its own parameters, and the environment that runs its code."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, seconds: float = 540) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, text=True, capture_output=True,
                              timeout=seconds)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def repro(self, *arguments: str, seconds: float = 540) -> list[str]:
        """Names of the stages that `dvc repro` ran."""
        done = self.run("dvc", "repro", *arguments, seconds=seconds)
        return re.findall(r"Running stage '(\w+)'", done.stdout + done.stderr)

    def skipped(self) -> dict[str, str]:
        """Video id -> reason, of all that any stage left out."""
        lines = [line for stage in ("manifest", "shards")
                 for line in (self.folder / f"data/{stage}/skipped.jsonl").read_text("utf-8").splitlines()]
        return {row["video_id"]: row["reason"] for row in map(json.loads, lines)}


def make_copy(folder: Path, changes: dict[str, object]) -> Copy:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("bench_pipeline", ROOT / "benchmarks/pipeline.py")
        bench = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(bench)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return Copy(folder, {**bench.fresh_copy(folder, changes), "PREFECT_HOME": str(folder / ".prefect")})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Copy:
    copy = make_copy(tmp_path_factory.mktemp("scenes"), TINY)
    assert copy.repro() == STAGES
    return copy


@pytest.mark.timeout(600)
def test_outputs_are_the_designs_when_repro_has_run(scenes):
    assert [path for path in DESIGN if not (scenes.folder / path).exists()] == []
    metrics = json.loads((scenes.folder / "metrics/evaluate.json").read_text("utf-8"))
    assert metrics["protocol"]["num_videos"] == 24
    assert metrics["raw"]["t2v"]["n"] == metrics["protocol"]["num_texts"] == 72
    report = json.loads((scenes.folder / "reports/drift/report.json").read_text("utf-8"))
    assert sorted(report["verdicts"]) == ["scenes_same", "scenes_shifted"]
    assert scenes.skipped() == {}


def test_nothing_runs_when_nothing_changed(scenes):
    lock = (scenes.folder / "dvc.lock").read_bytes()
    assert scenes.repro() == []
    assert (scenes.folder / "dvc.lock").read_bytes() == lock


def test_git_has_only_lock_and_metrics_to_add_when_repro_has_run(scenes):
    done = scenes.run("git", "status", "--porcelain", "--untracked-files=all")
    assert sorted(done.stdout.split()[1::2]) == ["dvc.lock", "metrics/evaluate.json", "metrics/headline.json",
                                                 "metrics/train/metrics.json"]


def test_only_later_stages_run_when_a_late_parameter_changes(scenes):
    scenes.run("dvc", "repro", "--dry")
    text = (scenes.folder / "params.yaml").read_text("utf-8")
    (scenes.folder / "params.yaml").write_text(text.replace("bootstrap_samples: 20", "bootstrap_samples: 21"), "utf-8")
    try:
        assert scenes.repro() == ["evaluate"]
    finally:
        (scenes.folder / "params.yaml").write_text(text, "utf-8")


def test_readmes_questions_are_answered(scenes):
    hits = json.loads(scenes.run("hcmi", "search", "a red circle slides left", "--top", "5", "--json").stdout)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert {"video_id", "path", "score", "start_s", "end_s"} <= set(hits[0])
    assert (scenes.folder / hits[0]["path"]).is_file()
    assert "R@1" in scenes.run("dvc", "metrics", "show").stdout


def test_plots_need_no_network(scenes):
    """A box of the page is a picture that lies beside it: nothing to fetch, nothing to run."""
    scenes.run("dvc", "plots", "show")
    page = (scenes.folder / "dvc_plots/index.html").read_text("utf-8")
    assert not re.search(r"<script|https?://", page)
    pictures = re.findall(r'<img src="([^"]+)"', page)
    names = ["training", "rank_histogram", "recall_curve", "slices", "worst_queries"]
    assert [Path(picture).stem.endswith(name) for picture, name in zip(pictures, names, strict=True)] == [True] * 5
    assert all(min(Image.open(scenes.folder / "dvc_plots" / picture).size) > 300 for picture in pictures)
    assert len(re.findall(r'<div\s+id=', page)) == len(pictures)


def test_series_can_be_compared_by_name_though_they_are_not_on_the_page(scenes):
    done = scenes.run("dvc", "plots", "show", "--json", "metrics/train/plots/metrics/train/loss.tsv",
                      "plots/recall_curve.csv")
    assert {name for name, [plot] in json.loads(done.stdout)["data"].items() if plot["content"]["data"]["values"]} == {
        "metrics/train/plots/metrics/train/loss.tsv", "plots/recall_curve.csv"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_clips_go_through_all_stages_with_odd_files_among_them(tmp_path, shared_data):
    """Every readable clip is in the shards, each unreadable one is named with its reason, and search answers."""
    mixed = tmp_path / "mixed"
    shutil.copytree(shared_data / "real_clips/videos", mixed / "videos")
    shutil.copy(shared_data / "real_clips/captions.csv", mixed / "captions.csv")
    real = {path.name for path in (mixed / "videos").iterdir()}
    odd = sorted(path for path in (shared_data / "odd_videos").rglob("*") if path.is_file() and path.suffix != ".json")
    with open(mixed / "captions.csv", "a", newline="", encoding="utf-8") as file:
        for path in odd:
            name = f"odd_{path.parent.name}_{path.name}"
            shutil.copy(path, mixed / "videos" / name)
            csv.writer(file).writerow([name, f"an odd file {path.stem}"])
    folder = tmp_path / "project"
    folder.mkdir()
    copy = make_copy(folder, {**TINY, "dataset.name": "folder", "dataset.path": str(mixed),
                              "shards.max_skip_fraction": 0.5, "shards.decode_timeout_s": 5})
    assert copy.repro() == STAGES
    stats = json.loads((copy.folder / "data/shards/stats.json").read_text("utf-8"))
    left_out = {name: reason for name, reason in copy.skipped().items() if reason != "duplicate_row"}
    assert all(name.startswith("odd_") and reason for name, reason in left_out.items())
    assert stats["num_clips"] + len(left_out) == len(real) + len(odd)
    hits = json.loads(copy.run("hcmi", "search", "butterflies on a flower", "--top", "5", "--json").stdout)
    assert len(hits) == 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_experiment_runs_on_real_clips_when_dataset_is_set_on_the_command_line(tmp_path, shared_data):
    """The README's own way, from a fresh checkout, on 66 real clips."""
    copy = make_copy(tmp_path, TINY)
    copy.run("dvc", "exp", "run", "-S", "dataset.name=folder", "-S", f"dataset.path={shared_data / 'real_clips'}",
             "-S", "train.lr=2e-3")
    stats = json.loads((copy.folder / "data/shards/stats.json").read_text("utf-8"))
    assert stats["num_clips"] == 66
    assert "train.lr" in copy.run("dvc", "params", "diff").stdout
    assert copy.repro() == []


WITNESS = """
import os, sys

def look(frame, event, _):
    code = frame.f_code
    # a function: no module, no class, no expression of theirs
    if event == "call" and code.co_flags & 1 and code.co_name != "<genexpr>" and code.co_filename not in seen:
        seen.add(code.co_filename)
        if "/hcmi/" in code.co_filename:
            with open(os.environ["WITNESS"], "a") as file:
                file.write(f"{os.environ['STAGE']} {code.co_filename}\\n")

if sys.orig_argv[1:3] == ["-m", "hcmi"]:
    os.environ["STAGE"] = sys.orig_argv[3]
if "STAGE" in os.environ:       # a stage, or a process that it started
    seen = set()
    sys.setprofile(look)
    __import__("threading").setprofile(look)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_module_of_which_a_function_runs_is_in_the_stages_note(tmp_path):
    """The notes are made by reading imports; this is by watching which functions are called."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WITNESS, "utf-8")
    copy = make_copy(tmp_path / "project", TINY)
    copy.environment.update(PYTHONPATH=f"{copy.folder}{os.pathsep}{tmp_path / 'watch'}",
                            WITNESS=str(tmp_path / "called.txt"))
    for stage in STAGES:
        copy.repro(stage)
    called = {(stage, str(Path(name).relative_to(copy.folder))) for stage, name in
              (line.split() for line in (tmp_path / "called.txt").read_text("utf-8").splitlines())}
    noted = {(stage, line.split("  ")[1]) for stage in STAGES[1:]
             for line in (copy.folder / f"code/{stage}.txt").read_text("utf-8").splitlines()}
    command_line = {(stage, f"hcmi/{name}.py") for stage in STAGES for name in ("__init__", "cli", "options")}
    a_note = {("dataset", name) for stage, name in noted if stage == "train"}      # how many captions will be cut
    assert called - command_line - a_note - noted == set()
    assert len(called & noted) > 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lock_is_the_same_when_the_flow_ran_instead_of_dvc(scenes, tmp_path):
    copy = make_copy(tmp_path, TINY)
    first = copy.run(sys.executable, "-m", "flows.pipeline").stdout.splitlines()[-len(STAGES):]
    assert first == [f"{stage}: ran" for stage in STAGES]
    assert (copy.folder / "dvc.lock").read_text() == (scenes.folder / "dvc.lock").read_text()
    watch = copy.run(sys.executable, "-m", "flows.drift_watch", "scenes_same").stdout.splitlines()[-1]
    assert watch.startswith("scenes_same: ")
    assert (copy.folder / "reports/watch/scenes_same/index.html").is_file()
    assert copy.repro() == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_lock_is_the_same_when_the_flow_was_killed_in_training(tmp_path):
    """As after a power cut: the flow and all that it started are gone at once, and the flow is run again."""
    for name in ("killed", "undisturbed"):
        (tmp_path / name).mkdir()
    killed, undisturbed = (make_copy(folder, {**TINY, "train.epochs": 4}) for folder in sorted(tmp_path.iterdir()))
    undisturbed.repro("train")
    flow = subprocess.Popen([sys.executable, "-m", "flows.pipeline"], cwd=killed.folder,
                            env={**killed.environment, "KILLED": str(killed.folder)}, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(killed.folder.glob("checkpoints/*/step_*")):
        assert flow.poll() is None
        time.sleep(0.05)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("KILLED") == str(killed.folder):
                process.kill()
    flow.wait()
    assert not (killed.folder / "models/hcmi").exists()
    again = killed.run(sys.executable, "-m", "flows.pipeline").stdout.splitlines()[-len(STAGES):]
    assert again == [*(f"{stage}: fresh" for stage in STAGES[:3]), *(f"{stage}: ran" for stage in STAGES[3:])]
    undisturbed.repro()
    assert (killed.folder / "dvc.lock").read_text() == (undisturbed.folder / "dvc.lock").read_text()
