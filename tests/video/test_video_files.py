"""Which files are taken for videos, and what is wrong with the others."""

import hashlib
import unicodedata

import pytest
from PIL import Image
from video_files import STILL_HEIC

from hcmi.errors import DataError, DecodeError, MachineError
from hcmi.video import REASONS, check_file, files, find_videos, likely_names, names_below, probe, sha256
from hcmi.video.files import VIDEO_ENDINGS, one_file, refusal, walk_files

CAFE_NFD = unicodedata.normalize("NFD", "café")


def test_videos_are_found_by_their_ending_in_any_case_and_folder(tmp_path):
    for name in ("b.mp4", "A.MKV", "sub/c.m2ts", "sub/d.heic", "sub/e.F4V", "notes.txt", "mp4", ".hidden.mp4",
                 ".hidden/f.mp4", "captions.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["A.MKV", "b.mp4", "folder.mp4", "sub/c.m2ts", "sub/d.heic", "sub/e.F4V"]


def test_files_of_systems_and_of_other_kinds_are_passed_over(tmp_path):
    still, moving = STILL_HEIC, b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc"
    files = {"a.mp4": b"x", "__MACOSX/a.mp4": b"x", "@eaDir/a.mp4/b.mp4": b"x", ".Trash-1000/a.mp4": b"x",
             "lost+found/a.mp4": b"x", "._a.mp4": b"x", "Thumbs.db": b"x", "IMG_1.HEIC": still, "live.heic": moving,
             "main.ts": b"export default 1;\n",
             "stream.ts": b"G\0\x11\x10" + bytes(200), "page.ps": b"%!PS-Adobe-3.0\n",
             "video0001": b"\0\0\0\x18ftypisom", "README": b"text", "clip": b"\x1aE\xdf\xa3"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["a.mp4", "clip", "live.heic", "stream.ts", "video0001"]


def test_each_folder_is_listed_once_when_links_lead_to_it(tmp_path):
    for name in ("here/sub/a.mp4", "there/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name, target in (("again", "sub"), ("sub/up", ".."), ("other", "../there"), ("second", "../there"),
                         ("nowhere", "none")):
        (tmp_path / "here" / name).symlink_to(target)
    found = [path.relative_to(tmp_path / "here").as_posix() for path in find_videos(tmp_path / "here")]
    assert found == ["other/b.mp4", "sub/a.mp4"]


def test_name_of_a_table_finds_its_file_in_any_normal_form(tmp_path):
    for name in (f"{CAFE_NFD}/a.mp4", "ü.mp4", unicodedata.normalize("NFD", "ü.mp4")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    name_on_disk = names_below(tmp_path)
    names = ("café/a.mp4", "ü.mp4", unicodedata.normalize("NFD", "ü.mp4"), "none.mp4", "nö.mp4")
    assert [name_on_disk(name) for name in names] == [f"{CAFE_NFD}/a.mp4", *names[1:]]


def test_spaces_around_the_name_of_a_table_count_where_the_file_has_them(tmp_path):
    for name in (" a.mp4", "b.mp4", CAFE_NFD):
        (tmp_path / name).touch()
    name_on_disk = names_below(tmp_path)
    assert [name_on_disk(name) for name in (" a.mp4", "a.mp4", " b.mp4 ", " café", " none.mp4 ")] == [
        " a.mp4", "a.mp4", "b.mp4", CAFE_NFD, "none.mp4"]


def test_folder_is_walked_once_when_names_are_looked_for(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{CAFE_NFD}.mp4").touch()
    walked = []
    monkeypatch.setattr(files, "walk_files", lambda folder: walked.append(folder) or walk_files(folder))
    (tmp_path / "mine" / "away.mp4").symlink_to("gone.mp4")     # a link to nothing is nobody's file
    likely = likely_names(tmp_path / "mine")
    assert walked == []
    names = ("Café.mp4", "café", "MINE\\café.mp4", "other.mp4", "")
    assert [likely(name) for name in names] == [*[f"{CAFE_NFD}.mp4"] * 3, "", ""]
    assert likely("away.mp4") == likely("AWAY.mp4") == ""
    assert len(walked) == 1


def test_photo_is_no_video_whatever_it_is_called(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "film.mp4")
    with pytest.raises(DecodeError) as error:
        probe(tmp_path / "film.mp4")
    assert error.value.reason == "no_video_stream"


def test_endings_are_written_as_they_are_compared():
    assert all(ending == ending.lower() and ending.startswith(".") for ending in VIDEO_ENDINGS)


def test_search_for_videos_is_refused_when_the_folder_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="none: need a folder that can be read, got: No such file"):
        find_videos(tmp_path / "none")


def test_hash_is_of_the_bytes(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"abc")
    assert sha256(tmp_path / "v.mp4") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(("name", "reason"), [("none.mp4", "missing"), ("line\nbreak.mp4", "missing"),
                                             ("half\ud83d.mp4", "bad_name")])
def test_file_is_refused_with_a_reason(tmp_path, name, reason):
    with pytest.raises(DecodeError) as error:
        check_file(tmp_path / name)
    assert (error.value.reason, error.value.path) == (reason, str(tmp_path / name))


def test_refusal_says_what_was_found_and_what_to_do():
    found = REASONS["bad_name"]
    assert str(refusal("bad_name", "a")) == f"a: need a video that can be decoded, got {found}. Rename it."


def test_errors_inside_the_block_are_the_files_but_for_those_of_the_machine():
    told = r"v.mp4: .* \(ZeroDivisionError: division by zero, in test_video_files.py line"
    with pytest.raises(DecodeError, match=told), one_file("v.mp4"):
        1 / 0  # noqa: B018 - the error is what is wanted
    with pytest.raises(MachineError, match="need all its packages, got: no decord"), one_file("v.mp4"):
        raise ImportError("no decord")
