"""Accepted batches in the manifest: training clips alone, each content once, none of the evaluation's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from model_world import COLOURS, PARAMS, changed, write_film

from hcmi.dataset import Accepted, accept, batch_clips, build_dataset, is_held_out, read_accepted, read_manifest
from hcmi.errors import DataError

PAIRS = [(one, other) for one in COLOURS for other in COLOURS if one != other][:12]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A data set of three films, and a batch of twelve of which one is a test film of the data set."""
    root = tmp_path_factory.mktemp("accepted")
    lines = ["video,caption,split"]
    for split, colour in zip(("train", "val", "test"), ("red", "green", "blue"), strict=True):
        write_film(root / f"base/videos/{split}.mp4", [colour, colour, colour], frames_each=3)
        lines.append(f"{split}.mp4,a {colour} film,{split}")
    (root / "base/captions.csv").write_text("\n".join(lines) + "\n")
    lines = ["video,caption,split"]
    for number, (one, other) in enumerate(PAIRS):
        write_film(root / f"incoming/monday/videos/{number}.mp4", [one, other], frames_each=3)
        if number:                                              # the first has no caption
            lines.append(f"{number}.mp4,a {one} film then {other},test")
    shutil.copy(root / "base/videos/test.mp4", root / "incoming/monday/videos/copy.mp4")
    lines.append("copy.mp4,a copy,train")
    (root / "incoming/monday/captions.csv").write_text("\n".join(lines) + "\n")
    return root


def build(made: Path, out: Path, accepted: Path) -> dict[str, tuple[str, str]]:
    """video_id -> split and file, of the manifest."""
    config = changed(PARAMS.dataset, name="folder", path=str(made / "base"))
    build_dataset(config=config, manifest_dir=out / "manifest", generated_dir=out / "generated",
                  incoming_dir=made / "incoming", accepted=accepted)
    clips = read_manifest(out / "manifest/manifest.parquet")
    return {clip.video_id: (clip.split, Path(clip.path).name) for clip in clips}


def test_accepted_batches_do_not_stand_for_missing_videos_and_theirs_are_not_counted(made, tmp_path):
    """Eleven clips of a batch let a data set pass of which one video was there and two were missing."""
    path = tmp_path / "accepted.json"
    accept(path, Accepted("monday", "content", "ok", "now"))
    for root in ("base", "incoming"):
        shutil.copytree(made / root, tmp_path / root)
    rows = "".join(f"gone_{number}.mp4,x,train\n" for number in range(4))
    with open(tmp_path / "incoming/monday/captions.csv", "a") as table:
        table.write(rows)
    assert build(tmp_path, tmp_path / "out", path)
    with open(tmp_path / "base/captions.csv", "a") as table:
        table.write(rows)
    with pytest.raises(DataError, match=r"base: need at least 50% of the videos .*, got 3 videos and 4 names without"):
        build(tmp_path, tmp_path / "out", path)


def test_accepted_clips_train_and_the_evaluation_stays_as_it_was(made, tmp_path):
    path = tmp_path / "accepted.json"
    base = build(made, tmp_path / "without", path)
    assert {split for split, _ in base.values()} == {"train", "val", "test"}
    accept(path, Accepted("monday", "content", "ok", "now"))
    found = build(made, tmp_path / "with", path)
    assert base.items() <= found.items()
    new = {name: value for name, value in found.items() if name not in base}
    clips, _ = batch_clips(made / "incoming/monday", PARAMS.dataset)
    assert set(new) == {clip.video_id for clip in clips if clip.captions and not is_held_out(clip)
                        and Path(clip.path).name != "copy.mp4"}
    assert new
    assert {split for split, _ in new.values()} == {"train"}
    assert not list((tmp_path / "with/manifest").glob("base*"))


def test_ids_of_a_batch_are_by_content_and_one_in_four_clips_is_held_out(made, tmp_path):
    clips, _ = batch_clips(made / "incoming/monday", PARAMS.dataset)
    shutil.copytree(made / "incoming/monday", tmp_path / "tuesday")
    again, _ = batch_clips(tmp_path / "tuesday", PARAMS.dataset)
    assert [clip.video_id for clip in again] == [clip.video_id for clip in clips]
    other, _ = batch_clips(made / "base", PARAMS.dataset)
    assert len({clip.video_id for clip in [*clips, *other]}) == len(clips) + len(other)
    held = sum(is_held_out(replace(clips[0], sha256=f"{number}")) for number in range(2000))
    assert 420 < held < 580


def test_batch_that_is_gone_and_list_that_is_broken_are_said_in_one_line(made, tmp_path):
    path = tmp_path / "accepted.json"
    accept(path, Accepted("tuesday", "content", "ok", "now"))
    with pytest.raises(DataError, match=r"tuesday: need the batch that .*accepted\.json lists, got none\."):
        build(made, tmp_path / "out", path)
    assert not (tmp_path / "out/manifest").exists()
    for broken in ("{", json.dumps([{"batch": "a"}])):
        path.write_text(broken)
        with pytest.raises(DataError, match="need a list of accepted batches, got something else"):
            read_accepted(path)
