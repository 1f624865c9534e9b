"""`hcmi add`: new videos are found, once, and what is accepted joins every release that is served.

A function stands in for the report, whose verdicts need more clips than this project has.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from model_world import write_film
from release_world import put_batch
from search_world import call_hcmi
from video_files import claim_seconds, write_grey, write_pictures

import hcmi.ingest.stage as stage
from hcmi.dataset import batch_clips
from hcmi.encode import encode_clips
from hcmi.files import lock
from hcmi.index import SearchIndex
from hcmi.releases import Releases
from hcmi.shards import clip_batches
from hcmi.video import to_square

CLIPS = 30      # of the project's export


def report_of(verdicts: dict[str, str]) -> dict:
    """What a drift report holds of batches; the machine is in trouble where the verdict is `machine`."""
    return {"batches": [{"batch": name, "verdict": verdict, "why": "So it is.", "reason": verdict}
                        for name, verdict in verdicts.items()]}


@pytest.fixture(autouse=True)
def judged(monkeypatch) -> list[str]:
    """The batches that are judged; the verdict on a batch is the part of its name before the first dot."""
    names: list[str] = []

    def drift(*, batches, model_dir, export_dir, out_dir, **rest) -> dict:
        assert Path(model_dir).parent == Path(export_dir).parent
        assert Path(model_dir).parts[-3:-1] == ("releases", "v1")
        names.extend(batches)
        return report_of({name: name.partition(".")[0].replace("_", " ") for name in batches})

    monkeypatch.setattr(stage, "drift", drift)
    return names


@pytest.fixture
def new(tmp_path) -> list[Path]:
    return [write_film(tmp_path / f"new/new_{one}_{other}.mp4", [one, other], frames_each=8)
            for one, other in [("red", "green"), ("blue", "white"), ("black", "yellow")]]


def add(*options: str) -> dict:
    return json.loads(call_hcmi("add", "--quiet-seconds", "0", "--json", *options).stdout)


def found(query: str = "a red film") -> set[str]:
    hits = json.loads(call_hcmi("search", query, "--top", "100", "--json").stdout)
    return {Path(hit["path"]).name for hit in hits}


def test_new_videos_of_a_folder_are_found_and_nothing_is_done_twice(here, new, judged, monkeypatch):
    inbox = here / "inbox"
    put_batch(here, "scenes_same", new)         # the pipeline makes this one itself: nobody has sent it
    shutil.copytree(new[0].parent, inbox)
    (inbox / "captions.csv").write_text(f"video,caption\n{new[0].name},a red film then green\n")
    monkeypatch.setattr(stage, "drift", lambda *, batches, **rest: judged.extend(batches)
                        or report_of(dict.fromkeys(batches, "ok")))
    got = add(str(inbox))
    [batch] = got["verdicts"]
    assert (got["batch"], got["files"], got["added"]) == (batch, 3, {batch: 3})
    assert got["verdicts"][batch].startswith("ok: added to the served index")
    assert {film.name for film in new} <= found()
    generation = SearchIndex.open("releases/current/export/index").generation
    assert add(str(inbox)) == {"batch": None, "files": 0, "waiting": [], "quarantined": {}, "captioned": [],
                               "taken": 3, "refused": 0, "remarks": [], "growing": [], "verdicts": {}, "added": {}}
    assert judged == [batch]
    assert SearchIndex.open("releases/current/export/index").generation == generation
    [entry] = json.loads(Path("data/accepted.json").read_text())
    assert (entry["batch"], entry["verdict"]) == (batch, "ok")
    assert json.loads(Path("data/searched.json").read_text()) == {entry["content"]: batch}


def test_text_counts_what_was_left_out_when_nothing_is_new(here, new):
    shutil.copytree(new[0].parent, here / "inbox")
    (here / "inbox/empty.mp4").touch()
    typed = ["add", "inbox", "--quiet-seconds", "0"]
    assert "left out: inbox/empty.mp4: need a video that can be decoded, got zero bytes." in call_hcmi(*typed).stdout
    assert call_hcmi(*typed).stdout.splitlines()[:2] == [
        "no new file; in batches already: 3",
        "left out as before: 1 file that cannot be read; see data/incoming/quarantine.jsonl"]


def test_text_names_a_video_that_is_not_taken_because_it_lies_beside_the_others(here, new):
    (here / "inbox").mkdir()
    shutil.copytree(new[0].parent, here / "inbox/videos")
    shutil.copy(new[0], here / "inbox/beside.mp4")
    assert call_hcmi("add", "inbox", "--quiet-seconds", "0").stdout.splitlines()[1] == (
        "beside.mp4 is not taken, because it lies beside the folder videos/. Move it into it.")


def test_verdict_decides_and_a_person_may_decide_otherwise(here, new):
    for name, film in zip(("changed.1", "search_hurt.1", "cannot_tell.1"), new, strict=True):
        put_batch(here, name, [film])
    got = add()
    assert got["added"] == {"changed.1": 1}
    assert new[0].name in found()
    assert not {new[1].name, new[2].name} & found()
    assert [entry["batch"] for entry in json.loads(Path("data/accepted.json").read_text())] == [
        "changed.1", "search_hurt.1"]
    assert add("--batch", "cannot_tell.1")["added"] == {"cannot_tell.1": 1}
    assert new[2].name in found()
    assert call_hcmi("add", "--batch", "other", code=1).stderr.startswith(
        "hcmi: data/incoming: need a batch called 'other', got cannot_tell.1, changed.1, search_hurt.1.")


@pytest.mark.parametrize(("make", "reason"), [
    (lambda path: path.write_bytes(b"not a video"), "need a video that can be decoded"),
    (lambda path: claim_seconds(write_grey(path), 12 * 3600.0), "got more than 10 hours")], ids=["broken", "endless"])
def test_batch_of_nothing_usable_is_refused_and_stops_no_later_call(here, new, make, reason):
    put_batch(here, "ok.1", new[:1])
    put_batch(here, "cannot_tell.2", new[1:2])
    [film] = Path("data/incoming/cannot_tell.2/videos").iterdir()
    film.unlink()
    make(film.with_name("unusable.mkv"))
    before = Path("data/accepted.json").read_bytes()
    said = call_hcmi("add", "--batch", "ok.1", "--batch", "cannot_tell.2", code=1).stderr
    assert reason in said.splitlines()[-1]
    assert Path("data/accepted.json").read_bytes() == before
    assert add("--batch", "ok.1")["added"] == {"ok.1": 1}


def test_batch_that_a_person_names_is_read_once(here, new, monkeypatch):
    put_batch(here, "cannot_tell.1", new)
    fill, read = sys.modules["hcmi.ingest.fill"], []       # `fill` is a function too
    monkeypatch.setattr(fill, "batch_clips", lambda folder, *rest: read.append(folder.name)
                        or batch_clips(folder, *rest))
    assert add("--batch", "cannot_tell.1")["added"] == {"cannot_tell.1": 3}
    assert read == ["cannot_tell.1"]


def test_batch_is_judged_again_when_the_machine_was_in_trouble(here, new, judged):
    put_batch(here, "machine.1", new[:1])
    assert add()["verdicts"] == {"machine.1": "machine: So it is. It is judged again the next time."}
    add()
    assert judged == ["machine.1", "machine.1"]


def test_two_batches_with_files_of_one_name_are_both_found(here, new):
    for batch, film in zip(("ok.1", "ok.2"), new, strict=False):
        put_batch(here, batch, [film])
        (here / "data/incoming" / batch / "videos" / film.name).rename(
            here / "data/incoming" / batch / "videos/same.mp4")
    assert add()["added"] == {"ok.1": 1, "ok.2": 1}
    assert len(SearchIndex.open("releases/current/export/index")) == CLIPS + 2


def test_served_index_stays_and_the_next_call_adds_when_its_disk_was_full(here, new, small_disk):
    disk = small_disk(2**24)
    served = disk / "releases"
    shutil.copytree("releases", served, symlinks=True)
    put_batch(here, "ok.1", new)
    with open(disk / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4096 * (os.statvfs(disk).f_bavail - 1))
    said = call_hcmi("add", "--quiet-seconds", "0", "--releases", str(served), code=1).stderr.splitlines()[-1]
    assert said.startswith(f"hcmi: {served}")
    assert said.endswith("No space left on device. Free space and run again.")
    assert len(SearchIndex.open(served / "current/export/index")) == CLIPS
    (disk / "ballast").unlink()
    assert add("--releases", str(served))["added"] == {"ok.1": 3}
    assert len(SearchIndex.open(served / "current/export/index")) == CLIPS + 3


def test_batch_counts_as_added_after_its_clips_are_in_the_index(here, new, monkeypatch):
    """As if the process had ended between the two: the clips are added again, and nothing changes."""
    put_batch(here, "ok.1", new)
    with monkeypatch.context() as ended:
        ended.setattr("hcmi.releases.Release.note_batch", lambda self, content: None)
        assert add()["added"] == {"ok.1": 3}
    assert Releases("releases").current().batches == []
    assert add("--accepted-only")["added"] == {"ok.1": 3}
    assert len(SearchIndex.open("releases/current/export/index")) == CLIPS + 3


def test_accepted_batches_join_the_release_that_is_served_after_a_rollback(here, new):
    shutil.copytree("releases/v1", "releases/v2")
    Releases("releases").serve("v2")
    record = json.loads(Path("releases/v2/release.json").read_text()) | {"replaces": "v1"}
    Path("releases/v2/release.json").write_text(json.dumps(record))
    put_batch(here, "ok.1", new[:1])
    assert add("--batch", "ok.1")["added"] == {"ok.1": 1}
    call_hcmi("rollback")
    assert new[0].name not in found()
    assert add("--accepted-only")["added"] == {"ok.1": 1}
    assert new[0].name in found()


def test_videos_that_cannot_be_read_are_left_out_and_said(here, new, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "broken.mp4").write_bytes(b"no video" * 200)
    got = add(str(inbox))
    assert got["batch"] is None
    assert list(got["quarantined"]) == ["broken.mp4"]
    put_batch(here, "ok.1", [new[0], inbox / "broken.mp4"])
    with pytest.warns(UserWarning, match=r"videos/broken\.mp4: need a video that can be decoded"):
        assert add()["added"] == {"ok.1": 1}


def test_long_video_without_captions_is_found_by_its_windows(here, new):
    """Films of 1.33 s; one has a caption, which is of the whole film. One claims to last twelve hours."""
    text = (here / "params.yaml").read_text()
    for old, shorter in (("  seconds: 4.0", "  seconds: 0.5"), ("overlap_seconds: 3.0", "overlap_seconds: 0.25"),
                         ("whole_seconds: 30.0", "whole_seconds: 0.6")):
        assert old in text
        text = text.replace(old, shorter)
    (here / "params.yaml").write_text(text)
    endless = claim_seconds(write_grey(here / "endless.mkv"), 12 * 3600.0)
    put_batch(here, "ok.1", [*new[:2], endless], {new[1].name: "a blue film turns white"})
    with pytest.warns(UserWarning, match=r"endless\.mkv: .* got more than 10 hours \(12\.0 hours\)\. Cut it"):
        assert add()["added"] == {"ok.1": 5 + 1}
    hits = json.loads(call_hcmi("search", "red", "--top", "100", "--json").stdout)
    ours = {Path(hit["path"]).name: hit for hit in hits if "ok.1" in hit["path"]}
    assert set(ours) == {new[0].name, new[1].name}
    assert ours[new[0].name]["more"]
    assert ours[new[1].name]["more"] == []


@pytest.mark.parametrize("square", [("crop", "BICUBIC"), ("squash", "BICUBIC")])
def test_frames_of_new_videos_become_square_as_those_of_the_release_did(here, tmp_path, monkeypatch, square):
    """A wide film that is red at its left end: cropped frames lose the red, squashed ones keep it."""
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, :32, 0] = 250
    put_batch(here, "ok.1", [write_pictures(tmp_path / "wide.mp4", (wide for _ in range(16)), fps=12)])
    stats = here / "releases/v1/shards/stats.json"
    stats.write_text(json.dumps(json.loads(stats.read_text()) | {"square": square}))
    frames: list[np.ndarray] = []

    def encode(model, index, batch_size):
        frames.extend(batch.picked.frames_BTHXC.numpy() for batch in clip_batches(index, batch_size, 2))
        return encode_clips(model, index, batch_size)

    monkeypatch.setattr(sys.modules["hcmi.ingest.fill"], "encode_clips", encode)    # `fill` is a function too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # the model of this release crops
        assert add()["added"] == {"ok.1": 1}
    [(clip,)] = [batch[:, 0] for batch in frames]
    expected = to_square(wide, clip.shape[1], square)
    assert np.abs(clip.astype(int) - expected).max() < 30
    assert (expected[..., 0] > 200).any() == (square[0] == "squash")


def test_a_wait_for_a_run_that_judges_is_said(here):
    with lock("reports/watch/.lock"):
        waiting = subprocess.Popen([sys.executable, "-m", "hcmi", "add", "--accepted-only"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        assert waiting.stderr.readline() == "reports/watch: another run judges batches; waiting for its end\n"
    assert waiting.communicate()[0] == "nothing to do: every batch has been judged\n"


def test_add_says_so_in_one_line_when_nothing_is_served(here):
    said = "hcmi: releases: need a release whose index new videos can join, got none. Run `hcmi"
    Path("releases/current").unlink()
    assert call_hcmi("add", code=1).stderr == f"{said} rollback VERSION`.\n"
    shutil.rmtree("releases")
    assert call_hcmi("add", code=1).stderr == f"{said} promote`.\n"


def test_files_that_joined_an_accepted_batch_are_not_searched_before_they_are_judged(here, new):
    batch = put_batch(here, "ok.1", new[:1])
    assert add()["added"] == {"ok.1": 1}
    shutil.copy(new[1], batch / "videos")
    Path("releases/v1/batches.json").unlink()           # as in a release that is new
    assert add("--accepted-only")["added"] == {"ok.1": 1}
    assert new[1].name not in found()
    assert add()["added"] == {"ok.1": 2}
    assert new[1].name in found()


def test_batch_is_added_again_when_the_machine_could_not_decode_it(here, new):
    text = (here / "params.yaml").read_text()
    slow = text.replace("decode_timeout_s: 20", "decode_timeout_s: 0.0001")
    assert slow != text
    (here / "slow.yaml").write_text(slow)
    put_batch(here, "ok.1", new)
    with pytest.warns(UserWarning, match=r"ok\.1: 3 of 3 clips could not be decoded by this machine"):
        assert add("--batch", "ok.1", "--params", "slow.yaml")["added"] == {"ok.1": 0}
    assert add("--accepted-only")["added"] == {"ok.1": 3}
    assert add("--accepted-only")["added"] == {}


def test_batch_that_is_gone_keeps_no_other_waiting(here, new):
    gone = put_batch(here, "ok.1", new[:1])
    add()
    put_batch(here, "ok.2", new[1:])
    Path("releases/v1/batches.json").unlink()
    shutil.rmtree(gone)
    assert "data/incoming/ok.1: need a folder" in call_hcmi("add", "--quiet-seconds", "0", code=1).stderr
    assert new[1].name in found()


def test_add_says_in_words_what_it_did_and_what_to_type_next(here, new, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "broken.mp4").write_bytes(b"no video" * 200)
    put_batch(here, "ok.1", new[:1])
    put_batch(here, "search_hurt.2", new[1:2])
    asked = ("add", "--quiet-seconds", "0", str(inbox))
    left_out, *rest = call_hcmi(*asked).stdout.splitlines()
    assert left_out.startswith("left out: ")
    assert "broken.mp4: need a video that can be decoded" in left_out
    assert rest == [
        "ok.1: ok: added to the served index and to the training data. So it is. Its report: "
        "reports/watch/ok.1/index.html",
        *[line for line in rest if line.startswith("search_hurt.2: search hurt: not added to the served index")],
        "ok.1: 1 clip can be searched now",
        "next: `dvc add data/incoming/ok.1` keeps what was added; `dvc repro`, then `hcmi promote`, trains on it"]
    assert len(rest) == 4
    assert call_hcmi(*asked).stdout == ("no new file\nleft out as before: 1 file that cannot be read; see "
                                        "data/incoming/quarantine.jsonl\n")
    assert call_hcmi("add", "--quiet-seconds", "0").stdout == "nothing to do: every batch has been judged\n"
