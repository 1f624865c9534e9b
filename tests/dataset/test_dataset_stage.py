"""The stage as a whole, on a folder, on Scenes, and on a published data set."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from dataset_world import CONFIG, PARAMS, build, published

from hcmi.cli import main
from hcmi.dataset import read_folder, stage
from hcmi.dataset.captions import CaptionRow
from hcmi.errors import ConfigError, DataError
from hcmi.types import Skip


@pytest.mark.parametrize("split", ["val", "test"])
def test_training_video_is_left_out_when_the_given_splits_evaluate_on_its_bytes(folder, film_of, tmp_path, split):
    root = folder("video,caption,start,end,split\n"
                  f"a.mp4,x,,,{split}\nb.mp4,y,0,1,train\nb.mp4,z,1,,train\nc.mp4,w,,,train\nlink.mp4,v,,,train\n")
    shutil.copy(film_of(CaptionRow("c.mp4", "x")), root / "videos" / "c.mp4")
    (root / "videos" / "link.mp4").symlink_to("a.mp4")
    summary, _, skips = build(CONFIG.model_copy(update={"path": str(root)}), tmp_path)
    counts = {"train": 1, "val": 0, "test": 0, split: 1}
    assert summary == {"dataset": "folder", "clips": 2, "captions": 2, "near_duplicates": 0, "hours": 0.001, **counts,
                       "skipped": {"duplicate_video": 3}}
    assert [skip.video_id for skip in skips] == ["b_0-1000", "b_1000-end", "link"]
    assert skips[0] == Skip(
        "b_0-1000", f"{root}/videos/b.mp4", "dataset", "duplicate_video",
        f"{root}/videos/b.mp4: need other videos for train than for {split}, got the bytes of {root}/videos/a.mp4. "
        f"Remove this file, or give both the same split.")


def test_stage_writes_manifest_and_skipped_when_the_folder_is_good(folder, film_of, tmp_path):
    root = folder("video,caption\na.mp4,a dog\nb.mp4,a cat\ngone.mp4,x\n")
    shutil.copy(film_of(CaptionRow("b.mp4", "x")), root / "videos" / "b.mp4")
    summary, clips, (skip,) = build(CONFIG.model_copy(update={"path": str(root)}), tmp_path)
    assert summary == {"dataset": "folder", "clips": 2, "train": 1, "val": 0, "test": 1, "captions": 2,
                       "near_duplicates": 0, "hours": 0.001, "skipped": {"missing": 1}}
    assert list(clips) == ["a", "b"]
    assert (skip.video_id, skip.stage, skip.reason) == ("gone", "dataset", "missing")
    assert [list((tmp_path / name).iterdir()) for name in ("generated", "incoming/scenes_same")] == [[], []]


def test_stage_leaves_the_old_manifest_when_the_folder_is_bad(folder, tmp_path):
    config = CONFIG.model_copy(update={"path": str(folder("video,caption\na.mp4,a dog\nb.mp4,a cat\n"))})
    build(config, tmp_path)
    before = (tmp_path / "manifest" / "manifest.parquet").read_bytes()
    folder("video,caption\na.mp4,a dog\n../b.mp4,a cat\n")
    with pytest.raises(DataError, match=r"with '\.\.'"):
        build(config, tmp_path)
    assert (tmp_path / "manifest" / "manifest.parquet").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "manifest").iterdir()) == [
        "manifest.parquet", "near_duplicates.jsonl", "skipped.jsonl"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("place", ["generated", "manifest/mine"])
def test_stage_is_refused_when_the_data_set_lies_where_it_writes(folder, tmp_path, place):
    shutil.copytree(folder("video,caption\na.mp4,a dog\n"), tmp_path / place)
    before = sorted((tmp_path / place).rglob("*"))
    with pytest.raises(ConfigError, match=r"^dataset.path: need a folder outside .*, which is replaced, got "):
        build(CONFIG.model_copy(update={"path": str(tmp_path / place)}), tmp_path)
    assert sorted((tmp_path / place).rglob("*")) == before


def test_stage_makes_scenes_and_both_batches_when_asked(tmp_path):
    sizes = {"num_train": 5, "num_val": 2, "num_test": 3, "num_incoming": 2}
    config = CONFIG.model_copy(update={"name": "scenes", "scenes": CONFIG.scenes.model_copy(update=sizes)})
    summary, clips, _ = build(config, tmp_path)
    assert (summary["clips"], summary["captions"], summary["train"]) == (10, 43, 5)
    assert all(Path(clip.path).is_file() and clip.tags["num_events"] for clip in clips.values())
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


def test_verb_says_which_share_of_the_captions_will_be_cut(folder, tmp_path, monkeypatch):
    root = folder(f"video,caption\na.mp4,{'grey ' * 60}\na.mp4,short\n")
    monkeypatch.chdir(tmp_path)
    params = PARAMS.read_text().replace("name: scenes", "name: folder")
    (tmp_path / "params.yaml").write_text(params.replace("path: data/raw/scenes", f"path: {root}"))
    result = CliRunner().invoke(main, ["dataset", "--json"])
    assert result.exit_code == 0, result.stderr
    assert "note: 50.0% of the captions are longer than the 40 tokens that the model reads" in result.stderr


def test_missing_videos_are_counted_and_listed_when_some_are_there(annotations_dir, shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MOST_MISSING", 0.999)
    folder = tmp_path / "msvd"
    shutil.copytree(annotations_dir / "msvd", folder)
    names = [name for split in ("train", "test") for name in (folder / f"{split}_list.txt").read_text().split()[:2]]
    (folder / "videos").mkdir()
    sources = sorted((shared_data / "real_clips" / "videos").iterdir())
    for name, source in zip(names, sources, strict=False):
        shutil.copy(source, folder / "videos" / f"{name}.mp4")
    summary, clips, skips = build(published("msvd", folder), tmp_path)
    assert (summary["clips"], summary["train"], summary["test"]) == (4, 2, 2)
    assert summary["skipped"] == {"missing": 1966}
    everything = json.loads((folder / "captions_msvd.json").read_text())
    assert sum(len(clip.captions) for clip in clips.values()) == sum(len(everything[name]) for name in names)
    assert {skip.reason for skip in skips} == {"missing"}
    assert all(skip.path.startswith(str(folder / "videos")) for skip in skips)


def test_dataset_is_refused_when_few_videos_have_many_clips_and_most_are_missing(folder, tmp_path):
    """Nine parts of one file counted as nine files, beside nine names without one."""
    parts = "".join(f"a.mp4,part {number},0.{number}\n" for number in range(9))
    table = "video,caption,start\n" + parts + "".join(f"gone_{number}.mp4,x,\n" for number in range(9))
    with pytest.raises(DataError, match=r"need at least 50% of the videos .*, got 1 video and 9 names "):
        build(CONFIG.model_copy(update={"path": str(folder(table))}), tmp_path)
    table = "video,caption,start\n" + parts + "gone.mp4,x,\n"
    assert build(CONFIG.model_copy(update={"path": str(folder(table))}), tmp_path)[0]["clips"] == 9


def test_dataset_is_refused_when_most_of_its_videos_are_missing(annotations_dir, shared_data, tmp_path):
    folder = tmp_path / "msvd"
    shutil.copytree(annotations_dir / "msvd", folder)
    (folder / "videos").mkdir()
    name = (folder / "train_list.txt").read_text().split()[0]
    shutil.copy(next((shared_data / "real_clips/videos").iterdir()), folder / "videos" / f"{name}.mp4")
    with pytest.raises(DataError, match=r"need at least 50% of the videos that captions name, got 1 video and 1,969 "):
        build(published("msvd", folder), tmp_path)
    assert not (tmp_path / "manifest").exists()
