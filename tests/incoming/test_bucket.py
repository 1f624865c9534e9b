"""A bucket as the folder of new videos, on a file system of fsspec that is in memory; S3 itself is in test_s3.py."""

import os
from pathlib import Path

import fsspec
import pytest
from model_world import write_film

from hcmi.errors import DataError
from hcmi.incoming import Collected, collect

ADDRESS = "memory://bucket/new"


@pytest.fixture
def bucket(tmp_path):
    """Puts a film of one colour under a name; a folder for the batches lies beside it."""
    memory = fsspec.filesystem("memory")

    def put(name: str, colour: str) -> None:
        film = write_film(tmp_path / f"{colour}.mp4", [colour, "black"], frames_each=4)
        memory.pipe(f"/bucket/new/{name}", film.read_bytes())

    yield put
    memory.store.clear()


def take(tmp_path: Path) -> Collected:
    return collect(ADDRESS, tmp_path / "incoming", "monday", 60, 20.0, wait=pytest.fail)


def test_new_objects_become_batches_once_with_their_captions(bucket, tmp_path, monkeypatch):
    bucket("videos/red.mp4", "red")
    bucket("videos/deep/blue.mp4", "blue")
    fsspec.filesystem("memory").pipe("/bucket/new/captions.csv", b"video,caption\nred.mp4,a red film\n")
    fsspec.filesystem("memory").pipe("/bucket/new/notes.txt", b"no video")
    found = take(tmp_path)
    assert (found.batch, found.files) == ("monday", ["deep/blue.mp4", "red.mp4"])
    assert (tmp_path / "incoming/monday/captions.csv").read_text().splitlines()[1:] == ["red.mp4,a red film,,"]
    got = []
    memory = type(fsspec.filesystem("memory"))
    real = memory.get_file
    monkeypatch.setattr(memory, "get_file", lambda self, *names: got.append(Path(names[0]).name) or real(self, *names))
    assert take(tmp_path).batch is None
    assert got == ["captions.csv"]
    bucket("videos/green.mp4", "green")
    bucket("videos/again.mp4", "red")           # taken before under another name
    assert (take(tmp_path).batch, take(tmp_path).batch) == ("monday-2", None)
    assert sorted(path.name for path in (tmp_path / "incoming/monday-2/videos").iterdir()) == ["green.mp4"]
    assert not (tmp_path / "incoming/.bucket").exists()


def test_objects_are_fetched_again_when_the_run_ended_before_they_were_taken(bucket, tmp_path, monkeypatch):
    bucket("red.mp4", "red")
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("hcmi.incoming.inbox._decodable", interrupt)
        with pytest.raises(KeyboardInterrupt):
            take(tmp_path)
    assert take(tmp_path).files == ["red.mp4"]
    (tmp_path / "incoming/bucket.json").write_text("{")
    assert take(tmp_path).batch is None


def test_object_is_fetched_again_when_another_of_its_size_and_time_takes_its_place(tmp_path):
    for colour in ("red", "blue"):
        write_film(tmp_path / f"bucket/{colour}.mp4", [colour, "black"], frames_each=4)
    size = max(path.stat().st_size for path in (tmp_path / "bucket").iterdir()) + 8
    for path in (tmp_path / "bucket").iterdir():
        rest = size - path.stat().st_size
        path.write_bytes(path.read_bytes() + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8))
        os.utime(path, (1.7e9, 1.7e9))
    (tmp_path / "bucket/blue.mp4").rename(tmp_path / "blue.mp4")
    found = [collect(f"file://{tmp_path}/bucket", tmp_path / "incoming", "monday", 60, 20.0, wait=pytest.fail)]
    (tmp_path / "blue.mp4").rename(tmp_path / "bucket/red.mp4")
    found.append(collect(f"file://{tmp_path}/bucket", tmp_path / "incoming", "monday", 60, 20.0, wait=pytest.fail))
    assert [(one.batch, one.files) for one in found] == [("monday", ["red.mp4"]), ("monday-2", ["red.mp4"])]


def test_objects_whose_names_lead_elsewhere_are_left(bucket, tmp_path):
    bucket("../../red.mp4", "red")
    bucket("blue.mp4", "blue")
    fsspec.filesystem("memory").store["/bucket/new/../../../green.mp4"] = fsspec.filesystem("memory").store[
        "/bucket/new/blue.mp4"]
    assert take(tmp_path).files == ["blue.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blue.mp4", "incoming", "red.mp4"]


def test_a_bucket_that_cannot_be_read_is_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"^nonesuch://bucket: need .*, got: .*\.") as failure:
        collect("nonesuch://bucket", tmp_path / "incoming", "monday", 0, 20.0)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "incoming/bucket.json").exists()
