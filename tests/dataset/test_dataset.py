import hashlib
import json
import os
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmi.cli import main
from hcmi.config import load_params
from hcmi.dataset import build_dataset, read_captions, read_folder, read_manifest
from hcmi.dataset.build_clips import build_clips, clip_id
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.folder import iter_folder
from hcmi.errors import DataError, DecodeError, HcmiError
from hcmi.scenes.write import encode
from hcmi.types import Clip
from hcmi.video import REASONS

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
CONFIG = load_params(PARAMS).dataset.model_copy(update={"name": "folder"})


class OnePlacePool:
    """`DecoderPool` without its processes, which cost half a second a test and have tests of their own."""

    def __init__(self, num_workers, timeout_s, function):
        self.function = function

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, jobs):
        for job in jobs:
            try:
                yield job, self.function(job)
            except DecodeError as error:
                yield job, error


@pytest.fixture(autouse=True)
def _no_processes(request, monkeypatch):
    if "shared_data" not in request.fixturenames and "film_in_processes" not in request.fixturenames:
        monkeypatch.setattr("hcmi.dataset.build_clips.DecoderPool", OnePlacePool)


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """Two seconds, 24 frames: frame i is grey level 10 * i."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    encode(np.stack([np.full((32, 32, 3), 10 * i, np.uint8) for i in range(24)]), path, 12)
    return path


@pytest.fixture
def film_in_processes(film):
    return film


@pytest.fixture
def folder(tmp_path, film):
    """Makes <tmp>/set with the videos a.mp4 and b.mp4 and the given captions.csv (text or bytes)."""
    def make(table=None, videos=("a.mp4", "b.mp4")):
        for name in videos:
            target = tmp_path / "set" / "videos" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(film, target)
        (tmp_path / "set" / "videos").mkdir(parents=True, exist_ok=True)
        if table is not None:
            (tmp_path / "set" / "captions.csv").write_bytes(table.encode() if isinstance(table, str) else table)
        return tmp_path / "set"
    return make


def found_in(folder, config=CONFIG):
    clips, skipped = read_folder(folder, config)
    return {clip.video_id: clip for clip in clips}, skipped


# ------------------------------------------------------------------------------------------------- a table that works

def test_folder_gives_one_clip_a_video_with_all_its_captions_when_rows_repeat_the_video(folder, film):
    clips, skipped = found_in(folder("video,caption\na.mp4,a dog\nb.mp4,\"a cat, asleep\"\na.mp4,the dog runs\n"))
    assert skipped == []
    assert clips["a"].captions == ("a dog", "the dog runs")
    assert clips["b"].captions == ("a cat, asleep",)
    assert (clips["a"].start_s, clips["a"].end_s, clips["a"].duration_s) == (0.0, 2.0, 2.0)
    assert clips["a"].sha256 == hashlib.sha256(film.read_bytes()).hexdigest()


def test_folder_cuts_segments_when_start_and_end_are_given(folder):
    clips, skipped = found_in(folder("video,caption,start,end\na.mp4,first,0,0.5\na.mp4,second,0.5,\na.mp4,again,0.5,\n"
                                     "a.mp4,cut short,1,99\nb.mp4,all of it,,\nb.mp4,too late,2.5,3\n"))
    assert {name: (clip.start_s, clip.end_s, clip.duration_s, clip.captions) for name, clip in clips.items()} == {
        "a_0-500": (0.0, 0.5, 0.5, ("first",)), "a_500-end": (0.5, 2.0, 1.5, ("second", "again")),
        "a_1000-99000": (1.0, 2.0, 1.0, ("cut short",)), "b": (0.0, 2.0, 2.0, ("all of it",))}
    assert [(row.reason, row.video_id) for row in skipped] == [("too_short", "b")]
    assert "need a clip that starts before the end at 2 s, got start 2.5 s" in skipped[0].detail


@pytest.mark.parametrize("table", [
    "\ufeffvideo,caption\na.mp4,a dog\n", "video,caption\r\na.mp4,a dog\r\n", "video,caption\ra.mp4,a dog\r",
    "video,caption\na.mp4,a dog", "\"video\",\"caption\"\n\"a.mp4\",\"a dog\"\n\n\n",
    "caption,video\n  a   dog , a.mp4\n",
    "video,caption,split,end,start\na.mp4,\"a\ndog\",,,\n"])
def test_folder_reads_the_same_when_the_table_is_written_another_way(folder, table):
    clips, skipped = found_in(folder(table))
    assert (clips["a"].captions, skipped) == (("a dog",), [])


def test_folder_keeps_names_when_they_have_spaces_dots_dashes_or_other_scripts(folder):
    names = ["two words.mp4", "v1.2.final.mp4", "-rf.mp4", "犬.mp4", "猫.mp4", "sub folder/a.mp4",
             ".hidden.mp4", "noending"]
    clips, skipped = found_in(folder("video,caption\n" + "".join(f"{name},x\n" for name in names), videos=names))
    assert skipped == []
    assert len(clips) == len(names)
    assert {"two_words", "v1_2_final", "rf", "sub_folder_a", "hidden", "noending"} < set(clips)
    assert sorted(clip.path.rsplit("videos/")[1] for clip in clips.values()) == sorted(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in clips)


def test_ids_differ_when_names_differ_only_in_what_ids_cannot_hold(folder):
    names = ["a b.mp4", "a_b.mp4", "a.b.mp4", "a_b.mkv", "x" * 120 + "1.mp4", "x" * 120 + "2.mp4"]
    clips, _ = found_in(folder("video,caption\n" + "".join(f"{name},x\n" for name in names), videos=names))
    assert len(clips) == len(names)
    assert max(map(len, clips)) <= 109


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=300), st.floats(0, 1e5), st.floats(0, 1e5))
def test_ids_are_plain_when_names_are_anything(name, start_s, end_s):
    for made in (clip_id(name), clip_id(name, start_s, end_s)):
        assert made
        assert set(made) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def test_long_caption_is_kept_whole_when_it_has_10000_characters(folder):
    clips, _ = found_in(folder(f"video,caption\na.mp4,{'dog ' * 2500}\n"))
    assert clips["a"].captions == (" ".join(["dog"] * 2500),)


# ---------------------------------------------------------------------------------------------------------- left out

def test_rows_are_left_out_with_file_and_row_when_empty_or_repeated(folder):
    root = folder("video,caption\na.mp4,a dog\na.mp4,\na.mp4,a  dog\nb.mp4,a cat\n")
    clips, skipped = found_in(root)
    assert clips["a"].captions == ("a dog",)
    assert [row.reason for row in skipped] == ["empty_caption", "duplicate_row"]
    assert {row.stage for row in skipped} == {"dataset"}
    assert skipped[0].detail == f"{root}/captions.csv row 3: need a caption, got an empty cell."
    assert skipped[1].detail == f"{root}/captions.csv row 4: need a clip's caption once, got it again."


def test_bad_videos_are_left_out_with_their_reason_when_others_are_good(folder, film_in_processes):
    names = ("a", "gone", "empty", "text", "folder", "half", "pipe")
    root = folder("video,caption\n" + "".join(f"{name}.mp4,x\n" for name in names))
    videos = root / "videos"
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("this is no video " * 100)
    (videos / "folder.mp4").mkdir()
    (videos / "half.mp4").write_bytes(film_in_processes.read_bytes()[:600])
    os.mkfifo(videos / "pipe.mp4")
    clips, skipped = found_in(root)
    assert set(clips) == {"a"}
    reasons = {row.video_id: row.reason for row in skipped}
    assert reasons == {"gone": "missing", "empty": "empty_file", "text": "not_a_video", "folder": "unreadable",
                       "half": "not_a_video", "pipe": "unreadable"}
    assert all(row.path.endswith(f"{row.video_id}.mp4") and row.detail for row in skipped)


# ------------------------------------------------------------------------------------------------------------ refused

REFUSED = {
    "no table": (None, r"captions.csv: need a table with the columns video,caption.* found none. Write one"),
    "empty": ("",
              r"row 1: need the columns video,caption\[,start,end,split\], got 'nothing'. Add the column video"),
    "semicolons": ("video;caption\na.mp4;x\n", r"row 1: need the columns .* got 'video;caption'"),
    "missing column": ("video,text\na.mp4,x\n",
                       r"row 1: need the columns .* got 'video,text'. Add the column caption."),
    "doubled column": ("video,caption,caption\na.mp4,x,y\n", r"row 1: need each column once, got 'caption' twice"),
    "unknown column": ("video,caption,strat\na.mp4,x,0\n",
                       r"row 1: need only the columns .* got 'strat'. Rename or remove it"),
    "latin-1": ("video,caption\na.mp4,x\nb.mp4,caf\xe9\n".encode("latin-1"),
                r"row 3: need UTF-8, got the byte 0xe9. Save"),
    "utf-16": ("video,caption\na.mp4,x\n".encode("utf-16"), r"row 1: need UTF-8, got the byte 0xff"),
    "zero byte": (b"video,caption\na.mp4,x\0y\n", r"row 2: need text, got a zero byte"),
    "comma in caption": ("video,caption\na.mp4,a dog, a cat\n",
                         r"row 2: need 2 cells \(video,caption\), got 3. Put a caption"),
    "short row": ("video,caption\na.mp4,x\nb.mp4\n", r"row 3: need 2 cells \(video,caption\), got 1"),
    "open quote": ("video,caption\na.mp4,\"x\nb.mp4,y\n",
                   r"row 2: need comma-separated cells with closed double quotes"),
    "no name": ("video,caption\n ,x\n", r"row 2: need the name of a video, got an empty cell"),
    "split": ("video,caption,split\na.mp4,x,dev\n", r"row 2: need a split of train, val, test or none, got 'dev'"),
    "start": ("video,caption,start\na.mp4,x,0:30\n", r"row 2: need start in seconds from 0, got '0:30'"),
    "negative": ("video,caption,start\na.mp4,x,-1\n", r"row 2: need start in seconds from 0, got '-1'"),
    "infinite": ("video,caption,end\na.mp4,x,inf\n", r"row 2: need end in seconds from 0, got 'inf'"),
    "backwards": ("video,caption,start,end\na.mp4,x,3,1\n", r"row 2: need end after start, got 3 to 1"),
    "no length": ("video,caption,end\na.mp4,x,0\n", r"row 2: need end after start, got 0 to 0"),
    "two splits": ("video,caption,split\na.mp4,x,test\nb.mp4,y,\na.mp4,z,train\n",
                   r"row 4: need one split for all rows of 'a.mp4', got train here and test in .*row 2. A video"),
    "absolute": ("video,caption\n/etc/passwd,x\n",
                 r"row 2: need a path inside .*videos, got the absolute path '/etc/passwd'"),
    "drive": ("video,caption\nC:\\videos\\a.mp4,x\n", r"row 2: need a path inside .* got the absolute path"),
    "dots": ("video,caption\na.mp4,x\n../captions.csv,x\n",
             r"row 3: need a path inside .* got '../captions.csv' with '..'"),
    "nothing usable": ("video,caption\nc.mp4,x\na.mp4,\n", r"need at least one readable video with a caption, got none "
                       r"\(empty_caption 1, missing 1\). .*The first: .*captions.csv row 3: need a caption"),
    "header only": ("video,caption\n", r"need at least one readable video with a caption, got none \(no rows\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folder_is_refused_in_one_line_when_wrong(folder, case):
    table, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        read_folder(folder(table), CONFIG)
    assert "\n" not in str(caught.value)


def test_folder_is_refused_when_its_table_is_no_file(folder):
    root = folder()
    os.mkfifo(root / "captions.csv")
    with pytest.raises(DataError, match=r"captions.csv: need a regular file, got something else"):
        read_folder(root, CONFIG)


def test_link_is_left_out_when_it_points_outside(folder, film, tmp_path):
    root = folder("video,caption\na.mp4,x\nlink.mp4,x\nlink.mp4,y\n")
    (root / "videos" / "link.mp4").symlink_to(film)
    clips, (row,) = found_in(root)
    assert set(clips) == {"a"}
    assert (row.video_id, row.reason) == ("link", "outside")
    assert row.detail.endswith(f"got a link that leads out of the folder (to {film}). Copy the file there.")


def test_links_are_followed_when_they_stay_inside_or_are_the_folder_itself(folder, tmp_path):
    root = folder("video,caption\na.mp4,x\nlink.mp4,y\n")
    (root / "videos" / "link.mp4").symlink_to("b.mp4")
    (root / "videos").rename(tmp_path / "elsewhere")
    (root / "videos").symlink_to(tmp_path / "elsewhere")
    clips, skipped = found_in(root)
    assert (set(clips), skipped) == ({"a", "link"}, [])


def test_folder_is_refused_when_it_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"none: need a folder with videos/ and captions.csv, found none"):
        read_folder(tmp_path / "none", CONFIG)


# ------------------------------------------------------------------------------------------------------------- splits

def rows_for(count, **values):
    return [CaptionRow(f"{i:04d}.mp4", "x", **values) for i in range(count)]


@pytest.fixture(scope="session")
def films(film, tmp_path_factory):
    """The path of row's video: for each name a film of other bytes, an empty box of the name's hash behind its end."""
    root = tmp_path_factory.mktemp("films")

    def locate(row):
        path = root / row.video
        if not path.exists():
            digest = hashlib.sha256(row.video.encode()).digest()
            path.write_bytes(film.read_bytes() + (8 + len(digest)).to_bytes(4, "big") + b"free" + digest)
        return str(path)
    return locate


def splits_of(rows, films, **changes):
    """video_id -> split."""
    found = build_clips(rows, films, CONFIG.model_copy(update=changes))
    return {clip.video_id: clip.split for clip in found}


def test_splits_follow_the_fractions_and_the_name_when_not_given(films):
    first = splits_of(rows_for(300), films)
    counts = Counter(first.values())
    assert counts["test"] / 300 == pytest.approx(0.2, abs=0.07)
    assert counts["val"] / 300 == pytest.approx(0.1, abs=0.06)
    assert splits_of(rows_for(120)[::-1], films) == {name: split for name, split in first.items() if int(name) < 120}
    assert splits_of(rows_for(100), films, seed=1) != splits_of(rows_for(100), films)


def test_parts_of_one_video_share_a_split_when_it_is_not_given(films):
    rows = [CaptionRow(f"{i % 20}.mp4", "x", start_s=i * 0.01) for i in range(100)]
    splits = splits_of(rows, films)
    assert len(splits) == 100
    assert len({(name.split("_")[0], split) for name, split in splits.items()}) == 20


@pytest.mark.parametrize(("count", "expected"), [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "test", "val"}),
                                                 (4, {"train", "test", "val"})])
def test_every_split_has_a_video_when_there_are_few(films, count, expected):
    for seed in range(8):
        splits = splits_of(rows_for(count), films, seed=seed)
        assert (len(splits), set(splits.values())) == (count, expected) or count == 1


def test_given_splits_are_kept_when_some_are_blank(films):
    rows = [*rows_for(2, split="test"), CaptionRow("0000.mp4", "y"), CaptionRow("blank.mp4", "x")]
    splits = splits_of(rows, films)
    assert (splits["0000"], splits["0001"]) == ("test", "test")
    assert splits_of(rows_for(5, split="test"), films) == dict.fromkeys([f"{i:04d}" for i in range(5)], "test")


def test_no_test_split_is_made_when_its_fraction_is_zero(films):
    assert set(splits_of(rows_for(40), films, test_fraction=0.0).values()) == {"train", "val"}


# ------------------------------------------------------------------------------------------------------- equal bytes

def test_videos_of_equal_bytes_share_a_split_when_it_is_not_given(films, tmp_path):
    """60 videos, each under three names: a copy, a link, and in parts."""
    def locate(row):
        original = Path(films(CaptionRow(row.video.split("_")[-1], "x")))
        path = tmp_path / row.video
        if row.video.startswith("copy_"):
            shutil.copy(original, path)
        elif row.video.startswith("link_") and not path.is_symlink():
            path.symlink_to(original)
        return str(path if row.video != original.name else original)

    names = [f"{number:02d}.mp4" for number in range(60)]
    rows = [row for name in names for row in (
        CaptionRow(name, "x"), CaptionRow(f"copy_{name}", "x"), CaptionRow(f"link_{name}", "x", end_s=1.0),
        CaptionRow(f"link_{name}", "x", start_s=1.0))]
    splits = splits_of(rows, locate)
    assert len(splits) == 240
    shared = {name[:2]: {split for clip, split in splits.items() if f"{name[:2]}" in clip.split("_")[:2]}
              for name in names}
    assert [len(found) for found in shared.values()] == [1] * 60
    alone = splits_of([CaptionRow(name, "x") for name in names], locate)
    assert {name: split for name, split in splits.items() if name in alone} == alone
    assert set(alone.values()) == {"train", "val", "test"}


def test_every_split_has_a_video_of_its_own_when_copies_are_many(films):
    rows = [CaptionRow(f"{name}.mp4", "x") for name in ("a1", "a2", "a3", "b", "c")]
    for seed in range(8):
        splits = splits_of(rows, lambda row: films(CaptionRow(f"{row.video[0]}.mp4", "x")), seed=seed)
        assert len({splits[name] for name in ("a1", "a2", "a3")}) == 1
        assert {splits["a1"], splits["b"], splits["c"]} == {"train", "val", "test"}
    rows = rows[:3]
    assert len(set(splits_of(rows, lambda row: films(CaptionRow("a.mp4", "x"))).values())) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_training_video_is_left_out_when_the_given_splits_evaluate_on_its_bytes(folder, films, tmp_path, split):
    root = folder("video,caption,start,end,split\n"
                  f"a.mp4,x,,,{split}\nb.mp4,y,0,1,train\nb.mp4,z,1,,train\nc.mp4,w,,,train\nlink.mp4,v,,,train\n")
    shutil.copy(films(CaptionRow("c.mp4", "x")), root / "videos" / "c.mp4")
    (root / "videos" / "link.mp4").symlink_to("a.mp4")
    summary = build(CONFIG.model_copy(update={"path": str(root)}), tmp_path)
    counts = {"train": 1, "val": 0, "test": 0, split: 1}
    assert summary == {"dataset": "folder", "clips": 2, "captions": 2, "hours": 0.001, **counts,
                       "skipped": {"duplicate_video": 3}}
    lines = [json.loads(line) for line in (tmp_path / "manifest" / "skipped.jsonl").read_text().splitlines()]
    assert [line["video_id"] for line in lines] == ["b_0-1000", "b_1000-end", "link"]
    assert lines[0] == {
        "video_id": "b_0-1000", "path": f"{root}/videos/b.mp4", "stage": "dataset", "reason": "duplicate_video",
        "detail": f"{root}/videos/b.mp4: need other videos for training than for {split}, got the bytes of "
                  f"{root}/videos/a.mp4. Remove this file, or give both the same split."}


def test_copies_of_one_video_stand_as_given_when_none_is_for_training_or_all_are(films):
    rows = [CaptionRow(f"{name}.mp4", "x", split=split) for name, split in (
        ("v", "val"), ("t", "test"), ("w", "test"), ("r1", "train"), ("r2", "train"))]
    splits = splits_of(rows, lambda row: films(CaptionRow("r.mp4" if row.video[0] == "r" else "t.mp4", "x")))
    assert splits == {"v": "val", "t": "test", "w": "test", "r1": "train", "r2": "train"}


@pytest.mark.parametrize("given", [("train",), ("val",), ("test",), ("train", "test")])
def test_a_copy_without_a_split_follows_the_one_that_has_it(films, given):
    rows = [*(CaptionRow(f"z{split}.mp4", "x", split=split) for split in given), CaptionRow("a.mp4", "x")]
    for seed in range(6):
        config = CONFIG.model_copy(update={"seed": seed})
        found = list(build_clips(rows, lambda row: films(CaptionRow("a.mp4", "x")), config))
        splits = {clip.video_id: clip.split for clip in found if isinstance(clip, Clip)}
        assert splits == {f"z{given[-1]}": given[-1], "a": given[-1]}
        assert len(found) == len(rows)


# ------------------------------------------------------------------------------------------------- without a table

def test_every_video_makes_a_clip_when_captions_are_optional(folder):
    root = folder(videos=("a.mp4", "sub/b.mp4"))
    (root / "videos" / "notes.txt").write_text("no video")
    for place in (root, root / "videos"):
        clips, skipped = read_folder(place, CONFIG, captions_required=False)
        assert [(clip.video_id, clip.captions) for clip in clips] == [("a", ()), ("sub_b", ())]
        assert skipped == []


def test_captions_are_used_when_they_are_optional_and_there(folder):
    clips, _ = read_folder(folder("video,caption\na.mp4,a dog\n"), CONFIG, captions_required=False)
    assert [(clip.video_id, clip.captions) for clip in clips] == [("a", ("a dog",)), ("b", ())]


# --------------------------------------------------------------------------------------------------------------- fuzz

@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200),
                 st.text(max_size=200).map(lambda text: b"video,caption,start\n" + text.encode()),
                 st.lists(st.lists(st.text(",\"\n\r\ta.é/", max_size=8), max_size=4)).map(
                     lambda rows: b"video,caption\n" + "\n".join(map(",".join, rows)).encode())))
def test_table_is_read_or_refused_in_one_line_when_bytes_are_random(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "captions.csv"
    path.write_bytes(content)
    refusal = ""
    try:
        for row in read_captions(path):
            assert row.video.strip() == row.video != ""
            assert row.where.startswith(str(path))
    except HcmiError as error:
        refusal = str(error)
    assert not refusal or (str(path) in refusal and "need" in refusal and "\n" not in refusal)


def test_memory_does_not_grow_with_the_rows_when_they_are_many(film):
    def peak(count):
        rows = (CaptionRow("a.mp4", f"caption {i}", start_s=(i % 1900) / 1000) for i in range(count))
        tracemalloc.start()
        captions = sum(len(clip.captions) for clip in build_clips(rows, lambda row: str(film), CONFIG))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert captions == count
        return most
    peak(100)
    assert peak(20_000) < peak(1_000) + 300_000


# -------------------------------------------------------------------------------------------------------------- stage

def build(config, tmp_path):
    return build_dataset(config=config, manifest_dir=tmp_path / "manifest", generated_dir=tmp_path / "generated",
                         incoming_dir=tmp_path / "incoming")


def test_stage_writes_manifest_and_skipped_when_the_folder_is_good(folder, films, tmp_path):
    root = folder("video,caption\na.mp4,a dog\nb.mp4,a cat\ngone.mp4,x\n")
    shutil.copy(films(CaptionRow("b.mp4", "x")), root / "videos" / "b.mp4")
    summary = build(CONFIG.model_copy(update={"path": str(root)}), tmp_path)
    assert summary == {"dataset": "folder", "clips": 2, "train": 1, "val": 0, "test": 1, "captions": 2, "hours": 0.001,
                       "skipped": {"missing": 1}}
    assert [clip.video_id for clip in read_manifest(tmp_path / "manifest" / "manifest.parquet")] == ["a", "b"]
    line = json.loads((tmp_path / "manifest" / "skipped.jsonl").read_text())
    assert (line["video_id"], line["stage"], line["reason"]) == ("gone", "dataset", "missing")
    assert [list((tmp_path / name).iterdir()) for name in ("generated", "incoming/scenes_same")] == [[], []]


def test_stage_leaves_the_old_manifest_when_the_folder_is_bad(folder, tmp_path):
    config = CONFIG.model_copy(update={"path": str(folder("video,caption\na.mp4,a dog\nb.mp4,a cat\n"))})
    build(config, tmp_path)
    before = (tmp_path / "manifest" / "manifest.parquet").read_bytes()
    folder("video,caption\na.mp4,a dog\n../b.mp4,a cat\n")
    with pytest.raises(DataError, match=r"with '\.\.'"):
        build(config, tmp_path)
    assert (tmp_path / "manifest" / "manifest.parquet").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "manifest").iterdir()) == ["manifest.parquet", "skipped.jsonl"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_stage_makes_scenes_and_both_batches_when_asked(tmp_path):
    sizes = {"num_train": 5, "num_val": 2, "num_test": 3, "num_incoming": 2}
    config = CONFIG.model_copy(update={"name": "scenes", "scenes": CONFIG.scenes.model_copy(update=sizes)})
    summary = build(config, tmp_path)
    assert (summary["clips"], summary["captions"], summary["train"]) == (10, 36, 5)
    clips = read_manifest(tmp_path / "manifest" / "manifest.parquet", split="train")
    assert all(Path(clip.path).is_file() and clip.tags["num_events"] for clip in clips)
    for batch in ("scenes_same", "scenes_shifted"):
        arrived, skipped = read_folder(tmp_path / "incoming" / batch, CONFIG)
        assert (len(arrived), skipped) == (2, [])
        assert {len(clip.captions) for clip in arrived} == {3}


def test_verb_prints_one_line_and_exits_1_when_the_folder_is_bad(folder, tmp_path, monkeypatch):
    root = folder("video,text\na.mp4,x\n")
    monkeypatch.chdir(tmp_path)
    params = PARAMS.read_text().replace("name: scenes", "name: folder")
    (tmp_path / "params.yaml").write_text(params.replace("path: data/raw/scenes", f"path: {root}"))
    result = CliRunner().invoke(main, ["dataset"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"hcmi: {root}/captions.csv row 1: need the columns")
    assert not (tmp_path / "data" / "manifest").exists()


# ---------------------------------------------------------------------------------------------------------- real files

def test_every_real_clip_is_found_when_captions_are_human(shared_data):
    clips, skipped = read_folder(shared_data / "real_clips", CONFIG)
    assert len(clips) == 66
    assert set(Counter(row.reason for row in skipped)) == {"duplicate_row"}
    assert sum(len(clip.captions) for clip in clips) + len(skipped) == 255


def test_every_odd_file_is_a_clip_or_has_a_reason_when_looked_at(shared_data):
    found = list(iter_folder(shared_data / "odd_videos", CONFIG, captions_required=False))
    clips = {clip.path.rsplit("odd_videos/")[1] for clip in found if isinstance(clip, Clip)}
    skipped = {row.path.rsplit("odd_videos/")[1]: row.reason for row in found if not isinstance(row, Clip)}
    decoded = {entry["file"]: entry["decoded"] for entry in
               json.loads((shared_data / "odd_videos" / "probe.json").read_text())}
    assert clips | set(skipped) == set(decoded)
    assert set(skipped.values()) <= set(REASONS)
    assert {name for name, frames in decoded.items() if not frames} >= set(skipped), "a file with frames was left out"
