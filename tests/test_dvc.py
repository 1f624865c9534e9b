"""dvc.yaml against the code: a stage depends on the note of its code and on every parameter that moves its result."""

import ast
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from import_graph import ROOT, closure, verb, verb_imports
from ruamel.yaml import YAML

# Keys that change how fast a stage runs and not what it makes.
SPEED_ONLY = {"shards.num_workers", "shards.executor", "shards.ray_address", "train.num_workers",
              "train.num_processes", "train.micro_batch", "train.compile", "train.activation_checkpointing",
              "evaluate.batch_size", "export.batch_size"}
NOT_A_STAGE = {"search", "windows", "promote"}


def read(name: str) -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))


STAGES = read("dvc.yaml")["stages"]
VERBS = [name for name in STAGES if name != "code"]


def leaves(section: dict, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in section.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


PARAMS = leaves(read("params.yaml"))


def keys_read(stage: str) -> set[str]:
    """The keys of params.yaml taken up by the verb, or by any module of the stage that gets them all.

    `params.shards` stands for the whole section, `params.dataset.name` for one key. What is read from params.yaml is
    called `params`, or in the verb any name that `load_params(params)` is given.
    """
    stack: list[ast.AST] = [verb(stage), *(ast.parse(path.read_text("utf-8")) for path in closure(verb_imports(stage)))]
    starts = ["params.", "load_params(params).", *(f"{ast.unparse(item.targets[0])}." for item in ast.walk(verb(stage))
              if isinstance(item, ast.Assign) and ast.unparse(item.value) == "load_params(params)")]
    found: set[str] = set()
    while stack:
        item = stack.pop()
        name = ast.unparse(item) if isinstance(item, ast.Attribute) else ""
        start = next((start for start in starts if name.startswith(start)), None)
        if start:
            key = name.removeprefix(start)
            found |= {leaf for leaf in PARAMS if f"{leaf}.".startswith(f"{key}.")}
        else:
            stack.extend(ast.iter_child_nodes(item))
    return found


def outs(stage: str) -> list[str]:
    return [next(iter(out)) if isinstance(out, dict) else out
            for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, [])]


def test_stage_runs_the_verb_of_its_name():
    assert all(STAGES[name]["cmd"].split()[:4] == ["python", "-m", "hcmi", name] for name in VERBS)


def test_first_stage_notes_the_code_of_every_other_stage_which_depends_on_its_own_note():
    assert STAGES["code"]["cmd"] == f"python -m hcmi.project.code {' '.join(VERBS)}"
    assert STAGES["code"]["deps"] == ["hcmi"]
    assert STAGES["code"]["outs"] == [f"code/{name}.txt" for name in VERBS]
    for name in VERBS:
        assert [dep for dep in STAGES[name]["deps"] if dep.startswith(("code", "hcmi"))] == [f"code/{name}.txt"]


@pytest.mark.parametrize("stage", VERBS)
def test_params_name_every_key_that_the_stage_reads(stage):
    listed = STAGES[stage].get("params", [])
    assert sorted(listed) == sorted(keys_read(stage) - SPEED_ONLY)
    assert keys_read(stage), "no stage runs without parameters: was load_params written in a new way?"


@pytest.mark.parametrize("stage", VERBS)
def test_paths_of_the_verb_are_deps_or_outs_of_its_stage(stage):
    """What the verb reads and writes by default: a dep or an out, or inside one. Checkpoints are neither on purpose."""
    defaults = [ast.literal_eval(keyword.value) for decorator in verb(stage).decorator_list
                if isinstance(decorator, ast.Call) for keyword in decorator.keywords if keyword.arg == "default"]
    paths = {default for default in defaults if isinstance(default, str)}
    known = [*STAGES[stage]["deps"], *outs(stage)]
    lost = [path for path in paths - {"checkpoints"} if not any(f"{path}/".startswith(f"{item}/") for item in known)
            and not any(item.startswith(f"{path}/") for item in known)]
    assert not lost


def test_every_parameter_moves_some_stage_or_is_known_not_to():
    listed = {key for stage in STAGES.values() for key in stage.get("params", [])}
    left = {key for key in PARAMS - listed - SPEED_ONLY if key.partition(".")[0] not in NOT_A_STAGE}
    assert left == set()
    assert PARAMS >= SPEED_ONLY


def test_checkpoints_lie_outside_every_out():
    assert not [out for stage in STAGES for out in outs(stage) if out.startswith("checkpoints")]


def git_ignores(path: str) -> bool:
    """As a file or as a folder, whether or not it is there or in git already."""
    return any(subprocess.run(["git", "check-ignore", "-q", "--no-index", name], cwd=ROOT).returncode == 0
               for name in (path, f"{path}/"))


def kept_by_git(stage: str) -> dict[str, bool]:
    """Each output of the stage: whether git is to keep it, or DVC's cache."""
    items = [out if isinstance(out, dict) else {out: {}} for kind in ("outs", "metrics", "plots")
             for out in STAGES[stage].get(kind, [])]
    return {path: options.get("cache", True) is False for item in items for path, options in item.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_git_or_dvc_keeps_every_output(stage):
    """One that neither keeps is missing in a clone, where its stage then runs again."""
    wrong = {path: ("git ignores it" if git else "git would keep it too") for path, git in kept_by_git(stage).items()
             if git_ignores(path) == git}
    assert not wrong


def test_metrics_are_kept_by_git():
    kept = {path: git for stage in STAGES for path, git in kept_by_git(stage).items()}
    metrics = [next(iter(metric)) for stage in STAGES.values() for metric in stage.get("metrics", [])]
    assert metrics == ["metrics/train/metrics.json", "metrics/headline.json"]
    assert all(kept[metric] for metric in metrics)


def test_dvc_looks_for_data_in_every_folder_that_git_knows():
    """DVC asks whether git ignores `data/raw/`, with the slash, before it looks for .dvc files in there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    folders = {f"{parent}/" for name in filter(None, listed.split("\0")) for parent in Path(name).parents[:-1]}
    assert {"data/raw/", "data/incoming/", "metrics/"} <= folders
    with Repo(str(ROOT)) as repo:
        assert [folder for folder in sorted(folders) if repo.scm.is_ignored(f"{ROOT}/{folder}")] == []


def test_drift_judges_the_batches_that_it_depends_on():
    words = STAGES["drift"]["cmd"].split()
    named = [f"data/incoming/{name}" for option, name in itertools.pairwise(words) if option == "--batch"]
    assert named == [dep for dep in STAGES["drift"]["deps"] if dep.startswith("data/incoming")] != []


STAND_IN = """
import sys
from pathlib import Path
from hcmi.files import atomic_dir

out = Path(sys.argv[1])
with atomic_dir(out) as folder:
    print("there meanwhile:", *(path.read_text() for path in out.glob("*")))
    (folder / f"{Path('version').read_text()}.txt").write_text(Path("version").read_text())
"""


@pytest.mark.parametrize(("stage", "searched"), [("train", "models/hcmi"), ("export", "export")])
def test_what_is_searched_is_there_until_the_new_one_takes_its_place(tmp_path, stage, searched):
    """Real DVC, with the output as the stage has it and a stand-in for its verb, which writes as that one does."""
    out = next(out for out in STAGES[stage]["outs"] if searched in out)
    (tmp_path / "stage.py").write_text(STAND_IN, encoding="utf-8")
    dvc = {"stages": {stage: {"cmd": f"python stage.py {searched}", "deps": ["version"], "outs": [out]}}}
    with open(tmp_path / "dvc.yaml", "w", encoding="utf-8") as file:
        YAML().dump(dvc, file)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                   "PYTHONPATH": str(ROOT)}

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    run("dvc", "init", "--no-scm", "-q")
    told = []
    for version in ("first", "second"):
        (tmp_path / "version").write_text(version)
        told += [line for line in run("dvc", "repro").splitlines() if line.startswith("there meanwhile:")]
        assert [path.name for path in (tmp_path / searched).iterdir()] == [f"{version}.txt"]
    assert told == ["there meanwhile:", "there meanwhile: first"]


@pytest.mark.parametrize("stage", VERBS)
def test_verb_holds_no_logic_of_its_own(stage):
    """cli.py is no dep of any stage, so that a new option of `hcmi search` re-runs no training; hence this rule."""
    assert not [item for item in ast.walk(verb(stage)) if isinstance(item, (ast.For, ast.While, ast.Lambda))]
