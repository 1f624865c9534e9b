"""The git tags of a release: on a commit that can make it again, and on no other."""

import shutil
import subprocess
from pathlib import Path

import pytest
from release_world import promote
from ruamel.yaml import YAML
from search_world import call_hcmi

ROOT = Path(__file__).resolve().parents[2]
LATER = "no git tag yet. Commit dvc.lock, then run `hcmi promote` again."


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-c", "commit.gpgsign=false", *arguments], check=True, capture_output=True,
                          text=True).stdout.strip()


@pytest.fixture
def repository(here, monkeypatch) -> Path:
    """The project as a git repository with one commit, and a dvc.lock that is not committed yet."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "team")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "team@localhost")
    git("init", "-q")
    git("config", "user.name", "team")
    git("config", "user.email", "team@localhost")
    git("add", "params.yaml")
    git("commit", "-qm", "first")
    (here / "dvc.lock").write_text("schema: '2.0'\n")
    return here


def commit_lock() -> str:
    git("add", "dvc.lock")
    git("commit", "-qm", "lock")
    return git("rev-parse", "HEAD")


def test_releases_are_tagged_once_their_lock_is_committed_and_served_is_the_served_one(repository, retrain):
    assert promote()["tags"] == LATER
    assert git("tag") == ""
    first = commit_lock()
    done = promote()
    assert (done["decision"], done["tags"]) == (
        "unchanged", "git tags model@v1.0.0, index@v1.0.0. `git push --tags` shares them.")
    tags = ["index#served#1", "index@v1.0.0", "model#served#1", "model@v1.0.0"]
    assert git("tag").splitlines() == tags
    promote()
    assert git("tag").splitlines() == tags
    retrain("second")
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("margin: 1.0", "margin: 100.0"))
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    assert promote("--not-worse")["tags"] == LATER
    second = commit_lock()
    assert call_hcmi("promote").stdout.endswith(
        "\nserved: git tags model@v2.0.0, index@v2.0.0. `git push --tags` shares them.\n")
    call_hcmi("rollback")
    assert [git("rev-parse", f"{tag}^{{commit}}") for tag in ("model@v1.0.0", "model@v2.0.0", "model#served#2",
                                                             "model#served#3", "index#served#3")] == [
        first, second, second, first, first]


def test_one_commit_is_not_tagged_as_two_releases(repository, retrain):
    commit_lock()
    promote()
    retrain("second")       # and dvc.lock is the same, as after `hcmi export` by hand
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("margin: 1.0", "margin: 100.0"))
    assert promote("--not-worse")["tags"] == (
        "no git tag yet, because this commit is model@v1.0.0. Commit again, then run `hcmi promote` again.")
    git("commit", "-qam", "params")
    assert promote()["tags"] == "git tags model@v2.0.0, index@v2.0.0. `git push --tags` shares them."


def test_nobody_is_asked_to_commit_the_lock_of_another_run(repository):
    promote()
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    said = promote()["tags"]
    assert said == "no git tag, because a later run has replaced its dvc.lock before that was committed."
    commit_lock()
    assert promote()["tags"] == said


def test_a_release_is_served_when_it_cannot_be_tagged(repository):
    commit_lock()
    git("tag", "model@v1.0.0-other")
    (repository / ".git/refs/tags/model@v1.0.0").mkdir()
    (repository / ".git/refs/tags/model@v1.0.0/in_the_way").write_text(git("rev-parse", "HEAD") + "\n")
    done = promote()
    assert done["decision"] == "promoted"
    assert done["tags"].startswith("no git tag: ")
    assert Path("releases/current").is_symlink()


def test_release_made_again_on_another_machine_keeps_its_version_and_a_new_one_gets_the_next(repository):
    commit_lock()
    promote()
    first = git("rev-parse", "HEAD")
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    git("commit", "-qam", "of June")
    for name in ("model@v2.0.0", "index@v2.0.0"):
        git("tag", "-a", "-m", "v2", name)
    shutil.rmtree("releases")           # as in a clone, where v2 is made again
    done = promote()
    assert (done["version"], done["tags"]) == (
        "v2", "git tags model@v2.0.0, index@v2.0.0. `git push --tags` shares them.")
    assert git("rev-parse", "model#served#2^{commit}") == git("rev-parse", "HEAD") != first
    shutil.rmtree("releases")
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {three: {}}\n")
    git("commit", "-qam", "of July")
    assert promote()["version"] == "v3"


def test_tag_of_another_machines_release_is_not_taken_for_this_one(repository):
    commit_lock()
    git("tag", "model@v1.0.0", "HEAD~1")
    Path("releases").mkdir()
    done = promote()
    assert done["version"] == "v2"      # v1 is another machine's
    (repository / "releases/v2").rename(repository / "releases/v1")
    Path("releases/current").unlink()
    Path("releases/current").symlink_to("v1")
    assert promote()["tags"] == (
        "no git tag, because model@v1.0.0 names another run of the pipeline, such as another machine's.")


def test_there_is_nothing_to_say_of_tags_outside_a_git_repository(here):
    (here / "dvc.lock").write_text("schema: '2.0'\n")
    assert promote()["tags"] is None


def test_artifacts_of_the_pipeline_are_outputs_of_its_stages():
    pipeline = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    outs = {next(iter(out)) if isinstance(out, dict) else out for stage in pipeline["stages"].values()
            for out in stage.get("outs", [])}
    from hcmi.promote.tags import ARTIFACTS

    assert set(pipeline["artifacts"]) == set(ARTIFACTS)
    assert {artifact["path"] for artifact in pipeline["artifacts"].values()} <= outs
