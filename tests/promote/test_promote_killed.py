"""`kill -9` at any moment of a promotion: the old release or the new one is served, and the next call ends the same."""

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
