"""What a colleague gets: the same bytes of code, the team's data, and nothing to compute again."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_pipeline import STAGES, TINY, Copy, make_copy

WHO = ["-c", "user.name=team", "-c", "user.email=team@localhost", "-c", "commit.gpgsign=false"]


def commit(copy: Copy, message: str) -> None:
    copy.run("git", "add", "-A")
    copy.run("git", *WHO, "commit", "-q", "--no-verify", "-m", message)


def clone(copy: Copy, folder: Path, *options: str) -> Copy:
    subprocess.run(["git", *options, "clone", "-q", str(copy.folder), str(folder)], check=True)
    return replace(copy, folder=folder, environment={**copy.environment, "PYTHONPATH": str(folder)})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_batch(folder: Path) -> None:
    """A folder of videos as people bring them, with their own README and nothing in it that can be decoded."""
    (folder / "videos").mkdir(parents=True)
    (folder / "videos/a.mp4").write_bytes(folder.name.encode())
    (folder / "captions.csv").write_text("video,caption\na.mp4,a dog\n", encoding="utf-8")
    (folder / "README.md").write_text("Where these come from.\n", encoding="utf-8")


# line ends

def test_clone_has_the_same_bytes_when_git_is_set_to_convert_line_ends(tmp_path):
    """DVC hashes hcmi/*.py byte for byte: other line ends are other code, and every stage runs again."""
    copy = make_copy(tmp_path / "origin", {})
    windows = clone(copy, tmp_path / "windows", "-c", "core.autocrlf=true")
    windows.run("git", "config", "core.autocrlf", "true")
    names = copy.run("git", "ls-files", "-z").stdout.split("\0")[:-1]
    assert [name for name in names if (copy.folder / name).read_bytes() != (windows.folder / name).read_bytes()] == []
    for name in names:
        (windows.folder / name).touch()         # so that git looks at the contents
    assert windows.run("git", "status", "--porcelain").stdout == ""


# data that people bring

@pytest.fixture
def project(tmp_path) -> Copy:
    """This repository's own settings of git and DVC, with one stage that takes no time."""
    copy = make_copy(tmp_path / "project", {})
    for name in ("hcmi", "flows", "tests", "docs", "benchmarks"):
        shutil.rmtree(copy.folder / name)
    (copy.folder / "dvc.yaml").write_text(
        "stages: {count: {cmd: ls data/raw/mine/videos > count.txt, deps: [data/raw/mine], outs: [count.txt]}}\n")
    copy.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    commit(copy, "settings")
    return copy


@pytest.mark.slow
def test_data_that_was_added_as_the_documents_tell_is_never_lost(project, tmp_path):
    """add, commit, push, clone, pull, checkout, an experiment, collecting garbage: 17 calls of git and DVC."""
    wanted = {}
    for name in ("raw/mine", "incoming/2026-11-30"):
        make_batch(project.folder / "data" / name)
        wanted[name] = files(project.folder / "data" / name)
        project.run("dvc", "add", f"data/{name}")
    project.run("dvc", "repro")
    commit(project, "data")
    project.run("dvc", "push")
    colleague = clone(project, tmp_path / "colleague")
    colleague.run("dvc", "pull")
    for copy in (project, colleague):
        for command in (["dvc", "checkout"], ["dvc", "exp", "run"], ["dvc", "exp", "run", "--temp"],
                        ["dvc", "checkout"]):
            copy.run(*command)
            assert {name: files(copy.folder / "data" / name) for name in wanted} == wanted, (copy.folder, command)
        assert "No unused 'repo' cache to remove" in copy.run("dvc", "gc", "-w", "--dry").stdout
        assert copy.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."


# outputs

@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_computed_again_in_a_clone_or_after_going_back(tmp_path):
    team = make_copy(tmp_path / "team", TINY)
    team.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    assert team.repro() == STAGES
    commit(team, "first run")
    team.run("dvc", "push")

    colleague = clone(team, tmp_path / "colleague")
    make_batch(colleague.folder / "data/raw/mine")
    make_batch(colleague.folder / "data/incoming/mine")
    colleague.run("dvc", "pull")
    assert colleague.repro() == []
    assert colleague.run("git", "status", "--porcelain").stdout == ""

    params = (colleague.folder / "params.yaml").read_text("utf-8")
    (colleague.folder / "params.yaml").write_text(params.replace("split: test", "split: val"), "utf-8")
    assert colleague.repro() == ["evaluate", "export"]     # the tokens that evaluate keeps are of another split
    diff = colleague.run("dvc", "metrics", "diff")
    assert "t2v.R@1" in diff.stdout
    assert "failed to load" not in diff.stderr
    tables = diff.stdout + colleague.run("dvc", "metrics", "show").stdout
    tables += colleague.run("dvc", "exp", "show", "--only-changed", "--drop", ".*/|export$").stdout   # docs/pipeline.md
    assert tables.count("t2v.R@10") == 3
    assert max(map(len, tables.splitlines())) <= 100
    experiments = colleague.run("dvc", "exp", "show").stdout
    heads = next(line for line in experiments.splitlines() if "Experiment" in line)
    assert 0 < heads.index("v2t.R@1") < 100 - len("v2t.R@1")      # figures come first, then the parameters

    commit(colleague, "second run")
    colleague.run("git", "checkout", "-q", "HEAD~1")
    colleague.run("dvc", "checkout")
    assert colleague.repro() == []
