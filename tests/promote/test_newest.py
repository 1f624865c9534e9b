"""Champion and challenger on the newest batches: on how many clips, and on which."""

import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from release_world import params, promote, put_batch

import hcmi.promote.newest as subject
from hcmi.dataset import Accepted, accept, read_accepted
from hcmi.index import read_videos
from hcmi.model import load_retriever
from hcmi.promote import Difference
from hcmi.releases import Release, Releases
from hcmi.types import SPLITS

FEWEST = 20


@pytest.fixture
def release(here) -> Release:
    promote()
    return Releases("releases").get("v1")


def take_in(here: Path, name: str, videos: list[Path], captions_each: int = 1) -> None:
    """An accepted batch of these videos. The captions differ."""
    batch = put_batch(here, name, videos)
    rows = [f"{path.name},{path.stem} number {number}\n" for path in videos for number in range(captions_each)]
    (batch / "captions.csv").write_text("video,caption\n" + "".join(rows))
    accept("data/accepted.json", Accepted(name, f"content of {name}", "ok", "now"))


def compare(champion: Release, challenger: Release | None = None) -> Difference | None:
    """Of one model with itself: only how many captions are compared is of interest."""
    model = load_retriever(champion.model)
    return subject.compare_on_newest([(model, champion), (model, challenger or champion)],
                                     read_accepted("data/accepted.json"), incoming_dir="data/incoming",
                                     params=params(Path()), samples=10)


@pytest.mark.parametrize(("clips", "captions_each", "queries"), [
    (1, FEWEST, None), (FEWEST - 1, 2, None), (FEWEST, 1, FEWEST), (FEWEST, 2, 2 * FEWEST)])
def test_batches_are_compared_when_there_are_twenty_clips_however_many_captions(here, release, held, clips,
                                                                                captions_each, queries):
    take_in(here, "monday", held[:clips], captions_each)
    found = compare(release)
    assert (found and found.queries) == queries


def test_batches_are_not_compared_when_fewer_than_twenty_clips_can_be_decoded(here, release, held, monkeypatch):
    take_in(here, "monday", held[:FEWEST], 2)
    encoded = subject._encoded

    def all_but_one(*given):
        both = encoded(*given)
        both[1].pop(min(both[1]))
        return both

    monkeypatch.setattr(subject, "_encoded", all_but_one)
    assert compare(release) is None


def test_copies_in_the_batches_count_as_one_clip_with_the_captions_of_all(here, release, held, tmp_path):
    copies = [Path(shutil.copy(path, tmp_path / f"copy_{path.name}")) for path in held]
    take_in(here, "monday", [*held[:FEWEST - 1], copies[0]])
    take_in(here, "tuesday", copies[1:FEWEST - 1], 2)
    assert compare(release) is None
    take_in(here, "wednesday", held[FEWEST - 1:FEWEST])
    assert compare(release).queries == 2 + 3 * (FEWEST - 2) + 1


@pytest.fixture
def old(release, held, monkeypatch) -> dict[str, list[Path]]:
    """Split -> the files of the data that would be held out in a batch."""
    monkeypatch.setattr(subject, "is_held_out", lambda clip: True)     # the films of the data are few
    rows = read_videos(release.export / "videos.parquet").to_pylist()
    return {split: [Path(row["path"]) for row in rows if row["split"] == split] for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_copies_of_the_data_are_not_compared_on(here, release, held, old, tmp_path, split):
    """Those of training are known to the model. A copy of a test clip would compete with that clip."""
    copies = [Path(shutil.copy(path, tmp_path / f"copy_{path.name}")) for path in old[split]]
    take_in(here, "monday", [*held[:FEWEST - 1], *copies], 2)
    assert len(copies) >= 3
    assert compare(release) is None
    take_in(here, "tuesday", held[FEWEST - 1:FEWEST], 2)
    assert compare(release).queries == 2 * FEWEST


@pytest.mark.parametrize("whose", ["champion", "challenger"])
def test_copies_of_what_one_of_the_two_was_trained_on_are_not_compared_on(here, release, held, old, tmp_path, whose):
    other = Release(Path(shutil.copytree(release.folder, tmp_path / "other")))
    table = pq.read_table(other.export / "videos.parquet")
    pq.write_table(table.filter(pc.not_equal(table["split"], "train")), other.export / "videos.parquet")
    take_in(here, "monday", [*held[:FEWEST], *old["train"]])
    pair = (release, other) if whose == "champion" else (other, release)
    assert compare(*pair).queries == FEWEST
    assert compare(other).queries == FEWEST + len(old["train"])
