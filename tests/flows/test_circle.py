"""The whole circle on a real server and worker: new videos in, nothing worse out, and told when it goes stale."""

import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from flow_world import Flows, free_port, wait_for
from test_pipeline import Copy, make_copy

from hcmi.incoming import action

# Clips of each new batch. Shifted ones look alike to this small model: 60 of them would count as few independent ones.
NEW = 120
# Small, but enough to learn from: a model that finds nothing has nothing to lose on a shifted batch.
SIZES = {"dataset.scenes.num_train": 600, "dataset.scenes.num_val": 12, "dataset.scenes.num_test": 100,
         "dataset.scenes.num_incoming": NEW, "dataset.scenes.max_events": 2, "dataset.scenes.neighbour_rate": 0.0,
         "train.epochs": 12, "train.batch_size": 48, "train.captions_per_clip": 3, "train.loss.warmup_epochs": 6,
         "shards.size": 32, "shards.num_frames": 6, "model.num_frames": 6, "evaluate.bootstrap_samples": 200,
         "drift.false_alarm_rate": 0.001}
NORMAL, SHIFTED = "scenes_same", "scenes_shifted"


class Page:
    """`hcmi serve` of the project, and a client that asks it all the while."""

    def __init__(self, copy):
        self.address, self.failures, self.answers = f"http://127.0.0.1:{free_port()}", [], 0
        port = self.address.rpartition(":")[2]
        self.process = subprocess.Popen([sys.executable, "-m", "hcmi", "serve", "--port", port], cwd=copy.folder,
                                        env=copy.environment, stdout=subprocess.PIPE, text=True)
        assert "Ctrl-C stops" in self.process.stdout.readline()
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._keep_asking)
        self._thread.start()

    def ask(self, path: str):
        with urllib.request.urlopen(self.address + path, timeout=120) as answer:
            return json.load(answer)

    def found(self, query: str) -> set[str]:
        path = f"/api/search?q={urllib.request.quote(query)}&top=1000"
        return {Path(hit["path"]).name for hit in self.ask(path)["hits"]}

    def _keep_asking(self) -> None:
        while not self._stop.wait(0.2):
            try:
                self.ask("/api/search?q=a%20red%20circle")
                self.answers += 1
            except OSError as error:
                self.failures.append(error)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.process.terminate()
        self.process.communicate()


def drop(project: Path, batch: str, inbox: Path) -> set[str]:
    """Put the videos of a batch of Scenes into the inbox, in place of what it holds. Returns their names."""
    shutil.rmtree(inbox, ignore_errors=True)
    source = project / "data/incoming" / batch
    shutil.copytree(source / "videos", inbox / "videos")
    shutil.copy(source / "captions.csv", inbox / "captions.csv")
    names = {path.name for path in (inbox / "videos").iterdir()}
    assert len(names) == NEW
    return names


def ingest(flows: Flows) -> dict:
    """The state in which a run of the deployment ends."""
    run = flows.trigger("ingest/ingest", inbox="data/inbox", quiet_seconds=1, cool_down_hours=24)
    assert flows.end_of(run, 1200) == "COMPLETED", flows.output()[-6000:]
    return flows.ask(f"flow_runs/{run}")["state"]


def runs_of(flows: Flows, flow: str) -> list[dict]:
    return flows.ask("flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})


@pytest.fixture
def served(tmp_path) -> Copy:
    """A project in which a release is served."""
    copy = make_copy(tmp_path, SIZES)
    copy.repro(seconds=5000)
    copy.run("hcmi", "promote")
    return copy


@pytest.mark.slow
@pytest.mark.timeout(9000)
def test_new_videos_are_found_and_a_batch_that_hurts_search_leads_through_the_gate(served, monkeypatch):
    copy = served
    project, inbox = copy.folder, copy.folder / "data/inbox"
    monkeypatch.chdir(project)
    names = drop(project, NORMAL, inbox)
    page = Page(copy)
    flows = Flows(project)
    try:
        before = page.ask("/api/about")["videos"]
        assert not names & page.found("a red circle")
        state = ingest(flows)
        assert state["name"] in ("Completed", "Changed"), state
        assert page.ask("/api/about")["videos"] == before + NEW
        assert len(names & page.found("a red circle")) == NEW
        [entry] = json.loads((project / "data/accepted.json").read_text())
        assert (project / "data/incoming" / f"{entry['batch']}.dvc").is_file()
        assert runs_of(flows, "pipeline") == []

        shifted = drop(project, SHIFTED, inbox)
        state = ingest(flows)
        assert state["name"] == "SearchHurt", state
        assert not shifted & page.found("a red circle")
        [retrain] = runs_of(flows, "pipeline")
        assert flows.end_of(retrain["id"], 5000) == "COMPLETED", flows.output()[-6000:]
        [gate] = runs_of(flows, "promote")
        assert gate["state"]["name"] in ("Promoted", "Refused"), gate["state"]
        assert "R@1" in gate["state"]["message"]
        state = ingest(flows)
        assert state["name"] == "Completed"
        assert len(runs_of(flows, "pipeline")) == 1         # once

        wait_for(lambda: page.ask("/api/about")["videos"] >= before + NEW, 120)
        assert len(names & page.found("a red circle")) == NEW
        keys = {artifact["key"] for artifact in flows.ask("artifacts/filter", {})}
        assert {"ingest", "stages", "train-progress", "promote"} <= keys
        history = [json.loads(line) for line in (project / "releases/decisions.jsonl").read_text().splitlines()]
        assert history[0]["decision"] == "promoted"
        assert len(history) == 2
        assert page.failures == []
        assert page.answers > 20
        assert copy.repro() == []
        hurt = next(path.name for path in (project / "data/incoming").glob("*-2"))
        copy.run("hcmi", "add", "--batch", hurt)
        wait_for(lambda: shifted <= page.found("a red circle"), 120)
        assert copy.repro() == []           # it was training data already
    finally:
        page.close()
        flows.stop()
    assert wait_for(lambda: not flows.processes(), 60)
    assert action("search hurt").retrain
