"""Run a command in a process group of its own that ends with the flow run which started it.

When Prefect cancels a task, the task's grandchildren continue: a training run would keep its GPU. Here the whole group
is ended when the task ends in any way. The group also ends itself when the flow's process has ended (killed, out of
memory): `main`, the first process of the group, sees the end of its standard input. The flow's process ends itself when
the `make flows` that started it has ended (`end_with_make_flows`).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hcmi.errors import shown

GRACE_SECONDS = 10.0
NO_REASON = "Having any troubles?"      # DVC's line after the reason
ALIVE_PORT = "HCMI_FLOWS_ALIVE_PORT"      # environment variable: a port on which `make flows` listens until it ends


class ChildError(Exception):
    """The command ended with an exit code other than 0; its output says why."""

    def __str__(self) -> str:
        return shown(super().__str__())     # the command may name a file


def run_in_child(*command: str, log: Callable[[str], object] = print) -> None:
    """Run `command` and pass each line of its output to `log`. The scripts of this interpreter come first in its PATH.

    Raises: ChildError.
    """
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ.get("PATH", os.defpath)}
    process = start_group(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                          errors="replace", env=environment)
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                last = last if line.startswith(NO_REASON) else line.strip()
                log(line.rstrip())
        code = process.wait()
    finally:
        end_group(process)
    if code != 0:
        raise ChildError(f"{' '.join(command)}: need exit code 0, got {code}. Its last line: {last}")


def run_for_json(*command: str, log: Callable[[str], object] = print) -> Any:
    """Run `command` as `run_in_child` does. Returns the JSON that its output ends with.

    Raises: ChildError.
    """
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        log(line)

    run_in_child(*command, log=keep)
    start = max((number for number, line in enumerate(lines) if line == "{"), default=0)
    try:
        return json.loads("\n".join(lines[start:]))
    except ValueError as error:
        raise ChildError(f"{' '.join(command)}: need JSON at the end of its output, got: {lines[-1:]}") from error


def start_group(*command: str, **options: Any) -> subprocess.Popen:
    """Start `command` in a process group of its own, which ends with this process. `options`: those of Popen."""
    return subprocess.Popen([sys.executable, "-m", "flows.child", *command], stdin=subprocess.PIPE,
                            start_new_session=True, **options)


def end_with_make_flows() -> None:
    """End this process when the `make flows` whose worker started it has ended; do nothing outside `make flows`.

    Prefect's worker starts each flow run in a session of its own, so neither a signal to the worker's group nor the end
    of the worker reaches the run. A connection to `make flows` breaks as soon as that process ends in any way.
    """
    port = os.environ.get(ALIVE_PORT)
    if port:
        threading.Thread(target=_end_when_closed, args=(int(port),), daemon=True).start()


def _end_when_closed(port: int) -> None:
    with suppress(OSError), _connected(port) as connection:
        connection.recv(1)      # nothing is ever sent
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * GRACE_SECONDS)       # Prefect's engine has ended the stage by then
    os.kill(os.getpid(), signal.SIGKILL)


def _connected(port: int) -> socket.socket:
    """A connection to `make flows`. Raises: ConnectionError when nobody listens any more."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionError:
            raise
        except OSError:     # such as no room for a connection: that says nothing of `make flows`
            time.sleep(1)


def end_group(process: subprocess.Popen, grace_seconds: float = GRACE_SECONDS) -> None:
    """Send SIGTERM to the group that `process` leads, wait, then kill the processes that are left."""
    deadline = time.monotonic() + grace_seconds
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()              # a dead leader counts as a member until it is reaped
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
