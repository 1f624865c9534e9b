"""`kill -9` at any moment of a promotion or a rollback: the old release or the new one is served, and the next call
ends the same.
"""

import contextlib
import shutil
from pathlib import Path

import pytest
from model_world import write_film
from release_world import accept_batch, killed_runs, promote, put_batch

from hcmi.releases import Releases
from hcmi.search import Retriever

CALL = """hcmi.promote.stage.promote(model_dir="models/hcmi", export_dir="export", metrics="metrics/evaluate.json",
            plots_dir="plots", shards_dir="data/shards", releases_dir="releases", accepted="data/accepted.json",
            incoming_dir="data/incoming", params=load_params(), must_be_better=False)"""


# It waits before each step that can be seen from outside, or twenty kills would all come before the first one.
ROLLBACK = """
        for name in ("withdraw", "serve", "reinstate", "log"):
            def slow(*given, step=getattr(hcmi.releases.Releases, name), **named):
                time.sleep(0.1)
                return step(*given, **named)
            setattr(hcmi.releases.Releases, name, slow)
        hcmi.promote.stage.rollback(releases_dir="releases", version="v1")
"""


@pytest.fixture(scope="module")
def pristine(made, tmp_path_factory) -> Path:
    """v1 is served, the workspace holds another model, and a batch has been accepted since."""
    folder = tmp_path_factory.mktemp("killed") / "pristine"
    shutil.copytree(made / "first", folder, symlinks=True)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("margin: 1.0", "margin: 100.0"))
    with contextlib.chdir(folder):
        promote()
    for part in ("models", "export", "metrics", "plots"):
        shutil.rmtree(folder / part)
        shutil.copytree(made / "second" / part, folder / part)
    film = write_film(folder.parent / "new.mp4", ["red", "black"], frames_each=8)
    put_batch(folder, "monday", [film])
    accept_batch(folder, "monday")
    return folder


def served_videos(folder: Path) -> tuple[str, int]:
    """The served version, whose model and index belong together, and the number of its videos."""
    release = Releases(folder / "releases").current()
    return release.version, len(Retriever(release.model, release.index).index)


def kill_and_go_on(pristine: Path, folder: Path, kills: int) -> None:
    for what, here in killed_runs(CALL, pristine, folder, kills, seed=0):
        if what == "killed":
            assert served_videos(here) in [("v1", 30), ("v2", 31)]
            continue
        assert served_videos(here) == ("v2", 31)
        if what == "continued":
            assert [release.version for release in Releases(here / "releases").all()] == ["v1", "v2"]
            assert Releases(here / "releases").current().batches == ["content"]


def test_old_or_new_release_is_served_when_a_promotion_is_killed(pristine, tmp_path):
    kill_and_go_on(pristine, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_old_or_new_release_is_served_when_twenty_promotions_are_killed(pristine, tmp_path):
    kill_and_go_on(pristine, tmp_path, 20)


@pytest.fixture(scope="module")
def replaced(pristine, tmp_path_factory) -> Path:
    """v2 is served, and v1 before it."""
    folder = tmp_path_factory.mktemp("killed") / "replaced"
    shutil.copytree(pristine, folder, symlinks=True)
    with contextlib.chdir(folder):
        promote("--not-worse")
    assert served_videos(folder) == ("v2", 31)
    return folder


def kill_rollbacks(replaced: Path, folder: Path, kills: int) -> set[str]:
    """Which release was served after a kill."""
    served = set()
    for what, here in killed_runs(ROLLBACK, replaced, folder, kills, seed=2):
        releases = Releases(here / "releases")
        if what == "killed":
            assert served_videos(here) in [("v1", 30), ("v2", 31)]
            served.add(releases.current().version)
            continue
        assert served_videos(here) == ("v1", 30)
        assert releases.get("v2").withdrawn["why"] == "Rolled back to v1."
        assert releases.get("v1").withdrawn is None
    return served


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_old_or_new_release_is_served_when_twenty_rollbacks_are_killed(replaced, tmp_path):
    assert kill_rollbacks(replaced, tmp_path, 20) == {"v1", "v2"}       # before and after the link was replaced
