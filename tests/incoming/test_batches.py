"""hcmi.incoming.batches on real files: what is complete, what is new, by content and not by time."""

import os
import shutil
from pathlib import Path

import pytest

from hcmi.incoming import Ledger, arrivals, complete, find_batches, look

HOUR = 3600.0           # no file of a test is as old: only two equal looks can show that a batch is complete


def make_batch(incoming: Path, name: str, clips: int = 2) -> Path:
    (incoming / name / "videos").mkdir(parents=True)
    for number in range(clips):
        (incoming / name / "videos" / f"{number}.mp4").write_bytes(b"%d" % number * 50)
    return incoming / name


def judge(incoming: Path, reports: Path, quiet_s: float = 0) -> list[str]:
    """Names of the batches that a run of the watch would judge; it then has."""
    ledger, judged = Ledger(reports), []
    for folder, seen in complete(find_batches(incoming), quiet_s, patience_s=0, wait=lambda seconds: None):
        content = ledger.content(folder, seen)
        if content not in ledger.verdicts:
            ledger.record(content, folder.name, "ok")
            judged.append(folder.name)
    return judged


def test_batches_are_the_folders_with_files_when_others_lie_there_too(tmp_path):
    make_batch(tmp_path, "b")
    make_batch(tmp_path, "a")
    make_batch(tmp_path, ".being_copied")
    (tmp_path / "empty/videos").mkdir(parents=True)
    (tmp_path / "README.md").write_text("no batch")
    assert [folder.name for folder in find_batches(tmp_path)] == ["a", "b"]
    assert find_batches(tmp_path / "missing") == []


def test_batches_that_the_pipeline_makes_have_not_arrived(tmp_path):
    for name in ("mine", "scenes_same", "scenes_shifted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    assert [folder.name for folder in arrivals(tmp_path)] == ["mine"]


def test_each_batch_is_judged_once_when_several_arrive_together(tmp_path):
    for clips, name in enumerate(("one", "two", "three"), 1):
        make_batch(tmp_path / "in", name, clips)
    assert judge(tmp_path / "in", tmp_path) == ["one", "three", "two"]
    assert judge(tmp_path / "in", tmp_path) == []


def test_a_batch_is_new_by_content_when_its_times_are_old_or_its_name_changes(tmp_path):
    make_batch(tmp_path / "in", "first")
    assert judge(tmp_path / "in", tmp_path) == ["first"]
    old = make_batch(tmp_path / "elsewhere", "old", clips=3)
    for path in (old / "videos").iterdir():
        os.utime(path, (1e9, 1e9))
    shutil.copytree(old, tmp_path / "in/old", copy_function=shutil.copy2)       # as `cp -p`
    assert judge(tmp_path / "in", tmp_path) == ["old"]
    os.utime(tmp_path / "in/old/videos/0.mp4")
    (tmp_path / "in/old").rename(tmp_path / "in/renamed")
    assert judge(tmp_path / "in", tmp_path) == []


def test_a_batch_is_judged_again_when_its_content_changes_and_size_and_time_do_not(tmp_path):
    batch = make_batch(tmp_path / "in", "first")
    assert judge(tmp_path / "in", tmp_path) == ["first"]
    video = batch / "videos/0.mp4"
    status = video.stat()
    video.write_bytes(b"x" * status.st_size)
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert judge(tmp_path / "in", tmp_path) == ["first"]


def test_a_growing_batch_is_not_complete_until_its_copy_ends(tmp_path):
    """The copy continues between the looks; each look except the last finds more."""
    batch = make_batch(tmp_path, "growing", clips=1)
    steps = iter([lambda: (batch / "videos/1.mp4").write_bytes(b"half"),
                  lambda: (batch / "videos/1.mp4").write_bytes(b"half and half"),
                  lambda: (batch / "captions.csv").write_text("video,caption\n"),
                  lambda: None])
    found = list(complete([batch], HOUR, patience_s=10 * HOUR, wait=lambda seconds: next(steps)()))
    assert [folder.name for folder, _ in found] == ["growing"]
    assert sorted(found[0][1]) == [b"captions.csv", b"videos/0.mp4", b"videos/1.mp4"]
    assert next(steps, None) is None


def test_a_batch_that_never_stops_growing_is_left_when_patience_ends(tmp_path):
    make_batch(tmp_path, "whole")
    growing = make_batch(tmp_path, "growing")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        (growing / f"{len(waits)}.mp4").touch()

    found = [folder.name for folder, _ in complete(find_batches(tmp_path), HOUR, patience_s=3 * HOUR, wait=wait)]
    assert found == ["whole"]
    assert waits == [HOUR] * 3


def test_a_quiet_batch_is_complete_at_once_when_it_has_long_been_there(tmp_path):
    batch = make_batch(tmp_path, "quiet")

    def wait(seconds: float) -> None:
        raise AssertionError("waited")

    assert [folder for folder, _ in complete([batch], quiet_s=0, patience_s=HOUR, wait=wait)] == [batch]


def test_a_batch_is_complete_after_a_second_look_when_its_times_lie_ahead(tmp_path):
    batch = make_batch(tmp_path, "ahead")
    for path in (batch / "videos").iterdir():
        os.utime(path, (4e9, 4e9))      # the clock has been set back since
    waits: list[float] = []
    assert [folder for folder, _ in complete([batch], HOUR, patience_s=HOUR, wait=waits.append)] == [batch]
    assert waits == [HOUR]


def test_a_batch_that_was_made_whole_is_complete_at_once_and_one_that_somebody_adds_to_is_not(tmp_path):
    batch = tmp_path / "monday"
    batch.mkdir()
    (batch / "a.mp4").write_text("a")
    (batch / "batch.json").write_text("{}")
    waited: list[float] = []
    assert [folder for folder, _ in complete([batch], HOUR, 0, waited.append)] == [batch]
    assert waited == []
    while look(batch).get(b"b.mp4", (0, 0))[1] <= look(batch)[b"batch.json"][2]:       # a clock has ticks
        (batch / "b.mp4").write_text("b")
    assert [folder for folder, _ in complete([batch], HOUR, 0, waited.append)] == [batch]
    assert waited == [HOUR]


def test_contents_are_read_once_when_nothing_changes(tmp_path, monkeypatch):
    batch = make_batch(tmp_path / "in", "first")
    content = Ledger(tmp_path).content(batch, look(batch))
    monkeypatch.setattr("hcmi.incoming.batches._digest", None)      # reading the files fails from now on
    assert Ledger(tmp_path).content(batch, look(batch)) == content


def test_a_file_that_vanishes_while_it_is_looked_at_is_passed_over(tmp_path, monkeypatch):
    batch = make_batch(tmp_path, "moving")
    walk = os.walk

    def then_gone(*given, **named):
        listed = list(walk(*given, **named))
        (batch / "videos/0.mp4").unlink()
        return listed

    monkeypatch.setattr(os, "walk", then_gone)
    assert list(look(batch)) == [b"videos/1.mp4"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"verdicts": 3}'])
def test_a_broken_ledger_is_an_empty_one(tmp_path, text):
    (tmp_path / "judged.json").write_text(text)
    make_batch(tmp_path / "in", "first")
    assert judge(tmp_path / "in", tmp_path) == ["first"]
    assert judge(tmp_path / "in", tmp_path) == []


def test_names_and_kinds_that_nobody_would_choose_are_seen(tmp_path):
    batch = make_batch(tmp_path / "in", "odd")
    (batch / "broken").symlink_to("nowhere")
    os.mkfifo(batch / "pipe.mp4")
    Path(os.fsdecode(os.fsencode(batch) + b"/na\xefve.mp4")).write_bytes(b"x")
    assert judge(tmp_path / "in", tmp_path) == ["odd"]
    assert judge(tmp_path / "in", tmp_path) == []


@pytest.mark.parametrize("captions", [True, False])
def test_a_batch_whose_videos_are_a_link_to_a_folder_is_judged_and_again_when_the_folder_grows(tmp_path, captions):
    disk = make_batch(tmp_path, "disk") / "videos"
    batch = tmp_path / "in/linked"
    batch.mkdir(parents=True)
    (batch / "videos").symlink_to(disk)
    (disk / "again").symlink_to(disk)       # a circle
    if captions:
        (batch / "captions.csv").write_text("video,caption\n0.mp4,a film\n")
    assert judge(tmp_path / "in", tmp_path) == ["linked"]
    assert judge(tmp_path / "in", tmp_path) == []
    (disk / "new.mp4").write_bytes(b"new")
    assert judge(tmp_path / "in", tmp_path) == ["linked"]
    assert sorted(look(batch)) == [b"captions.csv"] * captions + [b"videos/0.mp4", b"videos/1.mp4", b"videos/new.mp4"]


def test_a_hidden_file_counts_because_a_copy_may_still_write_it(tmp_path):
    batch = make_batch(tmp_path, "batch", clips=1)
    (batch / "videos/.1.mp4.part").write_bytes(b"half")
    assert sorted(look(batch)) == [b"videos/.1.mp4.part", b"videos/0.mp4"]
