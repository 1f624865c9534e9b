"""flows.stages on a toy project: the plan is dvc.yaml alone, and one stage runs as `dvc repro` would run it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows import repair
from flows.stages import Step, changed_outs, is_running, is_stale, mixed_outs, pins, plan, reproduce, running


def repro_all() -> None:
    with Repo() as repo:
        repo.reproduce()


def test_plan_is_dvc_yamls_order_and_edges(toy):
    assert plan() == [Step("one", (), False), Step("two", ("one",), True), Step("three", ("one", "two"), False)]


def test_plan_has_a_new_stage_when_dvc_yaml_gets_one(toy):
    with open("dvc.yaml", "a") as file:
        file.write("  four: {cmd: cp three.txt four.txt, deps: [three.txt], outs: [four.txt]}\n")
    assert plan()[-1] == Step("four", ("three",), False)


def test_nothing_is_stale_when_dvc_has_run(toy):
    assert [is_stale(step.name) for step in plan()] == [True, True, True]
    repro_all()
    assert [is_stale(step.name) for step in plan()] == [False, False, False]


def test_one_stage_is_stale_when_its_input_changes(toy):
    repro_all()
    (toy / "in.txt").write_text("other\n")
    assert [is_stale(step.name) for step in plan()] == [True, False, False]
    reproduce("one")
    assert [is_stale(step.name) for step in plan()] == [False, True, True]


def test_stage_is_stale_when_its_parameter_or_output_changes(toy):
    repro_all()
    (toy / "params.yaml").write_text("copies: 3\n")
    (toy / "three.txt").unlink()
    assert [is_stale(step.name) for step in plan()] == [True, False, True]


def test_lock_is_the_same_whether_dvc_or_the_stages_ran(toy, monkeypatch):
    second = shutil.copytree(toy, toy.with_name("second"))
    repro_all()
    monkeypatch.chdir(second)
    for step in plan():
        reproduce(step.name)
    assert (second / "dvc.lock").read_bytes() == (toy / "dvc.lock").read_bytes()


def test_reproduce_ends_in_one_line_when_the_command_fails(toy):
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text.replace("cp in.txt one.txt", "exit 3"))
    with pytest.raises(SystemExit) as failure:
        reproduce("one")
    assert str(failure.value) == "failed to reproduce 'one': failed to run: exit 3, exited with 3"


def test_next_run_completes_when_the_disk_of_the_cache_was_full(toy, small_disk):
    (toy / "in.txt").write_text("hello\n" * 10_000)
    disk = small_disk(2**16)
    with Repo() as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = str(disk / "cache")
    with open(disk / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4096 * (os.statvfs(disk).f_bavail - 4))
    with pytest.raises(SystemExit, match="No space left on device"):
        reproduce("one")
    assert is_stale("one")
    subprocess.run(["mount", "-o", "remount,size=16M", str(disk)], check=True)
    reproduce("one")
    assert not is_stale("one")
    assert (toy / "one.txt").read_text() == "hello\n" * 10_000


def test_changed_outs_names_what_the_lock_does_not_pin(toy):
    assert changed_outs("one", "two") == ["one.txt", "two.txt"]
    repro_all()
    assert changed_outs("one", "two") == []
    (toy / "two.txt").chmod(0o644)
    (toy / "two.txt").write_text("by hand\n")
    assert changed_outs("one", "two") == ["two.txt"]


def test_mixed_outs_names_what_was_made_from_other_outputs_than_the_lock_pins(toy):
    repro_all()
    before = pins("one", "two", "three")
    assert mixed_outs("one", "two", "three") == []
    (toy / "in.txt").write_text("other\n")
    reproduce("one")
    assert mixed_outs("one", "two", "three") == ["three.txt", "two.txt"]
    after = pins("one", "two", "three")
    assert {out for out in after if after[out] != before[out]} == {"one.txt"}


def test_outputs_of_earlier_code_still_belong_together(toy):
    """As after a run that was stopped behind the stage `code`: models and index are those of one run."""
    text = (toy / "dvc.yaml").read_text().replace("deps: [one.txt]", "deps: [one.txt, code/two.txt]")
    (toy / "dvc.yaml").write_text(text + "  code: {cmd: mkdir -p code && cp in.txt code/two.txt, deps: [in.txt], "
                                         "outs: [code/two.txt]}\n")
    repro_all()
    (toy / "in.txt").write_text("other\n")
    reproduce("code")
    assert is_stale("two")
    assert mixed_outs("two", "three") == []


def test_pipeline_is_running_when_another_process_runs_it(toy):
    assert not is_running()
    code = """
import sys
from flows.stages import running
with running(print):
    print("in", flush=True)
    sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(toy)}
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=environment)
    assert other.stdout.readline() == "in\n"
    assert is_running()
    other.kill()            # no lock outlives its process
    other.wait()
    assert not is_running()
    with running(print):
        assert is_running()
    assert not is_running()


def test_pipeline_is_running_when_dvc_runs_a_stage(toy):
    (toy / "one.sh").write_text("touch begun\nwhile [ ! -e go ]; do sleep 0.1; done\ncp in.txt one.txt\n")
    (toy / "dvc.yaml").write_text((toy / "dvc.yaml").read_text().replace("cp in.txt one.txt", "sh one.sh"))
    dvc = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q"])
    while not (toy / "begun").exists():
        assert dvc.poll() is None
        time.sleep(0.1)
    assert is_running()
    (toy / "go").touch()
    assert dvc.wait(120) == 0
    assert not is_running()


@pytest.mark.parametrize("content", ["", "{", json.dumps({"write": {"ONE": {"pid": 0, "cmd": "dvc repro"}}})])
def test_a_stage_runs_when_a_dead_dvc_left_its_lock(toy, content):
    """A number that another process has now, as after a restart of the machine; or a list cut short in writing."""
    stranger = subprocess.Popen(["sleep", "300"])
    lock = toy / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(content.replace("ONE", str(toy / "one.txt")).replace('"pid": 0', f'"pid": {stranger.pid}'))
    os.utime(lock, (1e9, 1e9))
    refused = subprocess.run([sys.executable, "-m", "dvc", "repro"], capture_output=True, text=True)
    assert refused.returncode != 0, "DVC takes care of this itself now"
    os.utime(lock, (1e9, 1e9))
    damaged = lock.read_bytes()
    assert not is_running()
    assert is_stale("one")
    lock.write_bytes(damaged)
    os.utime(lock, (1e9, 1e9))
    reproduce("one")
    assert (toy / "one.txt").is_file()
    stranger.kill()
    stranger.wait()


@pytest.mark.parametrize("length", [0, 9, 250], ids=["empty", "no YAML", "half"])
def test_a_run_goes_on_when_dvc_was_killed_while_it_wrote_its_lock(toy, length):
    reproduce("one")
    lock = toy / "dvc.lock"
    before = lock.read_bytes()
    reproduce("two")
    assert not repair.KEPT.exists()
    whole = lock.read_bytes()
    lock.write_bytes(whole[:length])
    repair.KEPT.write_bytes(before)
    broken = not repair._is_whole()
    assert broken or length == 250      # half a file may be YAML
    said: list[str] = []
    with running(said.append):
        assert bool(said) == broken
        assert not broken or lock.read_bytes() == before
    lock.write_bytes(whole[:length])        # as after the kill of a stage whose run goes on
    assert is_stale("two")
    for step in plan():
        if is_stale(step.name):
            reproduce(step.name)
    assert lock.read_bytes().startswith(whole)


def test_a_lock_that_was_cut_short_is_deleted_when_there_was_none_before(toy):
    reproduce("one")
    whole = (toy / "dvc.lock").read_bytes()
    (toy / "dvc.lock").write_text("")
    repair.KEPT.write_bytes(b"")
    assert is_stale("one")
    assert not (toy / "dvc.lock").exists()
    reproduce("one")
    assert (toy / "dvc.lock").read_bytes() == whole


def test_a_lock_that_somebody_else_broke_is_left(toy):
    (toy / "dvc.lock").write_text("{")
    with pytest.raises(DvcException):
        is_stale("one")
    assert (toy / "dvc.lock").read_text() == "{"


def test_a_living_dvc_holds_its_lock_when_the_clock_was_set_after_it_wrote_it(toy):
    """By the times alone it would be a process that started later, and its lock would be deleted."""
    dvc = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "dvc", "repro"])
    lock = toy / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(json.dumps({"write": {str(toy / "one.txt"): {"pid": dvc.pid, "cmd": "dvc repro"}}}))
    os.utime(lock, (1e9, 1e9))
    assert is_running()
    dvc.kill()
    dvc.wait()
    assert not is_running()


def test_a_stage_waits_when_another_dvc_process_holds_the_lock_for_longer_than_dvc_waits(toy):
    """As a `dvc push` does all the time that it takes; by itself DVC gives up after 3 seconds."""
    program = ("import time\nfrom dvc.repo import Repo\nwith Repo() as repo, repo.lock:\n"
               "    print('held', flush=True)\n    time.sleep(6)\n")
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert is_stale("one")
    reproduce("one")
    assert other.wait(60) == 0
    assert not is_stale("one")


def test_a_stage_is_refused_when_a_living_dvc_holds_its_output(toy):
    lock = toy / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(json.dumps({"write": {str(toy / "one.txt"): {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    with pytest.raises(SystemExit, match="is busy"):
        reproduce("one")
