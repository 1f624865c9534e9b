"""Tars as video2dataset writes them, made with webdataset's own writer, of real small films."""

import functools
import http.server
import json
import os
import re
import sys
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from dataset_world import CONFIG, PARAMS
from dataset_world import build as build_with
from dvc.repo import Repo
from ruamel.yaml import YAML
from video_files import write_grey
from webdataset import TarWriter

from hcmi.config import load_params
from hcmi.dataset.webdataset import list_tars
from hcmi.errors import DataError, MachineError
from hcmi.shards import write_shards


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """The bytes of a film of so many frames, 10 a second."""
    folder = tmp_path_factory.mktemp("films")

    @functools.cache
    def make(num_frames: int) -> bytes:
        return write_grey(folder / f"{num_frames}.mp4", num_frames=num_frames).read_bytes()
    return make


@pytest.fixture
def write(tmp_path, film):
    """Writes a tar from samples: (key, members); a number stands for the film of so many frames."""
    def make(name: str, *samples: tuple[str, dict]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with TarWriter(str(path), mtime=0, encoder=False) as tar:
            for key, members in samples:
                tar.write({"__key__": key, **{ending: film(value) if isinstance(value, int) else value
                                              for ending, value in members.items()}})
        return path
    return make


def build(path, folder: Path, **changes):
    """Summary, clips by id and Skips of the dataset stage."""
    return build_with(CONFIG.model_copy(update={"name": "webdataset", "path": str(path), **changes}), folder)


def sample(number: int) -> tuple[str, dict]:
    return f"{number:06d}", {"mp4": 20 + number, "txt": f"caption  {number}\n".encode(),
                             "json": json.dumps({"key": f"{number:06d}", "status": "success"}).encode()}


@contextmanager
def served(folder: Path):
    """The address of a server of this folder."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


# ------------------------------------------------------------------------------------------------------- what is read

def test_samples_become_clips_and_their_videos_become_files(write, film, tmp_path):
    write("tars/00000.tar", sample(0), sample(1))
    write("tars/00001.tar", sample(2))
    (tmp_path / "tars/00000_stats.json").write_text("{}")
    summary, clips, skips = build(tmp_path / "tars", tmp_path)
    assert (summary["clips"], summary["skipped"], skips) == (3, {}, [])
    assert {name: clip.captions for name, clip in clips.items()} == {
        f"{number:06d}": (f"caption {number}",) for number in range(3)}
    for number in range(3):
        clip = clips[f"{number:06d}"]
        assert Path(clip.path) == tmp_path / f"generated/videos/{number:06d}.mp4"
        assert Path(clip.path).read_bytes() == film(20 + number)
        assert clip.duration_s == pytest.approx(2 + number / 10)


def test_splits_are_those_of_a_folder_of_the_same_videos(write, tmp_path):
    write("00000.tar", *map(sample, range(8)))
    _, clips, _ = build(tmp_path / "00000.tar", tmp_path)
    (tmp_path / "generated/captions.csv").write_text(
        "video,caption\n" + "".join(f"{name}.mp4,x\n" for name in clips), encoding="utf-8")
    (tmp_path / "generated").rename(tmp_path / "folder")
    _, same, _ = build(tmp_path / "folder", tmp_path, name="folder")
    assert {name: clip.split for name, clip in clips.items()} == {name: clip.split for name, clip in same.items()}
    assert {clip.split for clip in clips.values()} == {"train", "val", "test"}


def test_the_real_shards_stage_reads_what_was_extracted(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("tars/00000.tar", *map(sample, range(4)))
    build("tars", Path())
    config = load_params(PARAMS).shards.model_copy(update={"size": 16, "num_frames": 4})
    stats = write_shards(manifest_path="manifest/manifest.parquet", out_dir="shards", config=config)
    assert (stats["num_clips"], stats["skipped"]) == (4, {})


@pytest.mark.parametrize("place", ["pattern", "pipe", "http", "list", "folder with a list", "s3", "compressed"])
def test_tars_are_read_from(write, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write(f"tars/{number:05d}.tar", sample(number))
    path = "tars/{00000..00001}.tar"
    if place == "pipe":
        path = f"pipe:cat {path}"
    elif place == "list":
        Path("mine.txt").write_text(f"# two tars\n\n  {path}\n", encoding="utf-8")
        path = "mine.txt"
    elif place == "folder with a list":
        Path("some").mkdir()
        Path("tars/00001.tar").rename("some/one.tar")
        Path("some/urls.txt").write_text("tars/00000.tar\n", encoding="utf-8")
        path = "some"
    elif place == "s3":         # the AWS command line, as far as it is used
        Path("aws").write_text('#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && cat "${3#s3://bucket/}"\n', encoding="utf-8")
        Path("aws").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        path = f"s3://bucket/{path}"
    elif place == "compressed":
        for number in range(2):
            write(f"packed/{number}.tar.gz", sample(number))
        path = "packed"
    with served(tmp_path) as address:
        _, clips, skips = build(f"{address}/{path}" if place == "http" else path, tmp_path)
    assert (sorted(clips), skips) == (["000000", "000001"], [])


def test_metadata_gives_the_caption_and_the_times_where_the_text_does_not(write, tmp_path):
    write("a.tar", ("empty", {"mp4": 20, "txt": b"", "json": b'{"caption": "from  json"}'}),
          ("missing", {"mkv": 21, "json": b'{"caption": "a part", "start": 0.5, "end": "1.5"}'}),
          ("text", {"webm.mp4": 22, "txt": b"from text", "json": b'{"caption": "from json"}'}),
          ("cut", {"mp4": 23, "txt": b"cut already", "json": b'{"clips": [[70.0, 75.0]], "start": 70, "end": 75}'}))
    _, clips, skips = build(tmp_path / "a.tar", tmp_path)
    assert skips == []
    assert {name: (*clip.captions, clip.start_s, clip.end_s) for name, clip in clips.items()} == {
        "empty": ("from json", 0.0, 2.0), "missing_500-1500": ("a part", 0.5, 1.5),
        "text_webm": ("from text", 0.0, pytest.approx(2.2)), "cut": ("cut already", 0.0, pytest.approx(2.3))}


# --------------------------------------------------------------------------------------------------- what is left out

BAD = {
    "no caption": ({"mp4": 20}, "empty_caption", "need a caption in its .txt or in its .json, got none"),
    "blank caption": ({"mp4": 20, "txt": b" \n", "json": b'{"caption": null}'}, "empty_caption", "need a caption in"),
    "no video": ({"txt": b"x", "json": b'{"status": "failed_to_download", "error_message": "gone"}'}, "no_video",
                 r"need a video, got none \(gone\). Download it again"),
    "no json": ({"mp4": 20, "txt": b"x", "json": b"{"}, "broken_sample", "need JSON in its .json, got: Expecting"),
    "json list": ({"mp4": 20, "txt": b"x", "json": b"[]"}, "broken_sample", "need an object in its .json, got list"),
    "no text": ({"mp4": 20, "txt": b"caf\xe9"}, "bad_caption", "need UTF-8 in its .txt, got the byte 0xe9"),
    "half a character": ({"mp4": 20, "json": b'{"caption": "smile \\ud83d"}'}, "bad_caption", "need a caption of text"),
    "no time": ({"mp4": 20, "txt": b"x", "json": b'{"start": "soon"}'}, "bad_segment",
                "need start and end in seconds from 0, got 'soon' to None"),
    "huge time": ({"mp4": 20, "txt": b"x", "json": b'{"start": 1' + b"0" * 400 + b"}"}, "bad_segment",
                  "need start and end in seconds from 0, got 1000"),
    "turned time": ({"mp4": 20, "txt": b"x", "json": b'{"start": 1.5, "end": 1}'}, "bad_segment",
                    "need end after start, got 1.5 to 1"),
    "late": ({"mp4": 20, "txt": b"x", "json": b'{"start": 9}'}, "too_short", "before the end at 2 s, got start 9"),
    "no film": ({"mp4": b"this is no video", "txt": b"x"}, "not_a_video", "need a video that can be decoded"),
    "empty film": ({"mp4": b"", "txt": b"x"}, "empty_file", "need a video that can be decoded, got zero bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_sample_is_left_out_with_its_reason_when_it_has(write, tmp_path, case):
    members, reason, detail = BAD[case]
    write("a.tar", sample(0), ("bad", members), sample(1))
    summary, clips, (skip,) = build(tmp_path / "a.tar", tmp_path)
    assert (sorted(clips), summary["skipped"]) == (["000000", "000001"], {reason: 1})
    assert (skip.video_id, skip.stage, skip.reason) == ("bad", "dataset", reason)
    assert re.search(detail, skip.detail), skip.detail
    assert skip.path.endswith(("a.tar/bad", "videos/bad.mp4"))


@pytest.mark.parametrize("key", ["../out", "/etc/out", "line\nbreak", "x" * 300, "000000.mp4/inside"])
def test_sample_is_left_out_when_its_key_can_name_no_file(write, tmp_path, key):
    write("a.tar", sample(0), (key, {"mp4": 25, "txt": b"x"}))
    _, clips, (skip,) = build(tmp_path / "a.tar", tmp_path)
    assert (list(clips), skip.reason) == (["000000"], "bad_name")
    assert [path.name for path in (tmp_path / "generated/videos").rglob("*")] == ["000000.mp4"]
    assert not (tmp_path / "generated/out.mp4").exists()


def test_key_in_a_folder_of_the_tar_keeps_its_folder(write, tmp_path):
    write("a.tar", ("part/one", {"mp4": 25, "txt": b"x"}))
    _, clips, _ = build(tmp_path / "a.tar", tmp_path)
    assert clips["part_one"].path.endswith("generated/videos/part/one.mp4")


def test_samples_are_found_when_a_tar_was_made_of_a_whole_folder(tmp_path, film):
    """`tar -C FOLDER .` puts ./ before each name."""
    (tmp_path / "source/part").mkdir(parents=True)
    for name in ("a", "part/b"):
        (tmp_path / f"source/{name}.mp4").write_bytes(film(20 + len(name)))
        (tmp_path / f"source/{name}.txt").write_text(f"caption of {name}")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "source", arcname=".")
    _, clips, skips = build(tmp_path / "a.tar", tmp_path)
    assert ({name: clip.captions for name, clip in clips.items()}, skips) == (
        {"a": ("caption of a",), "part_b": ("caption of part/b",)}, [])


def test_each_video_of_a_sample_is_a_clip_when_it_has_a_text_and_is_named_when_not(write, tmp_path):
    write("a.tar", ("a", {"1.mp4": 20, "1.txt": b"one", "2.mp4": 21, "2.json": b'{"caption": "two"}', "txt": b"a"}),
          ("b", {"left.mp4": 22, "right.mp4": 23, "txt": b"both"}))
    _, clips, (skip,) = build(tmp_path / "a.tar", tmp_path)
    assert {name: clip.captions for name, clip in clips.items()} == {
        "a_1": ("one",), "a_2": ("two",), "b_left": ("both",)}
    assert skip.reason == "several_videos"
    assert re.search("need one video, or a text for each, got b.right.mp4 too", skip.detail)


@pytest.mark.parametrize("place", ["same tar", "far apart", "another tar"])
def test_sample_is_left_out_when_its_key_comes_again(write, tmp_path, place):
    second = ("000000", {"mp4": 40, "txt": b"second"})
    if place == "another tar":
        write("tars/0.tar", sample(0), sample(1))
        write("tars/1.tar", second)
    else:
        between = [sample(1)] if place == "far apart" else []
        write("tars/0.tar", sample(0), *between, second, *([] if between else [sample(1)]))
    _, clips, (skip,) = build(tmp_path / "tars", tmp_path)
    assert (clips["000000"].captions, clips["000000"].duration_s) == (("caption 0",), 2.0)
    assert (sorted(clips), skip.video_id, skip.reason) == (["000000", "000001"], "000000", "duplicate_key")


@pytest.mark.parametrize(("place", "kept", "left_out"), [
    ("in the metadata", ["000000"], [("000001", "broken_tar")]),
    ("in the video", ["000000"], [("000001", "broken_tar")]),
    ("between the video and the text", ["000000"], [("000001", "empty_caption"), ("a_tar", "broken_tar")]),
    ("in the text", ["000000"], [("000001", "broken_tar")]),
    ("before the end mark", ["000000", "000001"], [("a_tar", "broken_tar")])])
def test_rest_of_a_tar_is_left_out_when_it_is_cut_off(write, tmp_path, place, kept, left_out):
    path = write("a.tar", sample(0), ("000001", {"json": b"{}", "mp4": 21, "txt": b"x" * 600}))
    content = path.read_bytes()
    metadata, video, text = (content.index(b"000001." + ending) for ending in (b"json", b"mp4", b"txt"))
    at = {"in the metadata": metadata + 513, "in the video": video + 512 + 700, "in the text": text + 512 + 3,
          "between the video and the text": text, "before the end mark": text + 512 + 1024}[place]
    path.write_bytes(content[:at])
    write("b.tar", sample(2))
    _, clips, skips = build(tmp_path / "{a,b}.tar", tmp_path)
    assert sorted(clips) == [*kept, "000002"]
    assert [(skip.video_id, skip.reason) for skip in skips] == left_out
    assert f"{path}: need a whole tar, got: " in skips[-1].detail


def test_tar_is_left_out_when_it_is_something_else(write, tmp_path):
    write("tars/0.tar", sample(0))
    (tmp_path / "tars/1.tar").write_text("this is no tar " * 100)
    (tmp_path / "tars/2.tar").touch()
    _, clips, skips = build(tmp_path / "tars", tmp_path)
    assert list(clips) == ["000000"]
    assert [(skip.path.rpartition("/")[2], skip.reason) for skip in skips] == [
        ("1.tar", "broken_tar"), ("2.tar", "broken_tar")]


# -------------------------------------------------------------------------------------------------------------- refused

@pytest.mark.parametrize(("path", "message"), [
    ("nothing/00000.tar", "nothing/00000.tar: need a tar that can be opened, got: No such file or directory. Correct"),
    ("link", "link/1.tar: need a tar that can be opened, got: No such file or directory. Correct"),
    ("{0,1}.tar", r"1.tar: need a tar that can be opened, got: No such file"),
    ("ftp://host/0.tar", "ftp://host/0.tar: need a tar that can be opened, got: ftp://host/0.tar: no gopen handler"),
    ("pipe:cat 0.tar; exit 3", "pipe:cat 0.tar; exit 3: need the whole tar, got: its command ended with status 3. Run"),
    ("pipe:cat 0.tar; exec >&-; sleep 0.2; exit 5", "need the whole tar, got: its command ended with status 5"),
    ("pipe:head -c 1500 0.tar; exit 4", "need the whole tar, got: its command ended with status 4"),
    ("{2..1", r"dataset.path: need a path, a brace pattern such as \{000..009\}.tar or a URL, got '\{2..1'"),
    ("empty", "empty: need tars or a urls.txt that lists some, got none. Correct dataset.path."),
    ("latin.txt", "latin.txt: need a list of tars in UTF-8, got: 'utf-8' codec can't decode byte 0xe9"),
    ("only_bad.tar", r"need at least one readable video with a caption, got none \(no_video 1\)")])
def test_stage_is_refused_in_one_line_and_changes_nothing_when(write, tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    write("0.tar", sample(0))
    write("only_bad.tar", ("a", {"txt": b"x"}))
    Path("empty").mkdir()
    Path("link").mkdir()
    Path("link/1.tar").symlink_to("nowhere.tar")
    Path("latin.txt").write_bytes(b"caf\xe9.tar")
    build("0.tar", tmp_path)
    before = (tmp_path / "manifest/manifest.parquet").read_bytes()
    with pytest.raises(DataError, match=message) as error:
        build(path, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "manifest/manifest.parquet").read_bytes() == before
    assert not [left for left in tmp_path.iterdir() if left.name.startswith(".")]
    if path != "only_bad.tar":
        assert (tmp_path / "generated/videos/000000.mp4").exists()


def test_stage_names_its_output_when_the_disk_is_full(write, tmp_path, small_disk):
    disk = small_disk(3 * 2**20)
    path = write("a.tar", *((f"{number}", {"mp4": os.urandom(2**20), "txt": b"x"}) for number in range(3)))
    with pytest.raises(MachineError, match=f"{disk}/generated: need to write it, got: No space left on device. Free"):
        build(path, disk)
    assert not any(disk.iterdir())


def test_stage_is_refused_when_a_server_does_not_have_the_tar(write, tmp_path):
    write("tars/0.tar", sample(0))
    with served(tmp_path) as address, pytest.raises(DataError, match=r"/1.tar: need the whole tar, .* status 22"):
        build(f"{address}/tars/{{0,1}}.tar", tmp_path)


def test_list_of_tars_is_sorted_and_passes_over_hidden_and_other_files(tmp_path):
    for name in ("b.tar", "a.tar", "sub/c.tgz", ".hidden/d.tar", "a.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "urls.txt").write_text("https://host/{1..2}.tar\npipe:curl -s https://host/3.tar\n", encoding="utf-8")
    assert list_tars(str(tmp_path)) == [*(f"{tmp_path}/{name}" for name in ("a.tar", "b.tar", "sub/c.tgz")),
                                        "https://host/1.tar", "https://host/2.tar", "pipe:curl -s https://host/3.tar"]
    assert list_tars("s3://bucket/a b/{0,1}.tar") == [f"pipe:aws s3 cp 's3://bucket/a b/{n}.tar' -" for n in (0, 1)]


# ------------------------------------------------------------------------------------------------------------ under DVC

@pytest.fixture
def project(tmp_path, monkeypatch):
    """A DVC project in the working folder, whose only stage is the real one without its deps on code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PARAMS.parent))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    stage = YAML(typ="safe").load(PARAMS.with_name("dvc.yaml"))["stages"]["dataset"]
    stage["deps"] = [name for name in stage["deps"] if name != "code/dataset.txt"]
    YAML().dump({"stages": {"dataset": stage}}, Path("dvc.yaml"))
    params = YAML(typ="safe").load(PARAMS)
    params["dataset"] |= {"name": "webdataset", "path": "data/raw/remote"}
    YAML().dump(params, Path("params.yaml"))
    Path("data").mkdir()
    Path("data/accepted.json").write_text("[]")
    with Repo.init(no_scm=True) as repo:
        yield repo


def test_dvc_runs_the_stage_again_when_the_list_of_urls_changes(write, project):
    write("tars/0.tar", sample(0))
    write("tars/1.tar", sample(1))
    urls = Path("data/raw/remote/urls.txt")
    urls.parent.mkdir(parents=True)
    with served(Path("tars")) as address:
        urls.write_text(f"{address}/0.tar\n", encoding="utf-8")
        assert [stage.name for stage in project.reproduce()] == ["dataset"]
        assert [path.name for path in Path("data/generated/videos").iterdir()] == ["000000.mp4"]
        assert project.status() == {}
        urls.write_text(f"{address}/{{0,1}}.tar\n", encoding="utf-8")
        assert [stage.name for stage in project.reproduce()] == ["dataset"]
    assert sorted(path.name for path in Path("data/generated/videos").iterdir()) == ["000000.mp4", "000001.mp4"]
