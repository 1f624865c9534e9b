"""`python -m flows.pipeline` as people run it, with no server."""

import subprocess
import sys
from pathlib import Path

import pytest
from flow_world import environment, wait_for
from prefect.logging import disable_run_logger

from flows import artifacts, pipeline
from flows.promote import page


def run_flow(project: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "flows.pipeline"], cwd=project, env=environment(project), text=True,
                          capture_output=True, timeout=240)


def test_flow_runs_what_is_stale_then_nothing_when_run_after_dvc(toy):
    first = run_flow(toy)
    assert first.stdout.splitlines()[-3:] == ["one: ran", "two: ran", "three: ran"], first.stderr
    assert "telemetry" not in first.stderr
    lock = Path("dvc.lock").read_bytes()
    dvc = Path(sys.executable).parent / "dvc"
    again = subprocess.run([dvc, "repro"], env=environment(toy), text=True, capture_output=True, check=True)
    assert "Running stage" not in again.stdout + again.stderr
    second = run_flow(toy)
    assert second.stdout.splitlines()[-3:] == ["one: fresh", "two: fresh", "three: fresh"], second.stderr
    assert "Running stage" not in second.stderr
    assert Path("dvc.lock").read_bytes() == lock


def hold_stage_one(toy: Path) -> bytes:
    """Make stage `one` wait for a file `go`. Returns the dvc.lock of an undisturbed run."""
    (toy / "one.sh").write_text("touch begun\nwhile [ ! -e go ]; do sleep 0.1; done\ncp in.txt one.txt\n")
    (toy / "dvc.yaml").write_text((toy / "dvc.yaml").read_text().replace("cp in.txt one.txt", "sh one.sh"))
    (toy / "go").touch()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    lock = (toy / "dvc.lock").read_bytes()
    for name in ("go", "begun", "dvc.lock", "one.txt", "two.txt", "three.txt"):
        (toy / name).unlink()
    subprocess.run(["rm", "-rf", ".dvc/cache"], check=True)
    return lock


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", [["flows.pipeline"], ["dvc", "repro", "-q"]], ids=["pipeline", "dvc repro"])
def test_a_second_run_waits_for_the_first_and_ends_the_same(toy, first):
    lock = hold_stage_one(toy)
    one = subprocess.Popen([sys.executable, "-m", *first], cwd=toy, env=environment(toy), text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for((toy / "begun").exists, 600)
    with open(toy / "second.log", "w") as log:
        other = subprocess.Popen([sys.executable, "-m", "flows.pipeline"], cwd=toy, stdout=log, stderr=log,
                                 env={**environment(toy), "PREFECT_HOME": str(toy / ".prefect2")})
    wait_for(lambda: "waiting for its end" in (toy / "second.log").read_text(), 600)
    (toy / "go").touch()
    assert one.wait(600) == 0, one.stdout.read()
    assert other.wait(600) == 0, (toy / "second.log").read_text()
    assert "\nthree: " in (toy / "second.log").read_text()
    assert (toy / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dvc_repro_is_refused_beside_a_run_and_disturbs_nothing(toy):
    lock = hold_stage_one(toy)
    with open(toy / "first.log", "w") as log:
        flow = subprocess.Popen([sys.executable, "-m", "flows.pipeline"], cwd=toy, env=environment(toy), stdout=log,
                                stderr=log)
    wait_for((toy / "begun").exists, 600)
    dvc = [sys.executable, "-m", "dvc", "repro"]
    beside = subprocess.run(dvc, cwd=toy, text=True, capture_output=True, timeout=600)
    assert beside.returncode != 0
    assert "is busy" in beside.stderr
    (toy / "go").touch()
    assert flow.wait(600) == 0, (toy / "first.log").read_text()
    assert (toy / "dvc.lock").read_bytes() == lock
    assert "Running stage" not in subprocess.run(dvc, cwd=toy, text=True, capture_output=True, check=True).stdout


def test_bar_of_a_stage_follows_its_lines(monkeypatch):
    bars: list[tuple[str, float]] = []
    monkeypatch.setattr(artifacts, "create_progress_artifact",
                        lambda key, progress, description: bars.append((f"{key} {description}", progress)) or "bar")
    monkeypatch.setattr(artifacts, "update_progress_artifact",
                        lambda bar, progress, description: bars.append((description, progress)))
    progress = artifacts.Progress("train")
    for line in ("40 captions of 40 are odd", "train: 120 of 480 steps, 00:30 so far, 01:30 left", "loss 3 of 4",
                 "epoch 4 of 8: loss 1.2, validation R@1 80.0 %", "encode videos: 0 of 0 clips"):
        progress.read(line)
    assert bars == [("train-progress train: train: 120 of 480 steps, 00:30 so far, 01:30 left", 25.0),
                    ("train: epoch 4 of 8: loss 1.2, validation R@1 80.0 %", 50.0)]


def test_stage_goes_on_when_the_page_cannot_be_written(monkeypatch):
    def refuse(**_: object) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(artifacts, "create_progress_artifact", refuse)
    with disable_run_logger():
        artifacts.Progress("train").read("epoch 1 of 2: loss 1")


@pytest.mark.parametrize(("outcome", "message", "todo"), [
    ({"one": "fresh", "two": "fresh", "new.dvc": "fresh"}, "every stage is fresh", "Nothing has to be done."),
    ({"one": "ran", "two": "fresh", "new.dvc": "fresh", "promote": "promoted v2: so it is"},
     "ran one; promoted v2: so it is", "Commit to git: `dvc.lock`,"),
    ({"one": "ran"}, "ran one", "Correct what the log of the task `two` says last,")], ids=["fresh", "ran", "failed"])
def test_page_says_what_ran_and_what_to_do(tmp_path, monkeypatch, outcome, message, todo):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    shown: list[str] = []
    monkeypatch.setattr(pipeline, "show", lambda key, title, *parts: shown.extend(parts))
    pipeline.report(outcome, dict.fromkeys(["one", "two", *(outcome.keys() & {"new.dvc"})], 1.0))
    assert todo in shown[0]
    assert [line.split(" |")[0] for line in shown[1].splitlines()[2:]] == ["| one", "| two"]
    assert pipeline.in_one_line(outcome) == message


def test_page_of_a_decision_says_how_the_release_gets_its_tags():
    found = {"decision": "promoted", "version": "v2", "why": "It is better.", "batches": None, "test": {
        "where": "the test set", "champion": 90.0, "challenger": 92.5, "difference": 2.5, "low": 0.5, "high": 4.0,
        "queries": 200}, "tags": "no git tag yet. Commit dvc.lock, then run `hcmi promote` again."}
    title, todo, decision, then, figures, *_ = page(found)
    assert (title, decision) == ("The new model is served", "promoted v2: It is better.")
    assert todo.endswith("- The served release: no git tag yet. Commit dvc.lock, then run `hcmi promote` again.")
    assert "rollback" in then
    assert figures.splitlines()[-1] == "| the test set | 90.0 | 92.5 | +2.5 [+0.5, +4.0] | 200 |"
    for tags in (None, "no git tag, because so it is."):
        assert "Nothing has to be done." in page(found | {"tags": tags})[1]
