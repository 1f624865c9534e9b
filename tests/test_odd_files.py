"""One file never ends a run: whatever lies among good videos becomes that file's line, in every verb."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from search_world import searchable_model

sys.path.insert(0, str(Path(__file__).parent / "data"))
from video_files import write_grey, write_odd_folder

import hcmi.dataset.build_clips
import hcmi.search.folder_index
from hcmi.config import load_params
from hcmi.dataset import read_folder
from hcmi.search.folder_index import index_folder
from hcmi.types import Skip, path_of_text

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A project with such a folder in it; the names of the good ones, and why each of the others is left out."""
    project = tmp_path_factory.mktemp("project")
    good, bad = write_odd_folder(project / "mine/videos")
    with open(project / "mine/captions.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [(name, f"a video called {name!r}") for name in (*good, *bad)]
        csv.writer(file).writerows([("video", "caption"), *rows])
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["dataset"] |= {"name": "folder", "path": "mine"}
    params["shards"] |= {"size": 16, "num_frames": 6, "max_skip_fraction": 0.7}
    YAML().dump(params, project / "params.yaml")
    searchable_model().save_pretrained(project / "model")
    return project, good, bad


def hcmi_verb(project: Path, *arguments: str, code: int = 0, prefix: list[str] | None = None
              ) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HCMI_CACHE": str(project / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*(prefix or ()), sys.executable, "-m", "hcmi.cli", *arguments], cwd=project, text=True,
                          capture_output=True, timeout=250, env=environment)
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done


def name_of(skip: Skip) -> str:
    return skip.path.removeprefix("mine/videos/")


def test_dataset_and_shards_name_each_odd_file(odd):
    project, good, bad = odd
    summary = json.loads(hcmi_verb(project, "dataset", "--json").stdout)
    assert summary["clips"] == len(good)
    text = (project / "data/manifest/skipped.jsonl").read_text("utf-8")
    skips = [Skip(**json.loads(line)) for line in text.splitlines()]
    assert {name_of(skip): skip.reason for skip in skips} == {**bad, "device.mp4": "outside"}
    told = (r"mine/videos/.*: need .*, got .*\. "
            r"(Copy the file there|Replace or remove the file|Put it there, or correct its name)\.")
    assert all(re.fullmatch(told, skip.detail) for skip in skips)
    stats = json.loads(hcmi_verb(project, "shards", "--json").stdout)
    assert (stats["num_clips"], stats["skipped"]) == (len(good), {})


def test_doctor_names_odd_files(odd):
    project, good, bad = odd
    report = json.loads(hcmi_verb(project, "doctor", "mine", "--json", code=1).stdout)
    gone = [name for name in bad if name in ("broken.mp4", "loop.mp4")]
    outside = ["device.mp4"]        # a link to one
    assert report["videos"]["sampled"] == len(good) + len(bad) - len(gone) - len(outside)
    assert report["videos"]["missing"] == len(gone)
    assert report["reasons"] == {"unreadable": 4 - len(outside), "empty_file": 1, "not_a_video": 1}
    assert {row["file"] for row in report["worst"][:len(bad)]} == set(bad)
    assert report["problems"][0] == (r"names: need names in UTF-8, got 2 others, such as caf\xe9.mp4. Rename them: DVC "
                                     "stops at such a name.")
    text = hcmi_verb(project, "doctor", "mine/videos", code=1).stdout
    assert f"{len(good) + len(bad) - len(gone)} files looked at" in text
    # the slowest files are named too, and the name of the family has joiners
    assert {char for char in text if not char.isprintable()} - {"\u200d"} == {"\n"}


def test_search_finds_the_others_and_notes_each_odd_file_once(odd):
    project, good, bad = odd
    arguments = ("search", "a red ring", "--videos", "mine/videos", "--model", "model")
    done = hcmi_verb(project, *arguments, "--json", "--top", "50")
    found = {path_of_text(hit["path"]).removeprefix(f"{project}/mine/videos/") for hit in json.loads(done.stdout)}
    assert found == set(good)
    start = f"note: {project}/mine/videos/"
    noted = [line.removeprefix(start).partition(": need ")[0] for line in done.stderr.splitlines() if start in line]
    assert sorted(noted) == sorted(bad)
    done = hcmi_verb(project, *arguments, "--top", "50")
    assert len(done.stdout.splitlines()) == len(good)
    assert [line for line in done.stderr.splitlines() if line.startswith("note: ")] == [
        f"note: mine/videos: {len(bad)} of {len(good) + len(bad)} files cannot be searched, such as broken.mp4."]


def test_batch_without_captions_has_a_line_for_each_odd_file(odd, monkeypatch):
    """As `hcmi drift` reads it."""
    project, good, bad = odd
    monkeypatch.chdir(project)
    clips, skipped = read_folder("mine/videos", load_params("params.yaml").dataset, captions_required=False)
    assert sorted(clip.path.removeprefix("mine/videos/") for clip in clips) == sorted(good)
    assert {name_of(skip): skip.reason for skip in skipped} == {**bad, "device.mp4": "outside"}


def test_video_is_left_out_when_it_vanishes_while_it_is_looked_at(tmp_path, monkeypatch):
    for number in range(3):
        write_grey(tmp_path / "videos" / f"v{number}.mp4", num_frames=20 + number)
    real = hcmi.dataset.build_clips.sha256

    def hash_and_remove(path):
        digest = real(path)
        if path.endswith("v1.mp4"):
            Path(path).unlink()
        return digest

    monkeypatch.setattr(hcmi.dataset.build_clips, "sha256", hash_and_remove)
    config = load_params(ROOT / "params.yaml").dataset
    clips, (skip,) = read_folder(tmp_path / "videos", config, captions_required=False)
    assert [clip.video_id for clip in clips] == ["v0", "v2"]
    assert (skip.video_id, skip.reason) == ("v1", "missing")


def test_search_goes_on_when_a_video_vanishes_after_it_was_listed(tmp_path, monkeypatch):
    for number in range(3):
        write_grey(tmp_path / "videos" / f"v{number}.mp4", num_frames=20 + number)
    real = hcmi.search.folder_index.videos_by_name

    def find_and_remove(folder):
        found = real(folder)
        found["v1.mp4"].unlink(missing_ok=True)
        return found

    monkeypatch.setattr(hcmi.search.folder_index, "videos_by_name", find_and_remove)
    found = index_folder(searchable_model(), tmp_path / "videos", tmp_path / "cache")
    assert list(found.news) == ["v1.mp4"]
    assert "got no such file" in found.skipped["v1.mp4"]


def test_search_names_what_it_may_not_read_and_finds_it_once_it_may(tmp_path, plain_user):
    searchable_model().save_pretrained(tmp_path / "model")
    for number, name in enumerate(("good.mp4", "locked.mp4", "folder/inside.mp4")):
        write_grey(tmp_path / "videos" / name, num_frames=20 + number)
    locked = [tmp_path / "videos/locked.mp4", tmp_path / "videos/folder"]
    arguments = ("search", "a red ring", "--videos", "videos", "--model", "model", "--json")
    for path in locked:
        path.chmod(0)
    done = hcmi_verb(tmp_path, *arguments, prefix=plain_user)
    assert [Path(hit["path"]).name for hit in json.loads(done.stdout)] == ["good.mp4"]
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    told = r"videos/(\S+): need a video that can be decoded, got not a regular file, or no permission to read it"
    assert sorted(re.findall(told, " ".join(notes))) == ["folder", "locked.mp4"]
    for path in locked:
        path.chmod(0o755)
    done = hcmi_verb(tmp_path, *arguments, prefix=plain_user)
    assert len(json.loads(done.stdout)) == 3
    assert "note: " not in done.stderr
