"""`make flows` for real: a server and a worker on the loopback address, prefect.yaml deployed, one run triggered."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from flow_world import ROOT, environment
from ruamel.yaml import YAML


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port: int, path: str, body: dict | None = None) -> dict | list:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", data,
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for(what, seconds: float):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"nothing after {seconds} s")


def test_deployments_have_schedules_that_are_off():
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [item["name"] for item in deployments] == ["retrain", "drift-watch"]
    assert [[schedule["active"] for schedule in item["schedules"]] for item in deployments] == [[False], [False]]


def test_up_says_so_in_one_line_when_the_port_is_taken(toy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = subprocess.run([sys.executable, "-m", "flows.up", "--port", str(port)], env=environment(toy), text=True,
                             capture_output=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr == (f"make flows: need port {port} free on 127.0.0.1, got one in use. "
                          f"Stop what listens there, or run `make flows PORT={port + 1}`.\n")


@pytest.mark.timeout(400)
def test_a_triggered_run_completes_when_server_and_worker_are_up(toy):
    port = free_port()
    variables = {key: value for key, value in environment(toy).items() if key != "PREFECT_HOME"}
    with open("up.log", "w") as log:
        up = subprocess.Popen([sys.executable, "-m", "flows.up", "--port", str(port)], env=variables, stdout=log,
                              stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "make flows: ready" in Path("up.log").read_text() or up.poll() is not None, 180)
        assert up.poll() is None, Path("up.log").read_text()
        names = {item["name"]: item["schedules"][0]["active"] for item in ask(port, "deployments/filter", {})}
        assert names == {"retrain": False, "drift-watch": False}
        deployment = ask(port, "deployments/name/pipeline/retrain")["id"]
        run = ask(port, f"deployments/{deployment}/create_flow_run", {})["id"]
        state = wait_for(lambda: next((s for s in [ask(port, f"flow_runs/{run}")["state"]]
                                       if s["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")), None), 180)
        assert state["type"] == "COMPLETED", Path("up.log").read_text()
        assert (toy / "three.txt").read_text() == "hello\n" * 2
        assert (toy / ".hcmi/prefect/prefect.db").is_file()
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)
    with pytest.raises(OSError):  # noqa: PT011 - any: nobody listens any more
        ask(port, "health")
