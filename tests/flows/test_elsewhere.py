"""prefect.remote.yaml: a worker on another machine clones, fetches, trains and pushes; the outputs come back."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flow_world import ROOT, Flows, environment, forget_outputs, wait_for
from prefect.cli.deploy._triggers import _initialize_deployment_triggers
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.importtools import import_object
from ruamel.yaml import YAML

WHO = ["-c", "user.name=team", "-c", "user.email=team@localhost", "-c", "commit.gpgsign=false"]
REMOTE = YAML(typ="safe").load((ROOT / "prefect.remote.yaml").read_text())


def test_pull_steps_are_steps_of_prefect_and_take_these_inputs():
    for step in REMOTE["pull"]:
        [(name, inputs)] = step.items()
        inspect.signature(import_object(name)).bind(**inputs)


@pytest.mark.parametrize("file", ["prefect.yaml", "prefect.remote.yaml"])
def test_deployments_take_the_parameters_that_they_are_given(file):
    for deployment in YAML(typ="safe").load((ROOT / file).read_text())["deployments"]:
        flow = load_flow_from_entrypoint(str(ROOT / deployment["entrypoint"]), use_placeholder_flow=False)
        flow.validate_parameters(deployment.get("parameters", {}))
        triggers = _initialize_deployment_triggers(deployment["name"], deployment.get("triggers", []))
        assert len(triggers) == (deployment["name"] == "retrain")


def test_what_is_trained_elsewhere_starts_retrain_here():
    [retrain] = [one for one in YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
                 if one.get("triggers")]
    [trigger] = retrain["triggers"]
    assert retrain["name"] == "retrain"
    assert trigger["match_related"]["prefect.resource.name"] == REMOTE["deployments"][0]["name"]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *WHO, *arguments], cwd=folder, check=True)


def start_worker(flows: Flows, machine: Path, repository: Path) -> subprocess.Popen:
    """A worker on a machine that has nothing but the environment; it deploys what it can run."""
    (machine / "srv").mkdir(parents=True)
    variables = {**environment(machine), "PREFECT_API_URL": f"http://127.0.0.1:{flows.port}/api",
                 "HCMI_REPOSITORY": str(repository), "FLOWS_MARK": str(flows.project)}
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    text = (repository / "prefect.remote.yaml").read_text()
    (repository / "there.yaml").write_text(text.replace("/srv/hcmi", str(machine / "srv")))
    for command in (["work-pool", "create", "elsewhere", "--type", "process"],
                    ["deploy", "--all", "--prefect-file", "there.yaml"]):
        subprocess.run([*prefect, *command], cwd=repository, env=variables, check=True)
    with open(machine / "worker.log", "w") as log:
        return subprocess.Popen([*prefect, "worker", "start", "--pool", "elsewhere"], cwd=machine, env=variables,
                                stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_another_machine_has_trained_is_fetched_and_not_trained_again(start, toy, tmp_path):
    text = (toy / "dvc.yaml").read_text()
    (toy / "dvc.yaml").write_text(
        text.replace("cp in.txt one.txt", f"echo $PWD >> {tmp_path}/ran.log; cp in.txt one.txt")
        .replace("outs: [three.txt]", "outs: [{three.txt: {cache: false}}]"))
    for command in (["remote", "add", "-q", "-d", "store", str(tmp_path / "store")], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    expected = {name: (toy / name).read_bytes() for name in ("dvc.lock", "one.txt", "two.txt", "three.txt")}
    forget_outputs(toy)
    (tmp_path / "ran.log").unlink()
    shutil.rmtree(toy / ".dvc/tmp")
    (toy / "in.txt").write_text("before\n")
    git(toy, "add", "-A")
    git(toy, "commit", "-qm", "first")
    flows, there = start(), tmp_path / "machine/srv/code"
    worker = start_worker(flows, tmp_path / "machine", toy)
    try:
        elsewhere = "pipeline/retrain-elsewhere"
        assert flows.end_of(flows.trigger(elsewhere), 600) == "COMPLETED", (tmp_path / "machine/worker.log").read_text()
        mine = {"flow_runs": {"deployment_id": {"any_": [flows.ask("deployments/name/pipeline/retrain")["id"]]}}}
        [retrain] = wait_for(lambda: flows.ask("flow_runs/filter", mine), 120)      # the automation
        assert flows.end_of(retrain["id"], 600) == "COMPLETED", flows.output()
        assert (toy / "three.txt").read_text() == "before\n" * 2
        git(toy, "checkout", "-q", ".")
        (toy / "in.txt").write_text("hello\n")
        git(toy, "commit", "-qam", "new data")      # and a dvc.lock that a run has written lies there
        assert flows.end_of(flows.trigger(elsewhere), 600) == "COMPLETED", (tmp_path / "machine/worker.log").read_text()
        wait_for(lambda: len(flows.ask("flow_runs/filter", mine)) == 2, 120)
        for run in flows.ask("flow_runs/filter", mine):
            assert flows.end_of(run["id"], 600) == "COMPLETED", flows.output()
    finally:
        worker.terminate()
        worker.wait(120)
        flows.stop()
    assert (tmp_path / "ran.log").read_text().splitlines() == [str(there)] * 2
    for folder in (there, toy):
        assert {name: (folder / name).read_bytes() for name in expected} == expected
    assert os.listdir(there.parent) == ["code"]
