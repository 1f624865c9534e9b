"""A DVC project so small that its stages take milliseconds: the flows run on it for real."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from flow_world import ROOT, Flows

TOY = """
stages:
  one: {cmd: cp in.txt one.txt, deps: [in.txt], params: [copies], outs: [one.txt]}
  two: {cmd: cat one.txt one.txt > two.txt, deps: [one.txt], outs: [two.txt], meta: {gpu: true}}
  three: {cmd: cp two.txt three.txt, deps: [two.txt, one.txt], outs: [three.txt]}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """The toy project, with this project's settings and flows, as the working folder."""
    project = tmp_path / "toy"
    shutil.copytree(ROOT / "flows", project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "prefect.remote.yaml", "prefect.toml"):
        shutil.copy(ROOT / name, project / name)
    deployed = (project / "prefect.yaml").read_text()
    (project / "prefect.yaml").write_text(deployed.replace("then_promote: true", "then_promote: false"))    # no model
    (project / "dvc.yaml").write_text(TOY)
    (project / "params.yaml").write_text("copies: 2\n")
    (project / "in.txt").write_text("hello\n")
    monkeypatch.chdir(project)
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    shutil.copy(ROOT / ".dvc/config", project / ".dvc/config")
    return project


@pytest.fixture
def start(toy) -> Iterator:
    """Starts `make flows` in the toy project; all that a failed test leaves is killed."""
    started: list[Flows] = []

    def begin() -> Flows:
        started.append(Flows(toy))
        return started[-1]

    yield begin
    for flows in started:
        for process in [*flows.processes(), *([flows.process] if flows.process.poll() is None else [])]:
            process.kill()
