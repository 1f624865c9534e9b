"""People's own videos with a captions.csv: what is read, what is left out, what is refused."""

import csv
import hashlib
import json
import os
import shutil
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
from dataset_world import CONFIG, found_in

from hcmi.config import WindowsConfig
from hcmi.dataset import read_folder, table_cells
from hcmi.dataset.folder import iter_folder
from hcmi.errors import DataError
from hcmi.types import Clip, Skip
from hcmi.video import REASONS

REFUSED = {
    "no table": (None, r"captions.csv: need a table with the columns video,caption.* found none. Write one"),
    "empty": ("", r"row 1: need the columns video,caption\[,start,end,split\], got none. Write them there"),
    "empty rows alone": ("\n,,\n", r"row 1: need the columns .*, got none. Write them there"),
    "Excel's separator": ("sep=,\nvideo,caption\na.mp4,x\n",
                          r"row 1: need the columns .*, got 'sep=,', which only Excel reads. Remove row 1"),
    "semicolons": ("video;caption\na.mp4;x\n", r"row 1: need commas between the cells, got ';'. Save the table"),
    "tabs": ("video\tcaption\na.mp4\tx\n", r"row 1: need commas between the cells, got '\\t'"),
    "capitals": ("Video,Caption\na.mp4,x\n", r"row 1: need the columns .* got 'Video,Caption'. Write the names"),
    "missing column": ("video,text\na.mp4,x\n",
                       r"row 1: need the columns .* got 'video,text'. Add the column caption."),
    "doubled column": ("video,caption,caption\na.mp4,x,y\n", r"row 1: need each column once, got 'caption' twice"),
    "unknown column": ("video,caption,strat\na.mp4,x,0\n",
                       r"row 1: need only the columns .* got 'strat'. Rename or remove it"),
    "latin-1": ("video,caption\na.mp4,x\nb.mp4,caf\xe9\n".encode("latin-1"),
                r"row 3: need UTF-8, got the byte 0xe9. Save"),
    "utf-16": ("video,caption\na.mp4,x\n".encode("utf-16"), r"row 1: need UTF-8, got UTF-16. Save the file as UTF-8"),
    "utf-16, big first": ("\ufeffvideo,caption\na.mp4,x\n".encode("utf-16-be"), r"row 1: need UTF-8, got UTF-16. Save"),
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
    "underscore": ("video,caption,end\na.mp4,x,0_1\n", r"row 2: need end in seconds from 0, got '0_1'"),
    "other digits": ("video,caption,end\na.mp4,x,\u0661\n", r"row 2: need end in seconds from 0, got"),
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


def test_table_and_folder_agree_when_one_is_from_a_mac(folder):
    """`é` is one character in the table and two in the file's name, or the other way round; a split stays the same."""
    one, two = "café.mp4", unicodedata.normalize("NFD", "café.mp4")
    found = []
    for table, file in ((one, two), (two, one), (one, one)):
        root = folder(f"video,caption\n{table},x\n", videos=(file,))
        clips, skipped = read_folder(root, CONFIG, captions_required=False)
        assert [clip.path.rsplit("/")[-1] for clip in clips] == [file]
        assert skipped == []
        found.append((clips[0].video_id, clips[0].captions, clips[0].split))
        shutil.rmtree(root)
    assert len(set(found)) == 1


def test_row_is_left_out_when_its_name_is_no_utf8_and_there_is_no_such_file(folder):
    clips, (skip,) = found_in(folder(b"video,caption\na.mp4,x\ncaf\xe9.mp4,y\n"))
    assert (set(clips), skip.reason) == ({"a"}, "missing")
    assert r"caf\xe9.mp4: need a video that can be decoded, got no such file (" in skip.detail
    assert "save the table as UTF-8" in skip.detail


def test_row_is_left_out_and_the_file_is_named_when_the_name_is_nearly_right(folder):
    names = ["sub\\a.mp4", "videos/b.mp4", "C.MP4", "d", "two.mp4", "none.mp4"]
    root = folder("video,caption\n" + "".join(f"{name},x\n" for name in [*names, "right.mp4"]),
                  videos=("sub/a.mp4", "b.mp4", "c.mp4", "d.mp4", "Two.mp4", "TWO.mp4", "right.mp4"))
    clips, skipped = found_in(root)
    assert (set(clips), {skip.reason for skip in skipped}) == ({"right"}, {"missing"})
    said = {skip.path.partition("videos/")[2]: skip.detail.partition("no such file")[2] for skip in skipped}
    put = ". Put it there, or correct its name."
    assert said == {
        **{name: f" (there is {file}: correct {root}/captions.csv row {row}){put}" for row, (name, file) in enumerate(
            zip(names, ["sub/a.mp4", "b.mp4", "c.mp4", "d.mp4"], strict=False), start=2)},
        "two.mp4": put, "none.mp4": put}       # two files may be meant, or none


def test_ids_differ_when_names_differ_only_in_what_ids_cannot_hold(folder):
    names = ["a b.mp4", "a_b.mp4", "a.b.mp4", "a_b.mkv", "x" * 120 + "1.mp4", "x" * 120 + "2.mp4"]
    clips, _ = found_in(folder("video,caption\n" + "".join(f"{name},x\n" for name in names), videos=names))
    assert len(clips) == len(names)
    assert max(map(len, clips)) <= 109


def test_long_caption_is_kept_whole_when_it_has_10000_characters(folder):
    clips, _ = found_in(folder(f"video,caption\na.mp4,{'dog ' * 2500}\n"))
    assert clips["a"].captions == (" ".join(["dog"] * 2500),)


def test_rows_are_left_out_with_file_and_row_when_empty_or_repeated(folder):
    root = folder("video,caption\na.mp4,a dog\na.mp4,\na.mp4,a  dog\nb.mp4,a cat\n")
    clips, skipped = found_in(root)
    assert clips["a"].captions == ("a dog",)
    assert [row.reason for row in skipped] == ["empty_caption", "duplicate_row"]
    assert {row.stage for row in skipped} == {"dataset"}
    assert skipped[0].detail == f"{root}/captions.csv row 3: need a caption, got an empty cell."
    assert skipped[1].detail == f"{root}/captions.csv row 4: need a clip's caption once, got it again."


def test_rows_are_one_clip_when_they_begin_together_and_reach_the_end(folder):
    """The files last two seconds."""
    clips, skipped = found_in(folder("video,caption,start,end\na.mp4,x,,\na.mp4,y,,2\na.mp4,x,0,2.5\na.mp4,z,0,1.9\n"
                                     "b.mp4,x,0.5,3\nb.mp4,y,0.5,2.2\nb.mp4,z,0.6,3\n"))
    assert {name: (clip.captions, clip.start_s, clip.end_s) for name, clip in clips.items()} == {
        "a": (("x", "y"), 0.0, 2.0), "a_0-1900": (("z",), 0.0, 1.9),
        "b_500-2200": (("x", "y"), 0.5, 2.0), "b_600-3000": (("z",), 0.6, 2.0)}
    assert [(row.reason, row.detail.partition(": ")[2]) for row in skipped] == [
        ("duplicate_row", "need a clip's caption once, got 'x' again from 0 s to the end.")]
    assert len({clip.content_key for clip in clips.values()}) == len(clips)


def test_bad_videos_are_left_out_with_their_reason_when_others_are_good(folder, film, processes):
    names = ("a", "gone", "empty", "text", "folder", "half", "pipe")
    root = folder("video,caption\n" + "".join(f"{name}.mp4,x\n" for name in names))
    videos = root / "videos"
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("this is no video " * 100)
    (videos / "folder.mp4").mkdir()
    (videos / "half.mp4").write_bytes(film.read_bytes()[:600])
    os.mkfifo(videos / "pipe.mp4")
    clips, skipped = found_in(root)
    assert set(clips) == {"a"}
    reasons = {row.video_id: row.reason for row in skipped}
    assert reasons == {"gone": "missing", "empty": "empty_file", "text": "not_a_video", "folder": "unreadable",
                       "half": "not_a_video", "pipe": "unreadable"}
    assert all(row.path.endswith(f"{row.video_id}.mp4") and row.detail for row in skipped)


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


def test_videos_may_lie_beside_the_table(folder):
    root = folder("video,caption\na.mp4,one\nb.mp4,two\n")
    for path in (root / "videos").iterdir():
        path.rename(root / path.name)
    (root / "videos").rmdir()
    clips, skipped = read_folder(root, CONFIG)
    assert {clip.path.rpartition("/")[2]: clip.captions for clip in clips} == {"a.mp4": ("one",), "b.mp4": ("two",)}
    assert skipped == []


def test_folder_is_refused_when_it_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"none: need a folder with videos/ and captions.csv, found none"):
        read_folder(tmp_path / "none", CONFIG)


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


def test_every_real_clip_is_found_when_captions_are_human(shared_data):
    clips, skipped = read_folder(shared_data / "real_clips", CONFIG)
    assert len(clips) == 66
    assert set(Counter(row.reason for row in skipped)) == {"duplicate_row"}
    assert sum(len(clip.captions) for clip in clips) + len(skipped) == 255


def test_every_odd_file_is_a_clip_or_has_a_reason_when_looked_at(shared_data):
    found = list(iter_folder(shared_data / "odd_videos", CONFIG, captions_required=False))
    clips = {clip.path.rsplit("odd_videos/")[1] for clip in found if isinstance(clip, Clip)}
    skipped = {row.path.rsplit("odd_videos/")[1]: row.reason for row in found if isinstance(row, Skip)}
    decoded = {entry["file"]: entry["decoded"] for entry in
               json.loads((shared_data / "odd_videos" / "probe.json").read_text())}
    assert clips | set(skipped) == set(decoded) - {"exoplayer/sample_MP.heic"}      # a photo
    assert set(skipped.values()) <= set(REASONS)
    assert {name for name, frames in decoded.items() if not frames} >= set(skipped), "a file with frames was left out"


def test_long_video_without_captions_is_divided_into_clips(folder, film):
    root = folder("video,caption\nb.mp4,a cat asleep\n")        # each of the two films has 2 s
    windows = WindowsConfig(cut="fixed", seconds=0.8, overlap_seconds=0.2, whole_seconds=1.0)
    clips, skipped = read_folder(root, CONFIG, captions_required=False, windows=windows)
    assert skipped == []
    assert [(clip.video_id, clip.start_s, clip.end_s, clip.captions) for clip in clips] == [
        ("a_0-800", 0.0, 0.8, ()), ("a_1200-end", 1.2, 2.0, ()), ("a_600-1400", 0.6, 1.4, ()),
        ("b", 0.0, 2.0, ("a cat asleep",))]
    assert len({clip.split for clip in clips if clip.video_id.startswith("a")}) == 1
    assert len(read_folder(root, CONFIG, captions_required=False)[0]) == 2


@pytest.mark.parametrize("videos", ["videos", "."])
def test_a_table_of_their_cells_gives_the_same_clips_when_they_are_parts_in_sub_folders(tmp_path, film, videos):
    for name in ("far/b, c.mp4", "a_0-800.mp4", "caf\udce9/d.mp4"):
        (tmp_path / videos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, tmp_path / videos / name)
    windows = WindowsConfig(cut="fixed", seconds=0.8, overlap_seconds=0.2, whole_seconds=1.0)
    parts, whole = (read_folder(tmp_path, CONFIG, captions_required=False, windows=some)[0]
                    for some in (windows, None))
    assert (len(parts), len(whole)) == (9, 3)
    for clips in (parts, whole):
        with open(tmp_path / "captions.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file).writerows([("video", "start", "end", "caption"),
                                        *((*table_cells(clip, tmp_path), "a cat") for clip in clips)])
        again, _ = read_folder(tmp_path, CONFIG)
        assert [replace(clip, captions=()) for clip in again] == clips


def test_video_that_claims_twelve_hours_is_left_out_when_long_videos_are_divided(folder, film, monkeypatch):
    monkeypatch.setattr("hcmi.video.windows.MAX_HOURS", 1 / 3600)
    windows = WindowsConfig(cut="fixed", seconds=0.8, overlap_seconds=0.2, whole_seconds=1.0)
    _, skipped = read_folder(folder("video,caption\nb.mp4,a cat\n"), CONFIG, captions_required=False, windows=windows)
    assert [(skip.video_id, skip.reason) for skip in skipped] == [("a", "too_long")]
    assert skipped[0].detail.endswith("Cut it into parts.")
