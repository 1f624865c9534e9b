"""flows.child: real processes, really killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.child import ChildError, run_in_child

SLEEPER = """
import subprocess, sys
def sleep(path):
    process = subprocess.Popen(["sleep", "300"])
    with open(path + ".part", "w") as file:
        file.write(str(process.pid))
    import os; os.replace(path + ".part", path)
    print("sleeping", flush=True)
    process.wait()
def fail(code):
    print("need 12 frames, decoded 3")
    sys.exit(int(code))
def say(*words):
    for word in words:
        print(word, end="\\r" if word == "50%" else "\\n", flush=True)
"""


@pytest.fixture
def sleeper(tmp_path, monkeypatch) -> Path:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    return tmp_path / "pid"


def assert_ends(pid: int, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} outlived its flow")


def test_lines_reach_the_log_when_the_child_prints(sleeper):
    lines: list[str] = []
    run_in_child("sleeper:say", "a", "50%", "", "b", log=lines.append)
    assert lines == ["a", "50%", "b"]       # a progress bar's carriage returns become lines


def test_child_error_tells_code_and_last_line_when_it_fails(sleeper):
    with pytest.raises(ChildError) as failure:
        run_in_child("sleeper:fail", "3", log=lambda line: None)
    assert str(failure.value) == "sleeper:fail 3: need exit code 0, got 3. Its last line: need 12 frames, decoded 3"


def test_grandchild_ends_when_the_task_is_cancelled(sleeper):
    def cancel(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_child("sleeper:sleep", str(sleeper), log=cancel)
    assert_ends(int(sleeper.read_text()))


def test_grandchild_ends_when_the_flow_is_killed(sleeper):
    code = f"from flows.child import run_in_child; run_in_child('sleeper:sleep', {str(sleeper)!r})"
    flow = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not sleeper.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    flow.kill()
    flow.wait()
    assert_ends(int(sleeper.read_text()))


def test_assert_ends_fails_when_a_process_stays():
    process = subprocess.Popen(["sleep", "60"])
    with pytest.raises(AssertionError, match="outlived"):
        assert_ends(process.pid, seconds=0.3)
    process.wait()
