"""Run a command in a process group of its own that cannot outlive the flow run which started it.

A cancelled Prefect task does not take its children's children along: a training run would keep its GPU. Here the
whole group is ended when the task ends in any way, and ends itself when the flow's process is gone (killed, out of
memory), which `main`, the group's first process, notices by the end of its standard input.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

GRACE_SECONDS = 10.0


class ChildError(Exception):
    """The command ended with an exit code other than 0; what it printed says why."""


def run_in_child(*command: str, log: Callable[[str], object] = print) -> None:
    """Run `command`, each line it prints going to `log`. It finds this interpreter's own scripts (dvc, hcmi) first.

    Raises: ChildError.
    """
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ.get("PATH", os.defpath)}
    process = subprocess.Popen([sys.executable, "-m", "flows.child", *command], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                               start_new_session=True, env=environment)
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                last = line.strip()
                log(line.rstrip())
        code = process.wait()
    finally:
        end_group(process)
    if code != 0:
        raise ChildError(f"{' '.join(command)}: need exit code 0, got {code}. Its last line: {last}")


def end_group(process: subprocess.Popen, grace_seconds: float = GRACE_SECONDS) -> None:
    """Ask every process of the group that `process` leads to end, wait, then kill what is left."""
    deadline = time.monotonic() + grace_seconds
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()              # until it is reaped, a dead leader still counts as a member
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:          # no member is left
        pass
    process.wait()


def _end_with_parent() -> None:
    while os.read(0, 1):    # not sys.stdin: its lock is held while waiting, which aborts the interpreter at its end
        pass
    os.killpg(0, signal.SIGKILL)


def main(*command: str) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    except OSError as error:
        print(f"{command[0]}: {error.strerror}")
        return 127
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
