"""`make flows` for real: a server and a worker on the loopback address, prefect.yaml runs started and killed."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from flow_world import ENDED, ROOT, Flows, environment, forget_outputs, free_port, wait_for
from ruamel.yaml import YAML

from flows import up


def test_deployments_have_schedules_that_are_off():
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [item["name"] for item in deployments] == ["retrain", "drift-watch", "ingest", "promote"]
    assert [[schedule["active"] for schedule in item.get("schedules", [])] for item in deployments] == [
        [False], [False], [False], []]


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


def test_any_number_of_runs_come_and_go_and_those_that_are_left_notice_the_end(monkeypatch):
    """The system's own queue has room for a few hundred connections or thousands, each of a run that has ended."""
    alive = up.Alive()
    monkeypatch.setenv("HCMI_FLOWS_ALIVE_PORT", str(alive.port))
    for _ in range(3000):
        socket.create_connection(("127.0.0.1", alive.port), timeout=60).close()
    program = ("import time; from flows.child import end_with_make_flows; end_with_make_flows(); "
               "print('runs', flush=True); time.sleep(600)")
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "runs\n"
    wait_for(lambda: alive._open, 60)
    assert run.poll() is None
    alive.close()
    assert run.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(("before", "after"), [
    ({}, "127.0.0.1,localhost"), ({"NO_PROXY": "minio.internal"}, "minio.internal,127.0.0.1,localhost"),
    ({"no_proxy": "a", "NO_PROXY": "b"}, "a,127.0.0.1,localhost"), ({"no_proxy": "*"}, "*")])
def test_this_machines_server_is_asked_directly_and_what_else_was_still_is(monkeypatch, before, after):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    up.ask_directly()
    assert os.environ["no_proxy"] == after


@pytest.mark.timeout(600)
def test_runs_are_created_and_executed_when_a_schedule_is_on_or_somebody_asks(start, toy):
    text = (toy / "prefect.yaml").read_text()
    on = text.replace('{cron: "0 3 * * 1", timezone: UTC, active: false}', "{interval: 10, active: true}")
    assert on != text
    (toy / "prefect.yaml").write_text(on)
    with open(toy / "flows/stages.py", "a", encoding="utf-8") as own:
        own.write('    print("code of the tree that it stands in")\n')
    flows = start()
    names = {item["name"]: [schedule["active"] for schedule in item["schedules"]]
             for item in flows.ask("deployments/filter", {})}
    assert names == {"retrain": [True], "drift-watch": [False], "ingest": [False], "promote": []}
    deployment = flows.ask("deployments/name/pipeline/retrain")["id"]
    mine = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": list(ENDED)}}}}
    run = wait_for(lambda: flows.ask("flow_runs/filter", mine), 300)[0]
    assert (run["auto_scheduled"], run["state"]["type"]) == (True, "COMPLETED"), flows.output()
    assert run["name"].startswith("retrain 2"), run["name"]         # the time of its start
    assert (toy / "three.txt").read_text() == "hello\n" * 2
    assert (toy / ".hcmi/prefect/prefect.db").is_file()
    assert flows.output().count("code of the tree that it stands in") == 3
    assert not any(mark in flows.output() for mark in ("\r", "█", "%|"))
    assert flows.end_of(flows.trigger()) == "COMPLETED", flows.output()
    flows.stop()
    with pytest.raises(OSError):  # noqa: PT011 - any: nobody listens any more
        flows.ask("health")
    assert flows.processes() == []


def hold_stage_two(toy: Path) -> bytes:
    """Make stage `two` wait for a file `go`, the first time. Returns the dvc.lock of an undisturbed run."""
    (toy / "two.sh").write_text("cat one.txt one.txt > two.txt\n")
    text = (toy / "dvc.yaml").read_text()
    (toy / "dvc.yaml").write_text(text.replace("cat one.txt one.txt > two.txt", "sh two.sh"))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    lock = (toy / "dvc.lock").read_bytes()
    forget_outputs(toy)
    (toy / "two.sh").write_text("touch begun\nwhile [ ! -e go ]; do sleep 0.1; done\ncat one.txt one.txt > two.txt\n")
    return lock


def assert_next_run_completes(start, toy: Path, lock: bytes, dead: str) -> None:
    flows = start()
    state = flows.ask(f"flow_runs/{dead}")["state"]
    assert state["type"] in ("CRASHED", "FAILED", "CANCELLED"), state
    (toy / "go").touch()
    assert flows.end_of(flows.trigger()) == "COMPLETED", flows.output()
    assert (toy / "dvc.lock").read_bytes() == lock
    flows.stop()
    wait_for(lambda: flows.processes() == [], 60)


def kill_everything(flows: Flows) -> None:
    for process in [psutil.Process(flows.process.pid), *flows.processes()]:
        if psutil.pid_exists(process.pid):
            process.kill()


INTERRUPTIONS = {
    "ctrl_c": lambda flows: flows.process.send_signal(signal.SIGINT),
    "make_flows_killed": lambda flows: flows.process.kill(),
    "worker_killed": lambda flows: flows.find("worker", "start").kill(),
    "worker_interrupted": lambda flows: flows.find("worker", "start").send_signal(signal.SIGINT),
    "server_killed": lambda flows: flows.find("server", "start").kill(),
    "server_interrupted": lambda flows: flows.find("server", "start").send_signal(signal.SIGINT),
    "flow_run_killed": lambda flows: (flows.find("prefect.engine").kill(), flows.process.send_signal(signal.SIGINT)),
}


def interrupt_and_go_on(start, toy: Path, interrupt) -> None:
    lock = hold_stage_two(toy)
    flows = start()
    run = flows.trigger()
    wait_for((toy / "begun").exists, 240)
    interrupt(flows)
    flows.process.wait(120)
    wait_for(lambda: flows.processes() == [], 60)
    assert_next_run_completes(start, toy, lock, run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_run_completes_when_everything_was_killed_in_a_stage(start, toy):
    interrupt_and_go_on(start, toy, kill_everything)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_the_next_run_completes_when_a_part_was_ended_in_a_stage(start, toy, interruption):
    interrupt_and_go_on(start, toy, INTERRUPTIONS[interruption])


def test_a_second_make_flows_of_a_project_is_refused(toy):
    home = toy / ".hcmi/prefect"
    home.mkdir(parents=True)
    variables = {key: value for key, value in environment(toy).items() if key != "PREFECT_HOME"}
    with open(home / "make-flows.lock", "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = subprocess.run([sys.executable, "-m", "flows.up", "--port", str(free_port())], env=variables,
                                text=True, capture_output=True, timeout=120)
    assert second.returncode == 1
    assert second.stderr == (f"make flows: need {home} for this server alone, got another `make flows` that uses it. "
                             "Stop that one, or set PREFECT_HOME to another folder.\n")
