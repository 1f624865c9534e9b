"""The stage `code` under real DVC: the stages of dvc.yaml, with stand-ins for all verbs, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import ROOT
from ruamel.yaml import YAML

STAND_IN = """
import sys
from pathlib import Path

code, *outs = map(Path, sys.argv[1:])       # every output is what the code of the stage is
for out in outs:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)             # an output with `persist` is still there
    out.write_text(code.read_text())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "hcmi", folder / "hcmi", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvcignore", ".dvc/config", "params.yaml", "data/accepted.json", "data/raw/scenes/README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    dvc = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text("utf-8"))
    for name, stage in dvc["stages"].items():
        outs = [next(iter(out)) if isinstance(out, dict) else out
                for kind in ("outs", "metrics") for out in stage.get(kind, [])]
        if name != "code":
            stage["cmd"] = f"python stand_in.py code/{name}.txt {' '.join(outs)}"
    YAML().dump({"stages": dvc["stages"]}, folder / "dvc.yaml")
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    assert repro(folder) == ["code", "dataset", "shards", "train", "evaluate", "export", "drift"]
    return folder


def repro(folder: Path) -> list[str]:
    """Names of the stages that `dvc repro` ran."""
    environment = {**os.environ, "PYTHONPATH": "", "DO_NOT_TRACK": "1",
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["dvc", "repro"], cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return re.findall(r"Running stage '(\w+)'", done.stdout)


@pytest.mark.timeout(900)
def test_only_what_the_code_does_makes_a_stage_run(project):
    """Words, and somebody's folder of videos; then a constant that `train` alone has; then what a clone lacks."""
    (project / "data/raw/mine").mkdir()
    (project / "data/raw/mine/captions.csv").write_text("video,caption\n")
    types, curves = project / "hcmi/types.py", project / "hcmi/train/curves.py"
    types.write_text(types.read_text("utf-8").replace('"""', '"""In other words. ', 1) + "# a comment\n", "utf-8")
    assert repro(project) == ["code"]
    curves.write_text(curves.read_text("utf-8") + "PLANTED = 1\n", "utf-8")
    assert repro(project) == ["code", "train", "evaluate", "export", "drift"]
    shutil.rmtree(project / "code")     # nor are its files in the cache
    shutil.rmtree(project / ".dvc/cache/runs")
    for path in (project / ".dvc/cache/files").rglob("*"):
        if path.is_file() and b"  hcmi/" in path.read_bytes():
            path.unlink()
    assert repro(project) == ["code"]
