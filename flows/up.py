"""`make flows`: a Prefect server and a worker on the loopback address, with prefect.yaml's deployments on them.

It runs until Ctrl-C, a signal, or the end of the server or the worker. The server, the worker, the flow runs and their
stages end with it in any case, also after `kill -9`. The next start marks the runs that were in progress as Crashed.
"""

import argparse
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from flows.child import ALIVE_PORT, end_group, start_group
from flows.dead_runs import end_dead_runs
from hcmi.files import lock

HOST = "127.0.0.1"      # loopback only: this server has no passwords
POOL = "local"
START_SECONDS = 600       # a busy machine loads the server for minutes


def main(port: int, gpus: int) -> None:
    """Serve until stopped. Exits with one line when the port is in use or a part does not start."""
    ask_directly()
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".hcmi/prefect").resolve())))
    home.mkdir(parents=True, exist_ok=True)     # SQLite does not make the folder of its file
    signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell starts background jobs with Ctrl-C ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        # two servers on one database would each end the other's runs
        with lock(home / "make-flows.lock", wait=False):
            _serve(port, gpus)
    except BlockingIOError:
        sys.exit(f"make flows: need {home} for this server alone, got another `make flows` that uses it. "
                 "Stop that one, or set PREFECT_HOME to another folder.")
    except KeyboardInterrupt:
        print("make flows: stopped", flush=True)


def ask_directly() -> None:
    """Let no proxy come between this machine and its own server, here and in what is started from here."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if direct.strip() != "*":
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [direct, HOST, "localhost"]))


def _serve(port: int, gpus: int) -> None:
    """Start the server and the worker, deploy, and wait; end both in any case."""
    _need_free(port)
    alive = Alive()
    os.environ.update({"PREFECT_API_URL": f"http://{HOST}:{port}/api", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                       "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", ALIVE_PORT: str(alive.port)})
    parts: list[subprocess.Popen] = []
    try:
        parts.append(_start("server", "start", "--host", HOST, "--port", str(port), "--analytics-off"))
        _wait_healthy(port, parts[0])
        end_dead_runs()
        _create_pool(gpus)
        deployed = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"])
        if deployed.returncode:
            sys.exit("make flows: need prefect.yaml deployed, got the error above. Correct it and start again.")
        parts.append(_start("worker", "start", "--pool", POOL, "--type", "process", "--name", "here"))
        print(f"make flows: ready. Page: http://{HOST}:{port} ; stop with Ctrl-C. From another terminal:\n"
              f"  PREFECT_API_URL=http://{HOST}:{port}/api prefect deployment run pipeline/retrain", flush=True)
        while all(part.poll() is None for part in parts):
            time.sleep(0.5)
        sys.exit("make flows: need the server and the worker running, one has ended. Its output is above.")
    except KeyboardInterrupt:
        print("make flows: stopping", flush=True)
    finally:
        alive.close()       # the flow runs notice this, and report to the server that they have crashed
        for part in reversed(parts):
            end_group(part, grace_seconds=25)


class Alive:
    """A port to which each flow run connects, so that the run notices when `make flows` ends in any way.

    Connections are accepted and dropped as runs come and go. The system keeps some thousand that nobody accepts, and
    then lets no run connect any more.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._open: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._listener:
                        try:
                            connection = self._listener.accept()[0]
                        except OSError:     # closed, or the run has ended already
                            continue
                        self._open.add(connection)
                        selector.register(connection, selectors.EVENT_READ, connection)
                    else:       # nothing is ever sent: the run has ended
                        ended: socket.socket = key.data
                        selector.unregister(ended)
                        self._open.discard(ended)
                        ended.close()

    def close(self) -> None:
        """End all connections, and take no more."""
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _start(*arguments: str) -> subprocess.Popen:
    return start_group(sys.executable, "-m", "prefect", "--no-prompt", *arguments)


def _need_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            sys.exit(f"make flows: need port {port} free on {HOST}, got one in use. "
                     f"Stop what listens there, or run `make flows PORT={port + 1}`.")


def _wait_healthy(port: int, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit(f"make flows: need a server that answers within {START_SECONDS} s, got none. Its output is above.")


def _create_pool(gpus: int) -> None:
    """Create the work pool of the worker, and limit how many tasks tagged `gpu` run at once."""
    from prefect.client.orchestration import get_client  # after the environment is set: importing reads it
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True)
        client.create_concurrency_limit("gpu", gpus)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--gpus", type=int, default=1, help="tasks that want a GPU and may run at once")
    options = parser.parse_args()
    main(options.port, options.gpus)
