"""flows.ingest: a training run is started once for a batch that hurts search, and accepted batches are given to DVC.

The whole flow on a real server is in test_circle.py. Here a function stands in for the server.
"""

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from dvc.repo import Repo
from flow_world import environment
from model_world import write_film
from prefect import states
from prefect.exceptions import ObjectNotFound
from prefect.logging import disable_run_logger

from flows import ingest
from flows.stages import reproduce
from hcmi.dataset import Accepted, accept
from hcmi.incoming import Collected, Ledger, collect, find_batches, look


@pytest.fixture(autouse=True)
def _no_run():
    with disable_run_logger():
        yield


@pytest.fixture
def started(tmp_path, monkeypatch) -> list[str]:
    """Idempotency keys of the runs that were asked for; the working folder has no batch yet."""
    keys: list[str] = []

    def run(name: str, *, timeout, idempotency_key, as_subflow):
        assert (name, timeout, as_subflow) == ("pipeline/retrain", 0, False)
        keys.append(idempotency_key)
        return SimpleNamespace(id=len(keys))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ingest, "run_deployment", run)
    monkeypatch.setattr(ingest, "get_current_settings", lambda: SimpleNamespace(api=SimpleNamespace(url="http://x")))
    return keys


def judged(name: str, verdict: str, content: str | None = None) -> None:
    """A batch in data/incoming, with this verdict."""
    folder = Path("data/incoming") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.mp4").write_text(content or name)
    ledger = Ledger(ingest.REPORTS)
    ledger.record(ledger.content(folder, look(folder)), name, verdict)


def test_retrain_is_started_once_for_each_batch_that_hurts_search(started):
    judged("fine", "ok")
    judged("odd", "cannot tell")
    assert ingest.start_retrain(0) == ""
    judged("worse", "search hurt")
    assert ingest.start_retrain(0) == "retrain for worse: started, [its page](/runs/flow-run/1)"
    assert ingest.start_retrain(0) == ""
    judged("worse too", "search hurt")
    assert ingest.start_retrain(0) == "retrain for worse too: started, [its page](/runs/flow-run/2)"
    assert len(set(started)) == 2


def test_page_says_what_was_left_that_a_person_may_want(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages: list[tuple] = []
    monkeypatch.setattr(ingest, "show", lambda *page: pages.append(page))
    ingest.report(Collected(taken=1, remarks=["One.", "Two."]), {}, [], {}, [], [], "", [])
    assert pages[0][3] == "One.  \nTwo."


def test_batches_of_the_cool_down_wait_and_share_the_next_run(started):
    judged("a", "search hurt")
    ingest.start_retrain(24)
    for name in ("b", "c"):
        judged(name, "search hurt")
        assert ingest.start_retrain(24).startswith(f"retrain for {', '.join(['b', 'c'][:ord(name) - 97])}: not before ")
    assert len(started) == 1
    kept = json.loads((ingest.REPORTS / "retrain.json").read_text())
    kept["when"] = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    (ingest.REPORTS / "retrain.json").write_text(json.dumps(kept))
    assert ingest.start_retrain(24) == "retrain for b, c: started, [its page](/runs/flow-run/2)"


def test_a_time_that_lies_ahead_holds_no_run_back(started):
    """The clock was wrong when the last run was started, and has been set since."""
    judged("a", "search hurt")
    ingest.start_retrain(24)
    kept = json.loads((ingest.REPORTS / "retrain.json").read_text())
    (ingest.REPORTS / "retrain.json").write_text(json.dumps(kept | {"when": "2999-01-01T00:00:00+00:00"}))
    judged("b", "search hurt")
    assert ingest.start_retrain(24).endswith("started, [its page](/runs/flow-run/2)")


def test_the_server_is_asked_with_the_same_key_when_the_run_was_killed_before_it_was_noted(started):
    judged("a", "search hurt")
    for damage in ("unlink", "broken"):
        ingest.start_retrain(24)
        path = ingest.REPORTS / "retrain.json"
        path.unlink() if damage == "unlink" else path.write_text("{")
    ingest.start_retrain(24)
    assert len(started) == 3
    assert len(set(started)) == 1       # the server gives the same run each time


@pytest.mark.parametrize(("end", "again"), [("Failed", True), ("Crashed", True), ("Completed", False),
                                            ("Cancelled", False), (None, False)])
def test_retrain_is_started_again_only_when_the_last_has_failed(started, monkeypatch, end, again):
    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read_flow_run(self, run):
            if end is None:
                raise ObjectNotFound(Exception("404"))
            return SimpleNamespace(state=getattr(states, end)())

    monkeypatch.setattr(ingest, "get_client", lambda sync_client: Client())
    judged("a", "search hurt")
    ingest.start_retrain(0)
    kept = json.loads((ingest.REPORTS / "retrain.json").read_text())
    (ingest.REPORTS / "retrain.json").write_text(json.dumps(kept | {"run": str(UUID(int=1))}))
    assert ingest.start_retrain(0) == ("retrain for a: started, [its page](/runs/flow-run/2)" if again else "")
    assert len(set(started)) == 1 + again       # with another key: the server would give the failed run again


def test_retrain_on_another_machine_waits_until_git_has_the_batch(started, monkeypatch):
    monkeypatch.setattr(ingest, "run_deployment", lambda *_, **__: SimpleNamespace(id=7))

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    git("init", "-q", "--bare", "origin.git")
    git("remote", "add", "origin", "origin.git")
    judged("a", "search hurt")
    monkeypatch.setattr(ingest, "outs_of_stages", lambda: {"data/incoming/scenes_same"})
    content = Ledger(ingest.REPORTS).content(Path("data/incoming/a"), look(Path("data/incoming/a")))
    Path("data/accepted.json").write_text(json.dumps([{"content": content}]))
    asked = "commit and push `data/accepted.json`, `data/incoming/a.dvc`, then it is started"
    assert ingest.start_retrain(0, "pipeline/retrain-elsewhere").endswith(asked)
    Path("data/incoming/a.dvc").write_text("outs:\n")
    asked = "commit and push `data/accepted.json`, `data/incoming/a.dvc`, then it is started"
    assert ingest.start_retrain(0, "pipeline/retrain-elsewhere").endswith(asked)
    git("add", "data/accepted.json", "data/incoming/a.dvc")
    git("commit", "-qm", "batch")
    assert ingest.start_retrain(0, "pipeline/retrain-elsewhere").endswith(asked)
    git("push", "-q", "-u", "origin", "main")
    Path("data/accepted.json").write_text(json.dumps([{"content": content}, {"content": "of a later batch"}]))
    Path("data/incoming/a.dvc").write_text("outs: grown\n")
    assert "push `data/incoming/a.dvc`, then" in ingest.start_retrain(0, "pipeline/retrain-elsewhere")
    git("commit", "-qm", "more", "data/incoming/a.dvc")
    git("push", "-q")
    assert ingest.start_retrain(0, "pipeline/retrain-elsewhere").endswith("started, [its page](/runs/flow-run/7)")


def test_retrain_stays_wanted_when_there_is_no_server_or_deployment(started, monkeypatch):
    judged("a", "search hurt")
    with monkeypatch.context() as alone:
        alone.setattr(ingest, "get_current_settings", lambda: SimpleNamespace(api=SimpleNamespace(url=None)))
        assert "need a server, got none. Run `python -m flows.pipeline`" in ingest.start_retrain(24)

    def missing(*_, **__):
        raise ObjectNotFound(Exception("404"))

    with monkeypatch.context() as bare:
        bare.setattr(ingest, "run_deployment", missing)
        assert "need the deployment pipeline/retrain, got none. Start `make flows`" in ingest.start_retrain(24)
    assert ingest.start_retrain(24) == "retrain for a: started, [its page](/runs/flow-run/1)"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_fails_with_the_reason_after_the_rest_when_an_inbox_cannot_be_taken_in(toy):
    write_film(toy / "data/inbox/red.mp4", ["red", "black"], frames_each=4)
    (toy / "data/inbox/captions.csv").write_text("no such table\n")
    (toy / "data/accepted.json").write_text("[]\n")
    done = subprocess.run([sys.executable, "-m", "flows.ingest"], env=environment(toy), text=True, capture_output=True,
                          timeout=800)
    assert done.returncode == 1
    assert "every batch has been judged" in done.stderr
    assert re.search(r"captions\.csv row 1: need .* The next run tries again\.", done.stderr), done.stderr[-2000:]
    (toy / "data/inbox/captions.csv").unlink()
    assert collect("data/inbox", "data/incoming", "monday", 0, 20.0).files == ["red.mp4"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rest_is_done_and_the_run_fails_with_the_reason_when_nothing_can_be_added_or_taken_in(toy):
    """The served release cannot be read, the inbox is on a disk that is not mounted, and a name is not UTF-8."""
    (toy / "releases/v1").mkdir(parents=True)
    (toy / "releases/current").symlink_to("v1")
    judged("monday", "ok")
    judged("caf\udce9", "ok", "a film")
    Path("data/inbox").symlink_to("/no/such/disk")
    subprocess.run([sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "store", str(toy / "store")], check=True)
    done = subprocess.run([sys.executable, "-m", "flows.ingest"], env=environment(toy), text=True, capture_output=True,
                          timeout=800)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("flows.ingest: ")]
    assert ("data/inbox: need a folder of new videos, got a link to /no/such/disk, where nothing is. Mount the disk, "
            "or correct the link. The next run tries again.") in line
    assert re.search(r"hcmi add --accepted-only --json: need exit code 0, got 1\. Its last line: hcmi: .* "
                     r"The next run tries again\.", line)
    assert (toy / "data/incoming/monday.dvc").is_file()
    assert len(list((toy / "store/files").glob("md5/*/*"))) == 2       # the batch's list and its file


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("command", "reason"), [
    (["flows.promote"], "need exit code 0, got 1. Its last line: hcmi: "),
    (["flows.ingest", "/no/such/folder"], "/no/such/folder: need a folder of new videos, got none")])
def test_run_that_fails_ends_with_exit_code_1(toy, command, reason):
    done = subprocess.run([sys.executable, "-m", *command], env=environment(toy), text=True, capture_output=True,
                          timeout=800)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith(f"{command[0]}: ")]
    assert reason in line


def test_accepted_batches_are_given_to_dvc_once_and_outputs_of_a_stage_are_left(toy):
    text = (toy / "dvc.yaml").read_text()
    (toy / "dvc.yaml").write_text(text + "  four: {cmd: mkdir -p data/incoming/made && cp in.txt data/incoming/made, "
                                         "deps: [in.txt], outs: [data/incoming/made]}\n")
    reproduce("four")
    judged("mine", "ok")
    for folder in find_batches(Path("data/incoming")):
        accept(ingest.ACCEPTED, Accepted(folder.name, folder.name, "ok", "now"))
    assert ingest.track_accepted() == (["mine"], [])
    assert ingest.track_accepted() == ([], [])
    assert sorted(path.name for path in Path("data/incoming").glob("*.dvc")) == ["mine.dvc"]
    Path("data/incoming/mine/later.txt").write_text("later")
    assert ingest.track_accepted() == (["mine"], [])      # other machines need what has joined it, too
    assert ingest.track_accepted() == ([], [])


@pytest.fixture
def kept(toy) -> Path:
    """An accepted batch of two files that DVC keeps."""
    judged("mine", "ok")
    folder = Path("data/incoming/mine")
    (folder / "captions.csv").write_text("video,caption\na.mp4,a red ring\n")
    accept(ingest.ACCEPTED, Accepted("mine", "content", "ok", "now"))
    assert ingest.track_accepted() == (["mine"], [])
    return folder


@pytest.mark.parametrize("table", ["video,caption\na.mp4,a red disc\n", "video,caption\n"])
def test_captions_that_are_corrected_or_shortened_are_given_to_dvc(kept, table):
    (kept / "captions.csv").write_text(table)
    assert ingest.track_accepted() == (["mine"], [])
    shutil.rmtree(kept)
    with Repo() as repo:
        repo.checkout(["data/incoming/mine.dvc"])
    assert (kept / "captions.csv").read_text() == table
    assert ingest.track_accepted() == ([], [])


def test_dvc_forgets_nothing_of_a_batch_that_is_not_whole_here(kept):
    """As after a `dvc pull` that was stopped, and after a `git pull` without one."""
    pinned = Path("data/incoming/mine.dvc").read_text()
    remark = ("`mine` is not what DVC keeps of it: `dvc pull data/incoming/mine.dvc` brings that, `dvc add "
              "data/incoming/mine` keeps what is here in its place.")
    (kept / "a.mp4").rename("a.mp4")
    assert ingest.track_accepted() == ([], [remark])
    Path("a.mp4").rename(kept / "a.mp4")
    assert ingest.track_accepted() == ([], [])
    Path("data/incoming/mine.dvc").write_text(re.sub(r"md5: \w{32}", f"md5: {'0' * 32}", pinned))
    assert ingest.track_accepted() == ([], [remark])
    shutil.rmtree(kept)
    assert ingest.track_accepted() == ([], [])      # it is on another machine


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.9])
def test_dvc_file_that_was_cut_short_is_made_again_and_keeps_no_other_batch_waiting(kept, share):
    file = Path("data/incoming/mine.dvc")
    whole = file.read_text()
    file.write_text(whole[:round(share * len(whole))])
    judged("other", "ok")
    accept(ingest.ACCEPTED, Accepted("other", "another", "ok", "now"))
    assert ingest.track_accepted() == (["mine", "other"], [])
    assert file.read_text() == whole
    assert ingest.track_accepted() == ([], [])


def test_broken_lock_of_the_pipeline_keeps_batches_from_dvc_and_nothing_else(kept):
    Path("dvc.lock").write_text("<<<<<<< HEAD\n")
    assert ingest.track_accepted() == ([], [])
    judged("other", "ok")
    accept(ingest.ACCEPTED, Accepted("other", "another", "ok", "now"))
    assert ingest.track_accepted() == ([], ["DVC can be given no batch: './dvc.lock' validation failed"])


def test_batch_with_a_name_that_dvc_does_not_take_is_named(toy):
    judged("caf\udce9", "ok", "a film")
    judged("fine", "ok")
    (Path("data/incoming/fine") / "caf\udce9.mp4").write_text("a")
    for name in ("caf\udce9", "fine"):
        accept(ingest.ACCEPTED, Accepted(name, name, "ok", "now"))
    assert ingest.track_accepted() == ([], [
        "DVC cannot keep `caf\\xe9`: its name is not UTF-8. Rename the folder, and correct the name in "
        "`data/accepted.json` and `data/searched.json`.",
        "DVC cannot keep `fine`: the name of its file `caf\\xe9.mp4` is not UTF-8. Rename the file; the batch is then "
        "judged again."])
