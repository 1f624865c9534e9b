"""New files become a batch: whole ones alone, by content, once, and unreadable ones are listed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from model_world import write_film

import hcmi.files
from hcmi.errors import DataError
from hcmi.incoming import Collected, collect
from hcmi.video import DecoderPool

COLOURS = ("red", "blue", "green", "yellow")


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for colour in COLOURS:
        write_film(folder / f"{colour}.mp4", [colour, "black"], frames_each=4)
    return folder


@pytest.fixture
def inbox(films, tmp_path) -> Path:
    """red.mp4 and blue.mp4 with captions."""
    (tmp_path / "inbox").mkdir()
    for name in ("red.mp4", "blue.mp4"):
        shutil.copy(films / name, tmp_path / "inbox" / name)
    (tmp_path / "inbox/captions.csv").write_text('video,caption\nred.mp4,"a red, film"\nlater.mp4,a film to come\n')
    return tmp_path / "inbox"


def take(inbox: Path, quiet_s: float = 0, wait=lambda seconds: None) -> Collected:
    return collect(inbox, inbox.parent / "incoming", "monday", quiet_s, 20.0, wait)


def batches(inbox: Path) -> dict[str, list[str]]:
    """Batch -> its videos."""
    return {path.name: sorted(video.name for video in path.glob("videos/*"))
            for path in sorted((inbox.parent / "incoming").iterdir()) if path.is_dir()}


def test_new_files_become_one_batch_with_their_captions_and_only_once(inbox, films):
    found = take(inbox)
    assert (found.batch, found.files, found.waiting, found.quarantined) == ("monday", ["blue.mp4", "red.mp4"], [], {})
    assert (inbox.parent / "incoming/monday/captions.csv").read_text().splitlines() == [
        "video,caption,start,end", 'red.mp4,"a red, film",,']
    assert take(inbox).batch is None
    shutil.copy(films / "green.mp4", inbox)
    assert take(inbox).batch == "monday-2"
    assert batches(inbox) == {"monday": ["blue.mp4", "red.mp4"], "monday-2": ["green.mp4"]}


def test_file_is_new_by_content_and_not_by_name_or_time(inbox, films):
    take(inbox)
    shutil.copy(films / "red.mp4", inbox / "again.mp4")
    os.utime(inbox / "blue.mp4", (1, 1))
    assert take(inbox).batch is None
    shutil.copy2(films / "green.mp4", inbox / "red.mp4")        # a known name with other bytes and old times
    assert take(inbox).files == ["red.mp4"]
    shutil.rmtree(inbox.parent / "incoming/monday")             # retention may delete a batch
    assert take(inbox).batch is None


def test_file_that_changes_between_two_looks_is_left_to_the_next_run(inbox, films):
    data = (films / "green.mp4").read_bytes()
    (inbox / "green.mp4").write_bytes(data[:100])

    def go_on_writing(seconds: float) -> None:
        assert seconds == 60
        (inbox / "green.mp4").write_bytes(data[:200])

    found = take(inbox, 60, go_on_writing)
    assert (found.files, found.waiting) == (["blue.mp4", "red.mp4"], ["green.mp4"])
    (inbox / "green.mp4").write_bytes(data)
    assert take(inbox, 60).files == ["green.mp4"]


def test_files_are_taken_when_their_times_lie_ahead(inbox):
    """The clock has been set back since they were written: only a second look says whether they are whole."""
    os.utime(inbox / "red.mp4", (4e9, 4e9))
    waits: list[float] = []
    assert take(inbox, 60, waits.append).files == ["blue.mp4", "red.mp4"]
    assert waits == [60]


def test_unreadable_file_is_listed_once_and_taken_when_it_is_replaced(inbox, films):
    (inbox / "broken.mp4").write_bytes(b"not a video" * 100)
    found = take(inbox)
    assert found.files == ["blue.mp4", "red.mp4"]
    assert list(found.quarantined) == ["broken.mp4"]
    lines = (inbox.parent / "incoming/quarantine.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["path"]).name for line in lines] == ["broken.mp4"]
    assert take(inbox).quarantined == {}
    shutil.copy(films / "yellow.mp4", inbox / "broken.mp4")
    assert take(inbox).files == ["broken.mp4"]


def test_empty_file_and_link_to_nothing_are_left_out_with_their_reason(inbox, films):
    """An empty file is listed once, as every file of which each reading gives the same; the others may come back."""
    (inbox / "empty.mp4").touch()
    (inbox / "empty_too.mp4").touch()
    (inbox / "link.mp4").symlink_to(inbox.parent / "gone.mp4")
    (inbox / "folder.mp4").mkdir()
    found = take(inbox)
    assert found.files == ["blue.mp4", "red.mp4"]
    assert {name: reason.partition("got ")[2].partition(".")[0] for name, reason in found.quarantined.items()} == {
        "empty.mp4": "zero bytes", "empty_too.mp4": "zero bytes", "link.mp4": "no such file",
        "folder.mp4": "not a regular file, or no permission to read it"}
    lines = (inbox.parent / "incoming/quarantine.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["path"]).name for line in lines] == ["empty.mp4", "empty_too.mp4"]
    found = take(inbox)
    assert (sorted(found.quarantined), found.refused, found.taken) == (["folder.mp4", "link.mp4"], 2, 2)
    shutil.copy(films / "green.mp4", inbox / "empty.mp4")
    shutil.copy(films / "yellow.mp4", inbox.parent / "gone.mp4")
    assert take(inbox).files == ["empty.mp4", "link.mp4"]


def test_empty_file_is_left_to_the_next_run_when_it_grows(inbox, films):
    (inbox / "green.mp4").touch()
    found = take(inbox, 60, lambda seconds: (inbox / "green.mp4").write_bytes(b"\0"))
    assert (found.files, found.waiting, found.quarantined) == (["blue.mp4", "red.mp4"], ["green.mp4"], {})


@pytest.mark.parametrize(("age_s", "waited"), [(0, [60]), (100, [])])
def test_wrong_captions_change_nothing_when_a_file_cannot_be_read(inbox, monkeypatch, age_s, waited):
    """They are refused before the wait where they are old. What is wrong with the file is said by a later run."""
    (inbox / "broken.mp4").write_bytes(b"not a video" * 100)
    table, waits = inbox / "captions.csv", []
    table.write_text("wrong,header\n")
    now = time.time() + age_s
    monkeypatch.setattr("hcmi.incoming.inbox.time", SimpleNamespace(time=lambda: now))
    with pytest.raises(DataError, match=r"captions\.csv row 1"):
        take(inbox, 60, waits.append)
    assert waits == waited
    assert not (inbox.parent / "incoming/quarantine.jsonl").exists()
    table.unlink()
    assert list(take(inbox).quarantined) == ["broken.mp4"]


def test_nothing_is_taken_twice_when_the_notes_are_lost(inbox):
    take(inbox)
    for damage in ("", "{", None):
        notes = inbox.parent / "incoming/inbox.json"
        notes.unlink() if damage is None else notes.write_text(damage)
        assert take(inbox).batch is None
    assert list(batches(inbox)) == ["monday"]


def test_folder_and_captions_must_be_right(inbox):
    with pytest.raises(DataError, match="need a folder of new videos, got none"):
        take(inbox / "missing")
    with pytest.raises(DataError, match=r"red\.mp4: need a folder of new videos, got a file\. Name the folder"):
        take(inbox / "red.mp4")
    (inbox / "captions.csv").write_text("wrong,header\n")
    with pytest.raises(DataError, match=r"captions\.csv"):
        take(inbox)
    assert batches(inbox) == {}
    (inbox / "captions.csv").unlink()
    assert take(inbox).batch == "monday"


def rows(inbox: Path, batch: str = "monday") -> list[str]:
    return (inbox.parent / "incoming" / batch / "captions.csv").read_text(errors="surrogateescape").splitlines()[1:]


def test_nothing_is_taken_while_the_captions_are_being_written(inbox):
    table = inbox / "captions.csv"
    whole = "video,caption\nred.mp4,a red film turns black\nblue.mp4,a blue film\n"
    table.write_text(whole[:30])

    def go_on_writing(seconds: float) -> None:
        table.write_text(whole[:40])

    assert take(inbox, 60, go_on_writing) == Collected(waiting=["captions.csv"])
    table.write_text(whole)
    assert take(inbox, 60).files == ["blue.mp4", "red.mp4"]
    assert rows(inbox) == ["blue.mp4,a blue film,,", "red.mp4,a red film turns black,,"]


def test_captions_that_come_after_their_videos_join_the_batch(inbox, films):
    (inbox / "captions.csv").unlink()
    take(inbox)
    (inbox / "captions.csv").write_text("video,caption\nred.mp4,a red film\ngreen.mp4,a green film\n")
    shutil.copy(films / "green.mp4", inbox)
    assert take(inbox).captioned == ["monday"]
    assert (rows(inbox), rows(inbox, "monday-2")) == (["red.mp4,a red film,,"], ["green.mp4,a green film,,"])
    (inbox / "captions.csv").write_text("video,caption\nred.mp4,another\nblue.mp4,a blue film\n")
    assert take(inbox).captioned == ["monday"]
    assert rows(inbox) == ["red.mp4,a red film,,", "blue.mp4,a blue film,,"]     # what is there stays
    again = take(inbox)
    remark, = again.remarks
    assert remark.startswith("captions.csv: rows of red.mp4 are not added")
    assert again == Collected(taken=3, remarks=[remark])


@pytest.mark.parametrize(("on_disk", "in_table"), [("cafe\u0301.mp4", "caf\u00e9.mp4"), ("caf\udce9.mp4",) * 2],
                         ids=["NFD", "Latin-1"])
def test_captions_follow_files_whose_names_are_written_in_another_way(inbox, films, on_disk, in_table):
    shutil.copy(films / "green.mp4", inbox / on_disk)
    (inbox / "captions.csv").write_text(f"video,caption\n{in_table},a green film\n", errors="surrogateescape")
    assert on_disk in take(inbox).files
    assert rows(inbox) == [f"{on_disk},a green film,,"]


def test_files_that_go_away_while_they_are_looked_at_are_taken_by_the_next_run(inbox, monkeypatch):
    start = DecoderPool._start

    def leave(*given):
        if inbox.exists():
            inbox.rename(inbox.with_name("away"))
        return start(*given)

    with monkeypatch.context() as unplugged:
        unplugged.setattr(DecoderPool, "_start", leave)
        found = take(inbox)
    assert (found.batch, sorted(found.quarantined)) == (None, ["blue.mp4", "red.mp4"])
    inbox.with_name("away").rename(inbox)
    assert take(inbox).files == ["blue.mp4", "red.mp4"]


KILLED = """
import os, signal, sys
from pathlib import Path
from hcmi.incoming import collect

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "copy":
    import shutil
    shutil.copyfile = die
else:
    Path.rename = die
collect(sys.argv[1], sys.argv[2], "monday", 0, 20.0)
"""


def take_and_be_killed(inbox: Path, at: str) -> str:
    """The process is killed while it copies ("copy"), or before the batch gets its name. Returns what it leaves."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(inbox), str(inbox.parent / "incoming"), at], check=False)
    assert ended.returncode == -signal.SIGKILL
    left, = (path.name for path in (inbox.parent / "incoming").iterdir() if path.is_dir())
    assert left.startswith(".")
    return left


@pytest.mark.parametrize("noted", [False, True], ids=["unnoted", "noted by an earlier hcmi"])
def test_files_are_taken_when_the_run_before_was_killed_as_its_batch_got_its_name(inbox, noted):
    left = take_and_be_killed(inbox, "rename")
    notes = inbox.parent / "incoming/inbox.json"
    names = json.loads((inbox.parent / "incoming" / left / "batch.json").read_text())
    assert sorted(names.values()) == ["blue.mp4", "red.mp4"]
    if noted:
        notes.write_text(json.dumps({"contents": dict.fromkeys(names, left), "seen": {}}))
    assert take(inbox).files == ["blue.mp4", "red.mp4"]
    assert set(json.loads(notes.read_text())["contents"].values()) == {"monday"}


def test_batch_that_a_person_puts_there_during_the_copy_stays_and_the_new_one_gets_the_next_name(inbox, monkeypatch):
    """Folders with and without files, a file and a link to nothing all keep their names."""
    incoming, real = inbox.parent / "incoming", shutil.copyfile

    def copy(*given):
        if not (incoming / "monday").exists():
            (incoming / "monday").mkdir()
            (incoming / "monday/mine.mp4").write_text("mine")
            (incoming / "monday-2").mkdir()
            (incoming / "monday-3").write_text("a file")
            (incoming / "monday-4").symlink_to("nowhere")
        return real(*given)

    monkeypatch.setattr(shutil, "copyfile", copy)
    assert take(inbox).batch == "monday-5"
    assert [path.name for path in (incoming / "monday").iterdir()] == ["mine.mp4"]
    assert (list((incoming / "monday-2").iterdir()), (incoming / "monday-3").read_text()) == ([], "a file")
    assert os.readlink(incoming / "monday-4") == "nowhere"
    assert not [path.name for path in incoming.iterdir() if path.name.endswith((".tmp", ".old"))]


def test_no_batch_appears_when_every_file_changes_during_the_copy(inbox, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: Path(target).write_text("changed"))
    assert (take(inbox).batch, batches(inbox)) == (None, {})
    monkeypatch.undo()
    assert take(inbox).batch == "monday"


def test_what_a_killed_copy_left_is_deleted_when_the_run_of_another_day_finds_nothing_new(inbox, monkeypatch):
    left = take_and_be_killed(inbox, "copy")
    incoming = inbox.parent / "incoming"
    (incoming / ".mine.copied00.tmp").mkdir()       # a person's own, by chance of this form
    shutil.rmtree(inbox)
    inbox.mkdir()
    monkeypatch.setattr(hcmi.files, "LEFT_SECONDS", 0)
    assert collect(inbox, incoming, "tuesday", 0, 20.0) == Collected()
    assert left not in os.listdir(incoming)
    assert (incoming / ".mine.copied00.tmp").is_dir()


def table(inbox: Path, *lines: str) -> None:
    (inbox / "captions.csv").write_text("\n".join(["video,caption", *lines, ""]))


@pytest.fixture
def cam(inbox, films) -> Path:
    """cam.mp4 alone, a red film, has been taken without a caption."""
    for path in inbox.iterdir():
        path.unlink()
    shutil.copy(films / "red.mp4", inbox / "cam.mp4")
    assert take(inbox).files == ["cam.mp4"]
    return inbox


def test_captions_come_to_a_video_that_has_been_removed_and_later_rows_too(cam):
    (cam / "cam.mp4").unlink()
    for lines in (["cam.mp4,a red film"], ["cam.mp4,a red film", "cam.mp4,red turns black"]):
        table(cam, *lines)
        assert take(cam).captioned == ["monday"]
        assert rows(cam) == [f"{line},," for line in lines]
        assert take(cam) == Collected()


@pytest.mark.parametrize("state", ["growing", "unreadable", "new"])
def test_captions_are_those_of_the_file_that_is_there_and_not_of_an_older_film_of_its_name(cam, films, state):
    whole = (films / "green.mp4").read_bytes()
    (cam / "cam.mp4").write_bytes({"growing": whole[:100], "unreadable": b"no film", "new": whole}[state])
    table(cam, "cam.mp4,a green film")
    os.utime(cam / "captions.csv", (1, 1))

    def write(seconds: float) -> None:
        if state == "growing":
            (cam / "cam.mp4").write_bytes(whole[:200])

    found = take(cam, 60, write)
    assert (found.batch, found.captioned) == ({"new": "monday-2"}.get(state), [])
    (cam / "cam.mp4").write_bytes(whole)
    take(cam)
    assert not (cam.parent / "incoming/monday/captions.csv").exists()
    assert rows(cam, "monday-2") == ["cam.mp4,a green film,,"]


def test_captions_of_a_film_to_come_wait_for_it_when_an_older_one_of_its_name_has_other_captions(cam, films):
    table(cam, "cam.mp4,a red film")
    assert take(cam).captioned == ["monday"]
    (cam / "cam.mp4").unlink()
    table(cam, "cam.mp4,a green film")
    found = take(cam)
    assert found.captioned == []
    assert found.remarks == [
        "captions.csv: rows of cam.mp4 are not added: the video that was taken under this name has other captions, or "
        "there are several. Write them into captions.csv of its batch; rows of a video to come wait for it."]
    shutil.copy(films / "green.mp4", cam / "cam.mp4")
    assert take(cam).remarks == []
    assert (rows(cam), rows(cam, "monday-2")) == (["cam.mp4,a red film,,"], ["cam.mp4,a green film,,"])
    (cam / "cam.mp4").unlink()
    assert take(cam) == Collected()


def test_captions_find_a_removed_video_when_its_name_is_written_in_another_way(cam, films):
    shutil.copy(films / "green.mp4", cam / "cafe\u0301.mp4")
    take(cam)
    (cam / "cafe\u0301.mp4").unlink()
    table(cam, "caf\u00e9.mp4,a green film")
    assert take(cam).captioned == ["monday-2"]
    assert rows(cam, "monday-2") == ["cafe\u0301.mp4,a green film,,"]


def test_captions_are_not_guessed_when_two_films_of_the_name_were_taken_and_none_is_there(cam, films):
    shutil.copy(films / "green.mp4", cam / "cam.mp4")
    assert take(cam).batch == "monday-2"
    (cam / "cam.mp4").unlink()
    table(cam, "cam.mp4,a film")
    found = take(cam)
    assert (found.captioned, len(found.remarks)) == ([], 1)
    shutil.copy(films / "red.mp4", cam / "cam.mp4")         # put there again: now it is clear
    assert take(cam) == Collected(taken=1, captioned=["monday"])
    assert rows(cam) == ["cam.mp4,a film,,"]


def test_rows_are_added_to_those_that_a_video_has_and_one_that_was_corrected_in_the_batch_stays(cam):
    table(cam, "cam.mp4,a red film")
    take(cam)
    table(cam, "cam.mp4,a red film", 'cam.mp4,"red,\ntwice  told"')
    assert take(cam) == Collected(taken=1, captioned=["monday"])
    assert rows(cam) == ["cam.mp4,a red film,,", 'cam.mp4,"red, twice told",,']
    assert take(cam) == Collected(taken=1)
    (cam.parent / "incoming/monday/captions.csv").write_text("video,caption\ncam.mp4,a dark red film\n")
    assert take(cam).captioned == []
    assert rows(cam) == ["cam.mp4,a dark red film"]


def test_captions_follow_a_known_file_when_it_is_renamed(cam, films):
    table(cam, "cam.mp4,a red film")
    take(cam)
    (cam / "cam.mp4").rename(cam / "first.mp4")
    table(cam, "cam.mp4,a red film", "first.mp4,red turns black")
    assert take(cam) == Collected(taken=1, captioned=["monday"])
    assert rows(cam) == ["cam.mp4,a red film,,", "cam.mp4,red turns black,,"]


def test_captions_of_equal_files_are_those_of_the_one_that_is_taken(inbox, films):
    shutil.copy(films / "red.mp4", inbox / "z.mp4")
    table(inbox, "z.mp4,a red film", "red.mp4,red turns black", "z.mp4,red turns black")
    assert take(inbox).files == ["blue.mp4", "red.mp4"]
    assert rows(inbox) == ["red.mp4,a red film,,", "red.mp4,red turns black,,"]
    assert take(inbox) == Collected(taken=3)


def test_videos_beside_the_folder_of_videos_are_named_and_not_taken(inbox, films):
    """Not those that a link in the folder leads to, which are taken."""
    (inbox / "videos").mkdir()
    (inbox / "more").mkdir()
    (inbox / "blue.mp4").rename(inbox / "videos/blue.mp4")
    shutil.copy(films / "green.mp4", inbox / "more/green.mp4")
    (inbox / "videos/green").symlink_to(inbox / "more")
    shutil.copy(films / "yellow.mp4", inbox)
    found = take(inbox)
    assert found.files == ["blue.mp4", "green/green.mp4"]
    assert found.remarks == ["red.mp4 and 1 more are not taken, because they lie beside the folder videos/. Move them "
                             "into it."]
    for name in ("red.mp4", "yellow.mp4"):
        (inbox / name).rename(inbox / "videos" / name)
    found = take(inbox)
    assert (found.files, found.remarks) == (["red.mp4", "yellow.mp4"], [])
