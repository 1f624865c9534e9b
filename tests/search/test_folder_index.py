"""A folder of small real videos, searched while files are added, deleted, renamed and broken."""

import json
import os

import pytest
from search_world import searchable_model, write_video

import hcmi.search.folder_index
import hcmi.video
from hcmi.errors import DataError
from hcmi.index import SearchIndex
from hcmi.search import Retriever
from hcmi.search.folder_index import index_folder, videos_by_name


@pytest.fixture(scope="module")
def model():
    return searchable_model()


@pytest.fixture
def videos(tmp_path):
    for grey in (40, 120, 200):
        write_video(tmp_path / "videos" / f"grey {grey}.mp4", grey)
    return tmp_path / "videos"


def indexed(found) -> dict[str, str]:
    """File name -> video_id of the indexed videos."""
    index = SearchIndex.open(found.path)
    return {clip.path.rsplit("/", 1)[1]: clip.video_id for clip in index.clips(index.live_rows())}


def test_folder_is_searched_without_a_pipeline(model, videos, tmp_path):
    retriever = Retriever.from_folder(videos, model, cache=tmp_path / "cache")
    hits = retriever.search("a red ring", top=5)
    assert sorted(hit.path for hit in hits) == sorted(str(path) for path in videos.glob("*.mp4"))
    assert all(0 <= hit.start_s < hit.end_s <= 2.01 for hit in hits)
    assert retriever.notes == []


def test_second_visit_decodes_nothing(model, videos, tmp_path, monkeypatch):
    first = index_folder(model, videos, tmp_path / "cache")

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(hcmi.video.DecoderPool, "_start", never)
    assert indexed(index_folder(model, videos, tmp_path / "cache")) == indexed(first)


def test_index_follows_files_that_are_added_deleted_renamed_and_changed(model, videos, tmp_path):
    before = indexed(index_folder(model, videos, tmp_path / "cache"))
    (videos / "deeper").mkdir()
    (videos / "grey 40.mp4").rename(videos / "deeper" / "renamed.mp4")
    (videos / "grey 120.mp4").unlink()
    write_video(videos / "grey 200.mp4", 250)
    write_video(videos / "new.mp4", 80)
    after = indexed(index_folder(model, videos, tmp_path / "cache"))
    assert sorted(after) == ["grey 200.mp4", "new.mp4", "renamed.mp4"]
    assert after["renamed.mp4"] == before["grey 40.mp4"]
    assert after["grey 200.mp4"] != before["grey 200.mp4"]


def alike(*paths) -> None:
    """Give the files one size, with an empty box of MP4 at their ends, and one time of modification."""
    size = max(path.stat().st_size for path in paths) + 8
    for path in paths:
        content = path.read_bytes()
        rest = size - len(content)
        path.write_bytes(content + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8))
        os.utime(path, (1.7e9, 1.7e9))


def test_films_of_one_size_and_time_are_told_apart_when_they_swap_names(model, videos, tmp_path):
    """As `cp -p`, `rsync -t` and `tar` leave them."""
    dark, light = videos / "grey 40.mp4", videos / "grey 200.mp4"
    alike(dark, light)
    before = indexed(index_folder(model, videos, tmp_path / "cache"))
    dark.rename(videos / "other")
    light.rename(dark)
    (videos / "other").rename(light)
    after = indexed(index_folder(model, videos, tmp_path / "cache"))
    assert (after["grey 40.mp4"], after["grey 200.mp4"]) == (before["grey 200.mp4"], before["grey 40.mp4"])


def test_film_is_read_again_when_another_of_its_size_and_time_takes_its_place(model, videos, tmp_path):
    old, new = videos / "grey 40.mp4", write_video(tmp_path / "new.mp4", 250)
    alike(old, new)
    before = indexed(index_folder(model, videos, tmp_path / "cache"))
    os.replace(new, old)
    assert indexed(index_folder(model, videos, tmp_path / "cache"))[old.name] != before[old.name]


def test_notes_of_an_earlier_version_are_read_and_nothing_is_encoded_again(model, videos, tmp_path, monkeypatch):
    first = index_folder(model, videos, tmp_path / "cache")
    notes = first.path.parent / "files.json"
    old = {name: {key: file[key] for key in ("path", "size", "mtime_ns", "sha256", "problem", "until")}
           for name, file in json.loads(notes.read_text()).items()}
    notes.write_text(json.dumps(old))
    monkeypatch.setattr(hcmi.video.DecoderPool, "_start", pytest.fail)
    assert indexed(index_folder(model, videos, tmp_path / "cache")) == indexed(first)


def test_equal_files_are_one_video(model, videos, tmp_path):
    (videos / "copy.mp4").write_bytes((videos / "grey 40.mp4").read_bytes())
    for _ in range(2):
        assert sorted(indexed(index_folder(model, videos, tmp_path / "cache"))) == [
            "copy.mp4", "grey 120.mp4", "grey 200.mp4"]


def test_broken_files_are_named_once_and_not_tried_again(model, videos, tmp_path):
    (videos / "broken.mp4").write_bytes(b"no video at all")
    (videos / "empty.mkv").touch()
    found = index_folder(model, videos, tmp_path / "cache")
    assert sorted(found.news) == ["broken.mp4", "empty.mkv"]
    assert "got zero bytes" in found.skipped["empty.mkv"]
    again = index_folder(model, videos, tmp_path / "cache")
    assert again.news == {}
    assert again.skipped == found.skipped
    notes = Retriever.from_folder(videos, model, cache=tmp_path / "cache").notes
    assert notes == [f"{videos}: 2 of 5 files cannot be searched, such as broken.mp4."]


def test_copies_of_a_broken_file_are_all_named_on_the_first_visit(model, videos, tmp_path):
    for name in ("broken.mp4", "copy of broken.mp4"):
        (videos / name).write_bytes(b"no video at all")
    found = index_folder(model, videos, tmp_path / "cache")
    assert sorted(found.skipped) == sorted(found.news) == ["broken.mp4", "copy of broken.mp4"]
    assert all(reason.startswith(f"{videos / name}: need a video") for name, reason in found.skipped.items())
    assert index_folder(model, videos, tmp_path / "cache").news == {}


def test_folder_of_copies_of_a_broken_file_is_refused(model, tmp_path):
    for name in ("broken.mp4", "copy of broken.mp4"):
        (tmp_path / name).write_bytes(b"no video at all")
    with pytest.raises(DataError, match="need a video that can be decoded, got 2 that cannot"):
        index_folder(model, tmp_path, tmp_path / "cache")


def test_broken_cache_is_made_again(model, videos, tmp_path):
    found = index_folder(model, videos, tmp_path / "cache")
    (found.path / "index.json").write_text("{")
    (found.path.parent / "files.json").write_text("[]")
    assert len(indexed(index_folder(model, videos, tmp_path / "cache"))) == 3


@pytest.mark.parametrize("name", ["*/videos.parquet", "*/embeddings/frames.npy", "*/vectors.faiss"])
def test_cache_with_a_damaged_file_of_the_right_size_is_made_again(model, videos, tmp_path, name):
    found = index_folder(model, videos, tmp_path / "cache")
    damaged, = (found.path / "segments").glob(name)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert len(Retriever.from_folder(videos, model, cache=tmp_path / "cache").search("a red ring")) == 3


@pytest.mark.parametrize(("limit", "value"), [("COMMIT", 1), ("COMMIT_SECONDS", 0.0)])
def test_interrupted_visit_is_continued(model, videos, tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(hcmi.search.folder_index, limit, value)
    real, calls = hcmi.search.folder_index.add_videos, []

    def interrupt(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(hcmi.search.folder_index, "add_videos", interrupt)
    with pytest.raises(KeyboardInterrupt):
        index_folder(model, videos, tmp_path / "cache")
    monkeypatch.setattr(hcmi.search.folder_index, "add_videos", real)
    assert len(indexed(index_folder(model, videos, tmp_path / "cache"))) == 3


def test_folder_is_refused_when_there_is_nothing_to_search(model, tmp_path):
    with pytest.raises(DataError, match=r"need a folder of videos, got nothing there. Correct the path"):
        videos_by_name(tmp_path / "nothing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="need a folder of videos, got a file"):
        videos_by_name(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"need at least one video file \(such as .mp4, .mkv or .webm\), got none"):
        videos_by_name(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match=r"need a video that can be decoded, got 1 that cannot. The first: "):
        index_folder(model, tmp_path, tmp_path / "cache")


def test_files_that_went_away_while_they_were_read_are_found_by_the_next_visit(model, videos, tmp_path, monkeypatch):
    start = hcmi.video.DecoderPool._start

    def leave(*given):
        if videos.exists():
            videos.rename(tmp_path / "away")
        return start(*given)

    with monkeypatch.context() as unplugged:
        unplugged.setattr(hcmi.video.DecoderPool, "_start", leave)
        with pytest.raises(DataError, match="need a video that can be decoded, got 3 that cannot"):
            index_folder(model, videos, tmp_path / "cache", num_workers=1)
    (tmp_path / "away").rename(videos)
    found = index_folder(model, videos, tmp_path / "cache")
    assert (len(indexed(found)), found.skipped) == (3, {})


def test_files_that_took_too_long_are_tried_again_after_some_time(model, videos, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"not decoded within|cannot"):
        index_folder(model, videos, tmp_path / "cache", timeout_s=1e-4)
    with pytest.raises(DataError, match="got 3 that cannot"):       # each attempt may take a minute
        index_folder(model, videos, tmp_path / "cache")
    monkeypatch.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)        # as if it had passed
    assert len(indexed(index_folder(model, videos, tmp_path / "cache"))) == 3


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile self.mp4\n", "#EXTM3U\n#EXTINF:1,\nself.mp4\n"])
def test_list_of_files_is_no_video_and_stops_no_other(model, videos, tmp_path, text):
    (videos / "self.mp4").write_text(text)
    found = index_folder(model, videos, tmp_path / "cache")
    assert list(found.skipped) == ["self.mp4"]
    assert len(indexed(found)) == 3
