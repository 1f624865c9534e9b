"""flows.drift_watch: every batch once, with pinned artefacts of one run alone, and never while the pipeline runs.

The report itself, made by the flow on real artefacts, is in tests/test_pipeline.py. Here a function stands in for it.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flow_world import environment
from prefect.logging import disable_run_logger

from flows import artifacts, drift_watch
from flows.artifacts import what_now
from flows.child import ChildError
from flows.stages import reproduce, running
from hcmi.drift import BatchReport
from hcmi.drift.severity import MEASURED, Severity
from hcmi.errors import ReleaseError
from hcmi.files import lock
from hcmi.incoming import Verdict, judging_alone


@pytest.fixture(autouse=True)
def _no_run():
    with disable_run_logger():
        yield


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """A folder with batches of one file each; the verdict on each is its name."""
    for name in ("ok", "search hurt", "cannot tell"):
        put(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drift_watch, "report_with_pinned", said)
    return tmp_path


def said(batch: str) -> Verdict:
    return Verdict(batch, "So it is.")


def put(folder: Path, name: str, content: bytes | None = None) -> Path:
    (folder / "data/incoming" / name / "videos").mkdir(parents=True, exist_ok=True)
    video = folder / "data/incoming" / name / "videos/a.mp4"
    video.write_bytes(content or name.encode())
    return video


def watch(*batches: str):
    return drift_watch.outcome(*drift_watch.judge(list(batches), quiet_seconds=0))


def test_every_batch_is_judged_once_and_the_run_ends_as_the_worst(world):
    end = watch()
    assert (end.name, end.type) == ("SearchHurt", "COMPLETED")
    assert end.message == ("cannot tell: cannot tell. So it is. reports/watch/cannot tell/index.html; "
                           "ok: ok. So it is. reports/watch/ok/index.html; "
                           "search hurt: search hurt. So it is. reports/watch/search hurt/index.html")
    again = watch()
    assert (again.name, again.message) == ("Completed", "data/incoming: every batch has been judged")
    put(world, "ok", b"one more")
    assert watch().message == "ok: ok. So it is. reports/watch/ok/index.html"


def test_arrivals_are_judged_once_each_by_content_when_their_times_are_old_or_touched(world, monkeypatch):
    """The folder touched last alone was judged, each time anew; a batch copied with its old times never was."""
    judged = []
    monkeypatch.setattr(drift_watch, "report_with_pinned", lambda batch: judged.append(batch) or said("ok"))
    watch()
    assert judged == ["cannot tell", "ok", "search hurt"]
    for path in world.glob("data/incoming/*/videos/*"):
        os.utime(path)
    old = put(world, "copied")
    os.utime(old, (1e9, 1e9))
    os.utime(old.parent, (1e9, 1e9))
    put(world, "late")
    watch()
    assert judged[3:] == ["copied", "late"]
    assert watch().message == "data/incoming: every batch has been judged"


def test_alert_says_how_bad_it_is_with_the_words_of_the_report(world, monkeypatch):
    """The alert carried a red word and no severity."""
    fallen = Severity(84.0, 79.0, 88.0, 97.0, -13.0, -19.0, -8.0, MEASURED, 200)
    record = BatchReport("ok", verdict="search hurt", reason="", severity=fallen).to_record()
    monkeypatch.setattr(drift_watch, "report_with_pinned", lambda batch: Verdict.of({"batches": [record]}, batch))
    end = watch("ok")
    assert end.name == "SearchHurt"
    assert end.message == ("ok: search hurt. Search finds fewer of these clips. R@1 is 84 % (79 to 88), and 97 % for "
                           "the tested clips. reports/watch/ok/index.html")


def test_a_batch_is_judged_once_when_it_is_named_twice(world, monkeypatch):
    judged = []
    monkeypatch.setattr(drift_watch, "report_with_pinned", lambda batch: judged.append(batch) or said("ok"))
    watch("ok", "ok")
    assert judged == ["ok"]


def test_page_says_what_a_person_may_do_and_names_no_report_that_is_not_there():
    verdicts = {"a": said("ok"), "b": said("cannot tell"), "c": drift_watch.NO_REPORT._replace(why="It is broken.")}
    text = drift_watch.verdicts_text(verdicts, ["d"])
    assert text.splitlines() == [
        "- **`a`: ok.** So it is. What follows: added to the served index and to the training data. "
        "Report: `reports/watch/a/index.html`.",
        "- **`b`: cannot tell.** So it is. What follows: not added. Report: `reports/watch/b/index.html`.",
        "- **`c`: no report.** It is broken. What follows: not added: there is no report on it.",
        "- `d` is still being copied, and is left to the next run."]
    todo = drift_watch.todo(verdicts)
    assert [line[:4] for line in todo] == ["`b`:", "`c`:"]
    assert "`hcmi add --batch b`" in todo[0]
    assert "`hcmi add --batch 'cam 2; x'`" in drift_watch.todo({"cam 2; x": said("cannot tell")})[0]
    assert drift_watch.outcome(verdicts, []).message.startswith("c: no report. It is broken.; a: ok. So it is. ")
    assert what_now(todo[:1]).splitlines() == ["**What now?**", "", f"- {todo[0]}"]
    assert what_now([]) == "**What now?** Nothing has to be done."


def test_batches_that_the_pipeline_makes_are_judged_only_when_they_are_named(world):
    put(world, "scenes_same")
    assert "scenes_same" not in watch().message
    assert watch("scenes_same").message == "scenes_same: scenes_same. So it is."


def test_there_is_nothing_to_say_when_there_is_no_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert watch().message == "data/incoming: every batch has been judged"


@pytest.mark.parametrize("kind", [ChildError, drift_watch.WatchError, ReleaseError])
def test_run_fails_when_a_batch_has_no_report_and_the_others_are_judged(world, monkeypatch, kind):
    def verdict(batch: str) -> Verdict:
        if batch == "cannot tell":
            raise kind("hcmi drift: need exit code 0, got 1.")
        return said(batch)

    monkeypatch.setattr(drift_watch, "report_with_pinned", verdict)
    end = watch()
    assert end.type == "FAILED"
    assert end.message.startswith("cannot tell: no report. hcmi drift: need exit code 0, got 1.; ok: ")
    assert "search hurt: search hurt." in end.message
    assert watch().message.startswith("cannot tell: no report")       # it has no verdict yet; the others have theirs


def test_a_wait_for_another_run_that_judges_is_said(world):
    lines, end = [], threading.Event()

    def info(line: str) -> None:
        lines.append(line)
        end.set()

    def judge() -> None:
        with judging_alone(drift_watch.REPORTS, info):
            lines.append("judging")

    with lock(drift_watch.REPORTS / ".lock"):
        waiting = threading.Thread(target=judge)
        waiting.start()
        end.wait(60)
        assert lines == ["another run judges batches; waiting for its end"]
    waiting.join()
    judge()
    assert lines[1:] == ["judging", "judging"]


def test_names_that_are_not_utf8_reach_the_server_as_text(world, monkeypatch):
    """The server refused the page of such a run, after all was done."""
    put(world, "caf\udce9", b"ok")
    monkeypatch.setattr(drift_watch, "report_with_pinned", lambda batch: said("ok"))
    verdicts, growing = drift_watch.judge([], quiet_seconds=0)
    message = drift_watch.outcome(verdicts, growing).message
    assert "caf\\xe9: ok. So it is. reports/watch/caf\\xe9/index.html; " in message
    pages: list[str] = []
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda markdown, **_: pages.append(markdown))
    artifacts.show("watch", "New batches", drift_watch.verdicts_text(verdicts, ["caf\udce9"]))
    [page] = pages
    assert page.startswith("# New batches\n\n- **`caf\\xe9`: ok.** So it is. ")
    assert page.endswith("\n- `caf\\xe9` is still being copied, and is left to the next run.")
    assert str(ChildError("hcmi drift --batch caf\udce9: need exit code 0, got 1.")).isprintable()


def test_named_batches_are_judged_again_and_an_unknown_one_is_refused(world):
    watch()
    assert watch("ok").message == "ok: ok. So it is. reports/watch/ok/index.html"
    with pytest.raises(drift_watch.WatchError) as failure:
        watch("nonesuch")
    assert str(failure.value) == ("data/incoming: need a batch called 'nonesuch', got cannot tell, ok, search hurt. "
                                  "Correct the name.")


def test_a_verdict_is_not_kept_when_the_batch_changed_while_it_was_judged(world, monkeypatch):
    def verdict(batch: str) -> Verdict:
        if batch == "ok":
            put(world, "ok", b"grown")
        return said(batch)

    monkeypatch.setattr(drift_watch, "report_with_pinned", verdict)
    watch()
    monkeypatch.setattr(drift_watch, "report_with_pinned", said)
    assert watch().message == "ok: ok. So it is. reports/watch/ok/index.html"


def test_check_pinned_refuses_what_the_lock_does_not_pin(toy, monkeypatch):
    monkeypatch.setattr(drift_watch, "PINNED", ("one",))
    with pytest.raises(drift_watch.WatchError) as failure:
        drift_watch.check_pinned()
    assert str(failure.value) == ("one.txt: need what dvc.lock pins, got something else or nothing. "
                                  "Run `make repro` or `dvc checkout`.")
    reproduce("one")
    drift_watch.check_pinned()


def test_check_pinned_refuses_outputs_of_two_runs(toy, monkeypatch):
    monkeypatch.setattr(drift_watch, "PINNED", ("one", "two"))
    reproduce("one")
    reproduce("two")
    drift_watch.check_pinned()
    (toy / "in.txt").write_text("other\n")
    reproduce("one")                # `two` is what the lock pins, but was made from the `one` before
    with pytest.raises(drift_watch.WatchError, match=r"^two\.txt: need what dvc.lock pins"):
        drift_watch.check_pinned()


@pytest.mark.parametrize("fails", [False, True])
def test_report_is_made_again_when_the_pipeline_replaced_the_artefacts_meanwhile(toy, monkeypatch, fails):
    monkeypatch.setattr(drift_watch, "PINNED", ("one",))
    reproduce("one")
    calls: list[str] = []

    def report(batch: str) -> str:
        calls.append(batch)
        if len(calls) == 1:
            (toy / "in.txt").write_text("other\n")
            reproduce("one")
            if fails:
                raise ChildError("the model is gone")
        return f"verdict {len(calls)}"

    monkeypatch.setattr(drift_watch, "report", report)
    assert drift_watch.report_with_pinned("batch") == "verdict 2"
    assert calls == ["batch", "batch"]


def test_a_batch_is_judged_with_the_release_while_the_pipeline_runs(toy, monkeypatch):
    """A training run of hours must not keep new videos waiting, nor spoil their report."""
    asked: list[dict] = []

    class Report:
        def with_options(self, **options):
            asked.append(options)
            return said

    monkeypatch.setattr(drift_watch, "report", Report())
    (toy / "releases/v1").mkdir(parents=True)
    (toy / "releases/current").symlink_to("v1")
    with running(print):
        assert drift_watch.report_with_pinned("ok") == said("ok")
    assert asked == [{"tags": []}]          # and it takes no GPU slot


def test_report_fails_when_the_artefacts_are_the_same_all_along(toy, monkeypatch):
    monkeypatch.setattr(drift_watch, "PINNED", ("one",))
    reproduce("one")

    def report(batch: str) -> str:
        raise ChildError("broken")

    monkeypatch.setattr(drift_watch, "report", report)
    with pytest.raises(ChildError, match="broken"):
        drift_watch.report_with_pinned("batch")


def test_watch_says_so_in_one_line_when_the_server_does_not_answer(toy):
    variables = {**environment(toy), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    for flow in ("drift_watch", "pipeline", "ingest", "promote"):
        done = subprocess.run([sys.executable, "-m", f"flows.{flow}"], env=variables, text=True, capture_output=True,
                              timeout=120)
        assert done.returncode == 1
        assert done.stderr == ("flows: need the Prefect server at http://127.0.0.1:9/api, got: [Errno 111] Connection "
                               "refused. Start it (`make flows`), correct PREFECT_API_URL, or unset it to run without "
                               "a server.\n")
