"""Stages run the code of the tree that they stand in, whichever tree the environment was installed from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from import_graph import ROOT
from ruamel.yaml import YAML
from test_pipeline import TINY, make_copy

TREE = {key: value for key, value in TINY.items() if key.startswith("dataset.")}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The commands of this environment, and nothing else that says where code is."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DO_NOT_TRACK": "1"}


def run(folder: Path, environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def recolour(folder: Path, old: str, new: str) -> None:
    """Change the code: what was called `old` is called `new`."""
    for name in ("render", "vocabulary"):
        path = folder / f"hcmi/scenes/{name}.py"
        text = path.read_text("utf-8")
        assert f'"{old}"' in text
        path.write_text(text.replace(f'"{old}"', f'"{new}"'), "utf-8")


def words(folder: Path) -> set[str]:
    captions = pq.read_table(folder / "data/manifest/manifest.parquet")["captions"].to_pylist()
    return {word for some in captions for caption in some for word in caption.replace(",", "").split()}


@pytest.mark.slow
def test_experiment_worktree_and_copy_run_their_own_code(tmp_path, environment):
    project = tmp_path / "project"
    project.mkdir()
    make_copy(project, TREE)
    stages = YAML(typ="safe").load(project / "dvc.yaml")["stages"]
    YAML().dump({"stages": {name: stages[name] for name in ("code", "dataset")}}, project / "dvc.yaml")
    recolour(project, "red", "scarlet")
    run(project, environment, "dvc", "exp", "run", "--temp", "--name", "scarlet", "dataset")
    run(project, environment, "dvc", "exp", "apply", "scarlet")
    assert {"red", "scarlet", "crimson"} & words(project) == {"scarlet"}
    who = ("-c", "user.name=copy", "-c", "user.email=copy@localhost")
    run(project, environment, "git", *who, "commit", "-q", "--no-verify", "-a", "-m", "scarlet")
    run(project, environment, "git", "worktree", "add", "-q", str(tmp_path / "worktree"))
    shutil.copytree(project, tmp_path / "copy", symlinks=True)
    for other in ("worktree", "copy"):
        recolour(tmp_path / other, "scarlet", "crimson")
        run(tmp_path / other, environment, "dvc", "repro", "dataset")
        assert {"red", "scarlet", "crimson"} & words(tmp_path / other) == {"crimson"}, other


def test_a_command_of_another_tree_says_so(tmp_path, environment):
    shutil.copytree(ROOT / "hcmi", tmp_path / "hcmi", ignore=shutil.ignore_patterns("__pycache__"))
    installed = [sys.executable, "-c", "from hcmi.cli import main; main(prog_name='hcmi')", "doctor", "nothing_here"]
    code = {**environment, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}       # as the console script: not from here
    other = subprocess.run(installed, cwd=tmp_path, env=code, text=True, capture_output=True)
    assert other.stderr.splitlines()[0] == (f"note: this is the hcmi of {ROOT}, not the one of the folder you are in. "
                                            "`python -m hcmi` runs that one.")
    own = subprocess.run([sys.executable, "-m", "hcmi", "doctor", "nothing_here"], cwd=tmp_path, env=environment,
                         text=True, capture_output=True)
    assert "note" not in own.stderr
    assert own.stderr.startswith("hcmi: ")
