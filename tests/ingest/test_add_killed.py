"""`kill -9` at any moment of `hcmi add`: nothing is lost or taken twice, and the next call ends the same."""

import json
import shutil
from pathlib import Path

import pytest
from model_world import write_film
from release_world import killed_runs

from hcmi.index import SearchIndex

CALL = """
        hcmi.ingest.stage.drift = lambda *, batches, **rest: {"batches": [
            {"batch": name, "verdict": "ok", "why": "", "reason": ""} for name in batches]}
        hcmi.ingest.stage.add(folder="inbox", batches=(), incoming_dir="data/incoming", reports_dir="reports/watch",
            releases_dir="releases", accepted="data/accepted.json", params=load_params(), quiet_s=0)
"""


@pytest.fixture(scope="module")
def pristine(released, tmp_path_factory) -> Path:
    """A served release, and an inbox of two videos."""
    folder = tmp_path_factory.mktemp("killed") / "pristine"
    shutil.copytree(released, folder, symlinks=True)
    for colour in ("red", "white"):
        write_film(folder / f"inbox/{colour}.mp4", [colour, "black"], frames_each=8)
    return folder


def state(folder: Path) -> dict[str, object]:
    """What must be the same however often the run was killed."""
    index = SearchIndex.open(folder / "releases/current/export/index")
    accepted = json.loads((folder / "data/accepted.json").read_text())
    ledger = json.loads((folder / "reports/watch/judged.json").read_text())
    batches = [path for path in sorted((folder / "data/incoming").iterdir()) if path.is_dir() and path.name[0] != "."]
    return {"found": sorted(clip.video_id for clip in index.clips(index.live_rows())),
            "accepted": [(entry["content"], entry["verdict"]) for entry in accepted],
            "judged": sorted(ledger["verdicts"]),
            "files": [sorted(path.name for path in batch.rglob("*") if path.is_file()) for batch in batches]}


def kill_and_go_on(pristine: Path, folder: Path, kills: int) -> None:
    expected: dict[str, object] = {}
    for what, here in killed_runs(CALL, pristine, folder, kills, seed=1):
        if what == "undisturbed":
            expected = state(here)
            assert len(expected["found"]) == 32
            assert len(expected["files"]) == 1
        elif what == "killed":
            assert len(SearchIndex.open(here / "releases/current/export/index")) in (30, 32)
        else:
            assert state(here) == expected


def test_nothing_is_lost_or_taken_twice_when_add_is_killed(pristine, tmp_path):
    kill_and_go_on(pristine, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_taken_twice_when_add_is_killed_twenty_times(pristine, tmp_path):
    kill_and_go_on(pristine, tmp_path, 20)
