"""What the flows' tests share."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
ROOT = Path(__file__).resolve().parents[2]


def environment(project: Path) -> dict[str, str]:
    """This environment's commands first; Prefect's files inside the project; no other server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(project / ".prefect"), "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forget_outputs(toy: Path) -> None:
    """So that the next run of the toy project has to run every stage."""
    for name in ("dvc.lock", "one.txt", "two.txt", "three.txt"):
        (toy / name).unlink(missing_ok=True)
    shutil.rmtree(toy / ".dvc/cache", ignore_errors=True)


def wait_for(what, seconds: float):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"nothing after {seconds} s")


class Flows:
    """`make flows` of one project. Every process that it starts, directly or not, has a mark in its environment."""

    def __init__(self, project: Path):
        self.project, self.port, self.log = project, free_port(), project / "up.log"
        variables = {key: value for key, value in environment(project).items() if key != "PREFECT_HOME"}
        with open(self.log, "a", encoding="utf-8") as log:
            self.begin = log.tell()
            self.process = subprocess.Popen([sys.executable, "-m", "flows.up", "--port", str(self.port)], stdout=log,
                                            stderr=subprocess.STDOUT, env={**variables, "FLOWS_MARK": str(project)})
        wait_for(lambda: "make flows: ready" in self.output() or self.process.poll() is not None, 900)
        assert self.process.poll() is None, self.output()

    def output(self) -> str:
        return self.log.read_bytes()[self.begin:].decode("utf-8", "replace")

    def ask(self, path: str, body: dict | None = None) -> dict | list:
        """What the server answers. It says 503 for a moment when another of its parts is writing to SQLite."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", data,
                                         {"Content-Type": "application/json"})
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def trigger(self, name: str = "pipeline/retrain", **parameters: object) -> str:
        deployment = self.ask(f"deployments/name/{name}")["id"]
        return self.ask(f"deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]

    def end_of(self, run: str, seconds: float = 240) -> str:
        return wait_for(lambda: next((kind for kind in [self.ask(f"flow_runs/{run}")["state"]["type"]]
                                      if kind in ENDED), None), seconds)

    def processes(self) -> list[psutil.Process]:
        """All living processes that belong to it, the first one left out."""
        return [other for other in psutil.process_iter() if other.pid != self.process.pid and self._marked(other)]

    def _marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("FLOWS_MARK") == str(self.project)
        except psutil.Error:
            return False

    def find(self, *words: str) -> psutil.Process:
        """The process whose command line holds these words and that is not the `flows.child` that started it."""
        return next(process for process in self.processes()
                    if set(words) <= set(process.cmdline()) and "flows.child" not in process.cmdline())

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(120)
