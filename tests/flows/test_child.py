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
import os, subprocess, sys
process = subprocess.Popen(["sleep", "300"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(str(process.pid))
os.replace(sys.argv[1] + ".part", sys.argv[1])
print("sleeping", flush=True)
process.wait()
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
    run_in_child("printf", r"a\n50%%\r\nb\n", log=lines.append)
    assert lines == ["a", "50%", "b"]       # a progress bar's carriage returns become lines


def test_child_error_names_code_and_last_line_when_it_fails(sleeper):
    with pytest.raises(ChildError) as failure:
        run_in_child("sh", "-c", "echo need 12 frames, decoded 3; exit 3", log=lambda line: None)
    assert str(failure.value).endswith("exit 3: need exit code 0, got 3. Its last line: need 12 frames, decoded 3")


def test_child_error_says_so_when_there_is_no_such_command():
    with pytest.raises(ChildError, match=r"got 127\. Its last line: nonesuch: No such file"):
        run_in_child("nonesuch", log=lambda line: None)


def test_child_error_says_so_when_the_command_is_killed():
    with pytest.raises(ChildError, match="got 137"):
        run_in_child("sh", "-c", "kill -9 $$", log=lambda line: None)


def test_grandchild_ends_when_the_task_is_cancelled(sleeper):
    def cancel(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_child(sys.executable, "sleeper.py", str(sleeper), log=cancel)
    assert_ends(int(sleeper.read_text()))


def test_grandchild_ends_when_the_flow_is_killed(sleeper):
    code = f"from flows.child import run_in_child; run_in_child({sys.executable!r}, 'sleeper.py', {str(sleeper)!r})"
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
