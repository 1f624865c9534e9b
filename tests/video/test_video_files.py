"""Which files are taken for videos, and what is wrong with the others."""

import hashlib

import pytest

from hcmi.errors import DataError, DecodeError, MachineError
from hcmi.video import REASONS, check_file, find_videos, sha256
from hcmi.video.files import VIDEO_ENDINGS, one_file, refusal


def test_videos_are_found_by_their_ending_in_any_case_and_folder(tmp_path):
    for name in ("b.mp4", "A.MKV", "sub/c.m2ts", "sub/d.heic", "sub/e.F4V", "notes.txt", "mp4", ".hidden.mp4",
                 ".hidden/f.mp4", "captions.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["A.MKV", "b.mp4", "folder.mp4", "sub/c.m2ts", "sub/d.heic", "sub/e.F4V"]


def test_endings_are_written_as_they_are_compared():
    assert all(ending == ending.lower() and ending.startswith(".") for ending in VIDEO_ENDINGS)


def test_search_for_videos_is_refused_when_the_folder_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="none: need a folder that can be read, got: No such file"):
        find_videos(tmp_path / "none")


def test_hash_is_of_the_bytes(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"abc")
    assert sha256(tmp_path / "v.mp4") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(("name", "reason"), [("none.mp4", "missing"), ("line\nbreak.mp4", "bad_name")])
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
