"""`hcmi init`: a project outside the clone, from this clone and from an installed package."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner
from import_graph import ROOT
from prefect.flows import load_flow_from_entrypoint
from ruamel.yaml import YAML

from hcmi.cli import main
from hcmi.config import load_params
from hcmi.project import init_project
from hcmi.project.code import stage_code
from hcmi.project.new_project import FILES

ENVIRONMENT = {**os.environ, "DO_NOT_TRACK": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def read_yaml(path: Path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def test_project_has_the_stages_without_the_files_of_the_clone(tmp_path):
    made, kept = init_project(tmp_path / "new")
    assert {*FILES, "data/raw/mine/captions.csv", "presets/vit-b-32.yaml"} <= set(made)
    assert kept == []
    ours, theirs = read_yaml(ROOT / "dvc.yaml")["stages"], read_yaml(tmp_path / "new/dvc.yaml")["stages"]
    assert theirs == {**ours, "code": {key: value for key, value in ours["code"].items() if key != "deps"}
                      | {"always_changed": True}}
    made_by_stages = {next(iter(out)) if isinstance(out, dict) else out for stage in theirs.values()
                      for out in stage.get("outs", [])}
    given = {dep for stage in theirs.values() for dep in stage.get("deps", [])} - made_by_stages - {"${dataset.path}"}
    assert given
    assert [dep for dep in given if not (tmp_path / "new" / dep).exists()] == []
    config = load_params(tmp_path / "new/params.yaml")
    assert config.model == load_params(ROOT / "params.yaml").model
    assert (config.dataset.name, config.dataset.path) == ("folder", "data/raw/mine")
    assert (tmp_path / "new/data/raw/mine/videos").is_dir()
    for deployment in [*read_yaml(tmp_path / "new/prefect.yaml")["deployments"],
                       *read_yaml(tmp_path / "new/prefect.remote.yaml")["deployments"]]:
        assert load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False).name
    for path in (tmp_path / "new").rglob("*.md"):
        assert "../docs" not in path.read_text(encoding="utf-8")
    said = (tmp_path / "new/data/raw/README.md").read_text(encoding="utf-8")
    assert "needs a remote (docs/pipeline.md of hcmi); a colleague" in said


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "params.yaml").write_text("mine")
    done = CliRunner().invoke(main, ["init", str(tmp_path)])
    assert done.exit_code == 0
    assert "note: kept what was there: params.yaml\n" in done.stderr
    assert done.stdout.startswith(f"cd {tmp_path}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before[tmp_path / "params.yaml"] == b"mine"
    assert init_project(tmp_path)[0] == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("git", [True, False])
def test_dvc_does_without_git_where_there_is_none(tmp_path, git):
    if git:
        (tmp_path / ".git").mkdir()
    init_project(tmp_path / "new")
    assert ("no_scm" in (tmp_path / "new/.dvc/config").read_text()) is not git


def test_project_is_refused_in_one_line_when_a_file_is_in_its_place(tmp_path):
    (tmp_path / "new").write_text("x")
    done = CliRunner().invoke(main, ["init", str(tmp_path / "new")])
    assert done.exit_code == 1
    assert done.stderr.startswith("hcmi: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_installed_package_makes_a_project_that_dvc_can_run(tmp_path):
    """pip installs a copy of this repository into an environment of its own, which sees our packages but not us."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, check=True,
                           capture_output=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
                    "--no-build-isolation", tmp_path / "source"], check=True, env=environment, cwd=tmp_path)
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    done = subprocess.run([python.parent / "hcmi", "init", "mine"], check=True, env=environment, cwd=tmp_path,
                          text=True, capture_output=True)
    assert "made " in done.stderr
    where = subprocess.run([python, "-c", "import hcmi; print(hcmi.__file__)"], check=True, env=environment,
                           cwd=tmp_path, text=True, capture_output=True).stdout
    assert where.startswith(str(site))
    for name in ("a", "b", "c"):
        from video_files import write_grey
        write_grey(tmp_path / f"mine/data/raw/mine/videos/{name}.mp4", num_frames=20 + ord(name) % 7)
        with open(tmp_path / "mine/data/raw/mine/captions.csv", "a") as table:
            table.write(f"{name}.mp4,a grey clip\n")
    dvc = [python, "-m", "dvc", "repro", "dataset"]
    for expected in ("Running stage 'dataset'", "Stage 'dataset' didn't change"):
        out = subprocess.run(dvc, check=True, env=environment, cwd=tmp_path / "mine", text=True, capture_output=True)
        assert expected in out.stdout
    assert (tmp_path / "mine/data/manifest/manifest.parquet").is_file()
    assert (tmp_path / "mine/code/train.txt").read_text() == stage_code("train")
