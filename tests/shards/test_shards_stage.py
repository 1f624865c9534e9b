"""The `shards` stage: what it writes, what it repeats, and that it continues after it was killed."""

import fcntl
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import simplejpeg
from click.testing import CliRunner
from stage_world import CONFIG, contents, make_clip, stage
from video_files import grey_numbers, write_sound

from hcmi.cli import main
from hcmi.config import ShardsConfig
from hcmi.dataset import write_manifest
from hcmi.errors import ConfigError, DataError
from hcmi.shards import ShardReader, write_shards
from hcmi.shards.journal import Journal
from hcmi.shards.shard_index import INDEX
from hcmi.types import Clip


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_clip(folder, number, ("train", "train", "val", "test")[number % 4]) for number in range(40)]


def inodes(folder: Path) -> dict[bytes, int]:
    return {path.read_bytes(): path.stat().st_ino for path in folder.glob("*.tar")}


def read_shards(folder: Path) -> dict[str, tuple[dict, list[np.ndarray]]]:
    """By the index, from the bytes."""
    found = {}
    for row in pq.read_table(folder / "index.parquet").to_pylist():
        content = (folder / row["shard"]).read_bytes()
        record = json.loads(content[row["json_offset"]:row["json_offset"] + row["json_size"]])
        pictures = [simplejpeg.decode_jpeg(content[offset:offset + size])
                    for offset, size in zip(row["frame_offsets"], row["frame_sizes"], strict=True)]
        found[row["video_id"]] = record, pictures
    return found


def test_shards_hold_every_clip_when_all_is_well(tmp_path, clips):
    summary = stage(tmp_path, clips)
    found = read_shards(tmp_path / "shards")
    assert sorted(found) == [clip.video_id for clip in clips]
    record, pictures = found["v0000"]
    assert record == {**clips[0].to_row(), "times_s": [0.2, 0.6, 1.0, 1.4, 1.8], "decoder": "decord",
                      "num_decodable": 20, "width": 64, "height": 64}
    assert record["captions"] == ["clip 0", "grün"]
    assert grey_numbers(np.stack(pictures)) == [2, 6, 10, 14, 18]
    assert summary["clips"] == {"train": 20, "val": 10, "test": 10}
    assert (summary["decoded"], summary["reused"], summary["skipped"]) == (40, 0, {})
    stats = json.loads((tmp_path / "shards/stats.json").read_text())
    assert stats["video_seconds"] == {"train": 40.0, "val": 20.0, "test": 20.0}
    assert stats["decoders"] == {"decord": 40}
    assert stats["bytes"] == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    assert (tmp_path / "shards/skipped.jsonl").read_bytes() == b""
    assert pq.read_schema(tmp_path / "shards/index.parquet").equals(INDEX)
    sizes = pq.read_table(tmp_path / "shards/index.parquet")["shard"].value_counts().to_pylist()
    assert max(item["counts"] for item in sizes) <= CONFIG.max_clips_per_shard


def test_shards_are_webdataset_when_its_reader_opens_them(tmp_path, clips):
    import webdataset

    stage(tmp_path, clips[:6])
    urls = sorted(str(path) for path in (tmp_path / "shards").glob("*.tar"))
    samples = {item["__key__"]: item for item in webdataset.WebDataset(urls, shardshuffle=False)}
    assert sorted(samples) == [clip.video_id for clip in clips[:6]]
    assert json.loads(samples["v0001"]["json"])["captions"] == ["clip 1", "grün"]
    assert {"00.jpg", "04.jpg"} <= set(samples["v0001"])


def test_index_gives_the_places_of_the_members_when_tarfile_reads_them(tmp_path, clips):
    stage(tmp_path, clips[:6])
    for row in pq.read_table(tmp_path / "shards/index.parquet").to_pylist():
        with tarfile.open(tmp_path / "shards" / row["shard"]) as tar:
            found = [(item.name, item.offset_data, item.size, item.mtime) for item in tar
                     if item.name.startswith(row["video_id"])]
        names = [f"{row['video_id']}.{ending}" for ending in ("json", "00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg")]
        assert found == list(zip(names, [row["json_offset"], *row["frame_offsets"]],
                                 [row["json_size"], *row["frame_sizes"]], [0] * 6, strict=True))


def test_bytes_are_equal_when_runs_are(tmp_path, clips):
    stage(tmp_path, clips[:12], name="one")
    stage(tmp_path, clips[:12], replace_config(num_workers=2), name="two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def replace_config(**changes) -> ShardsConfig:
    return ShardsConfig(**{**CONFIG.model_dump(), **changes})


def test_only_new_clips_are_decoded_when_some_are_added(tmp_path, clips):
    stage(tmp_path, clips[:36])
    before = inodes(tmp_path / "shards")
    summary = stage(tmp_path, clips[:38])
    assert (summary["decoded"], summary["reused"]) == (2, 36)
    kept = [inode for content, inode in inodes(tmp_path / "shards").items() if before.get(content) == inode]
    assert len(kept) >= len(before) - 2, "only the shards that a new clip falls in are written"
    stage(tmp_path, clips[:38], name="fresh")
    assert contents(tmp_path / "shards") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["captions", "video_id", "split", "removed", "clips_per_shard"])
def test_nothing_is_decoded_when_only_the_manifest_changes(tmp_path, clips, change):
    some, config = clips[:12], CONFIG
    stage(tmp_path, some)
    if change == "captions":
        some = [replace(some[0], captions=("something longer " * 50,)), *some[1:]]
    elif change == "video_id":
        some = [replace(some[0], video_id="zzz"), *some[1:]]
    elif change == "split":
        some = [replace(clip, split={"train": "val", "val": "train"}.get(clip.split, "test")) for clip in some]
    elif change == "removed":
        some = some[2:]
    else:
        config = replace_config(max_clips_per_shard=2)
    summary = stage(tmp_path, some, config)
    assert (summary["decoded"], summary["reused"]) == (0, len(some))
    stage(tmp_path, some, config, name="fresh")
    assert contents(tmp_path / "shards") == contents(tmp_path / "fresh")
    assert {clip.video_id: list(clip.captions) for clip in some} == {
        key: record["captions"] for key, (record, _) in read_shards(tmp_path / "shards").items()}


def test_frames_are_taken_from_shards_that_an_earlier_version_wrote(tmp_path, clips, monkeypatch):
    """Its JSON lacked three columns."""
    to_row, manifest = Clip.to_row, tmp_path / "manifest.parquet"
    write_manifest(sorted(clips[:12], key=lambda clip: clip.video_id), manifest)
    later = ("split", "duration_s", "sha256")
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "to_row", lambda clip: {
            name: value for name, value in to_row(clip).items() if name not in later})
        write_shards(manifest_path=manifest, out_dir=tmp_path / "shards", config=CONFIG)
    with pytest.raises(DataError, match=r"-000000\.tar: need the JSON of clip v\d+ with all columns of the manifest, "
                                        r"got none called duration_s, sha256, split: an earlier version wrote these "
                                        r"shards\. Run `hcmi shards` again\."):
        ShardReader(tmp_path / "shards", "train")
    assert stage(tmp_path, clips[:12])["decoded"] == 0
    stage(tmp_path, clips[:12], name="fresh")
    assert contents(tmp_path / "shards") == contents(tmp_path / "fresh")
    assert len(ShardReader(tmp_path / "shards", "train")) == 6


def test_everything_is_decoded_when_a_parameter_changes(tmp_path, clips):
    stage(tmp_path, clips[:6])
    assert stage(tmp_path, clips[:6], replace_config(quality=80))["decoded"] == 6
    changed = [replace(clips[0], sha256="0" * 64), *clips[1:6]]
    assert stage(tmp_path, changed, replace_config(quality=80))["decoded"] == 1


def test_clip_is_one_segment_when_the_manifest_says_so(tmp_path, clips):
    segment = replace(clips[0], video_id="part", start_s=0.4, end_s=0.9, duration_s=0.5)
    stage(tmp_path, [segment])
    record, pictures = read_shards(tmp_path / "shards")["part"]
    assert grey_numbers(np.stack(pictures)) == [4, 5, 6, 7, 8]
    assert (record["start_s"], record["end_s"], record["num_decodable"]) == (0.4, 0.9, 5)


def bad_clips(folder: Path, good: Clip) -> list[Clip]:
    folder.mkdir(exist_ok=True)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    write_sound(folder / "sound.mp4")
    paths = ("empty.mp4", "gone.mp4", "sound.mp4", "text.mp4")
    bad = [replace(good, video_id=f"bad_{path[:-4]}", path=str(folder / path), sha256=f"{number:064d}")
           for number, path in enumerate(paths)]
    return [*bad, replace(good, video_id="bad_late", start_s=50.0, end_s=51.0)]


def test_bad_files_are_named_when_few(tmp_path, clips):
    bad = bad_clips(tmp_path / "bad", clips[0])
    summary = stage(tmp_path, [*clips[:12], *bad])
    lines = [json.loads(line) for line in (tmp_path / "shards/skipped.jsonl").read_text().splitlines()]
    assert [(line["video_id"], line["reason"]) for line in lines] == [
        ("bad_empty", "empty_file"), ("bad_gone", "missing"), ("bad_late", "too_short"),
        ("bad_sound", "no_video_stream"), ("bad_text", "not_a_video")]
    assert all(line["stage"] == "shards" for line in lines)
    assert lines[1]["detail"] == (f"{tmp_path}/bad/gone.mp4: need a video that can be decoded, got no such file. "
                                  "Put it there, or correct its name.")
    assert sorted(read_shards(tmp_path / "shards")) == [clip.video_id for clip in clips[:12]]
    assert sum(summary["skipped"].values()) == 5
    shutil.copy(clips[0].path, tmp_path / "bad/gone.mp4")
    assert stage(tmp_path, [*clips[:12], *bad])["decoded"] == 1, "a file that has come back is tried again"


def test_stage_fails_and_leaves_what_was_there_when_too_many_are_bad(tmp_path, clips):
    stage(tmp_path, clips[:4])
    before = contents(tmp_path / "shards")
    bad = bad_clips(tmp_path / "bad", clips[0])
    with pytest.raises(DataError) as error:
        stage(tmp_path, [*clips[:6], *bad], replace_config(max_skip_fraction=0.25))
    report = tmp_path / "shards.work/skipped.jsonl"
    assert str(error.value) == (
        f"{tmp_path / 'shards'}: need at most 25% of the clips skipped, got 5 of 11 skipped (1 empty_file, 1 missing, "
        f"1 too_short, 1 no_video_stream, 1 not_a_video). See {report}; repair the files or raise "
        "shards.max_skip_fraction.")
    assert len(report.read_text().splitlines()) == 5
    assert contents(tmp_path / "shards") == before
    summary = stage(tmp_path, [*clips[:6], *bad])
    assert summary["decoded"] == 0, "what was decoded before the failure is kept"
    assert not report.exists()
    with pytest.raises(DataError, match="need at least one clip that can be decoded, got 5 of 5 skipped"):
        stage(tmp_path, bad, replace_config(max_skip_fraction=1.0))


def test_second_run_is_refused_when_one_is_at_work(tmp_path, clips):
    (tmp_path / "shards.work").mkdir()
    with open(tmp_path / "shards.work/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        with pytest.raises(DataError) as error:
            stage(tmp_path, clips[:2])
    assert str(error.value) == (f"{tmp_path / 'shards'}: need no other run that writes it, got process 4711. "
                                "Wait for it or stop it.")
    assert stage(tmp_path, clips[:2])["num_clips"] == 2


def test_verb_says_in_one_line_when_something_is_wrong(tmp_path, repo_root):
    answer = CliRunner().invoke(main, ["shards", "--manifest", str(tmp_path / "m.parquet"), "--out",
                                       str(tmp_path / "out"), "--params", str(repo_root / "params.yaml")])
    assert answer.exit_code == 1
    assert answer.output == f"hcmi: {tmp_path}/m.parquet: need a manifest, found none. Run `hcmi dataset` first.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_swap_is_finished_when_it_was_interrupted(tmp_path, clips, monkeypatch, moment):
    stage(tmp_path, clips[:4])
    stage(tmp_path, clips[:8], name="fresh")
    rename = Path.rename

    def die(path, target):
        if moment != "after" and (path.name == "new") == (moment == "between"):
            raise KeyboardInterrupt
        rename(path, target)
        if moment == "after" and path.name == "new":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, clips[:8])
    monkeypatch.undo()
    assert stage(tmp_path, clips[:8])["decoded"] == 0
    assert contents(tmp_path / "shards") == contents(tmp_path / "fresh")
    assert sorted(path.name for path in (tmp_path / "shards.work").iterdir()) == ["checked", "lock"]


def kill_loop(folder: Path, clips: list[Clip], kills: int, seed: int) -> None:
    """Run the verb until `kills` kills at random moments have hit it while it ran; then let it end."""
    write_manifest(clips, folder / "manifest.parquet")
    params = folder / "params.yaml"
    text = (Path(__file__).resolve().parents[2] / "params.yaml").read_text()
    params.write_text(text.replace("max_clips_per_shard: 256", "max_clips_per_shard: 8"))
    command = [sys.executable, "-m", "hcmi.cli", "shards", "--manifest", str(folder / "manifest.parquet"),
               "--params", str(params)]
    generator = random.Random(seed)
    started = time.monotonic()
    subprocess.run([*command, "--out", str(folder / "fresh")], check=True, capture_output=True)
    whole = time.monotonic() - started
    hit = tries = 0
    while hit < kills:
        tries += 1
        assert tries <= 5 * kills, f"{hit} of {tries} kills came while the stage ran"
        process = subprocess.Popen([*command, "--out", str(folder / "shards")], stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.2, 1.0) * whole)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        ended = process.wait() != -signal.SIGKILL
        hit += not ended
        psutil.wait_procs(children, timeout=60)
        assert not [child for child in children if child.is_running()], "a process was left behind"
        if (folder / "shards").exists() and (ended or generator.random() < 0.7):
            shutil.rmtree(folder / "shards")        # else later kills find nothing left to do
    subprocess.run([*command, "--out", str(folder / "shards")], check=True, capture_output=True)
    assert contents(folder / "shards") == contents(folder / "fresh")
    assert sorted(path.name for path in (folder / "shards.work").iterdir()) == ["checked", "lock"]


def test_bytes_are_those_of_an_undisturbed_run_when_killed_three_times(tmp_path, clips):
    kill_loop(tmp_path, clips[:24], kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bytes_are_those_of_an_undisturbed_run_when_killed_twenty_times(tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("many")
    clips = [make_clip(folder, number, num_frames=100) for number in range(300)]
    kill_loop(tmp_path, clips, kills=20, seed=1)


@pytest.fixture
def ray_cluster(monkeypatch):
    """Two nodes for Ray, and a head that does no work."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bytes_are_those_of_a_local_run_when_one_of_two_ray_nodes_dies(tmp_path, ray_cluster, monkeypatch):
    clips = [make_clip(tmp_path / "videos", number, num_frames=60) for number in range(400)]
    bad = bad_clips(tmp_path / "bad", clips[0])
    nodes = [ray_cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
    append, appended = Journal.append, []

    def append_and_kill(journal, key, clip):
        appended.append(key)
        if len(appended) == 100:
            ray_cluster.remove_node(nodes[0], allow_graceful=False)
        return append(journal, key, clip)

    monkeypatch.setattr(Journal, "append", append_and_kill)
    monkeypatch.chdir(tmp_path)
    config = replace_config(executor="ray", ray_address=ray_cluster.address, num_workers=0)
    summary = stage(tmp_path, [*clips, *bad], config)
    assert (summary["decoded"], len(set(appended))) == (400, 400)
    monkeypatch.undo()
    stage(tmp_path, [*clips, *bad], name="local")
    assert contents(tmp_path / "shards") == contents(tmp_path / "local")


def test_stage_says_how_to_start_ray_when_there_is_no_cluster(tmp_path, clips):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError) as error:
        stage(tmp_path, clips[:1], replace_config(executor="ray", ray_address="auto"))
    assert str(error.value).startswith("shards.ray_address: need a running Ray cluster, got 'auto': ")
    assert str(error.value).endswith("Start one with `ray start --head`, or set shards.ray_address to local.")
    assert "\n" not in str(error.value)


def test_stage_says_what_to_install_when_ray_is_missing(tmp_path, clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as error:
        stage(tmp_path, clips[:1], replace_config(executor="ray"))
    assert str(error.value) == ("shards.executor: need the ray package for `ray`, got none. Install it with "
                                "`pip install 'hcmi[ray]'`, or set shards.executor to local.")


def test_odd_files_end_as_clips_or_reasons_when_a_folder_is_full_of_them(tmp_path, shared_data):
    """The 98 odd files: what FFmpeg decodes is in the shards, every other one is named."""
    entries = json.loads((shared_data / "odd_videos/probe.json").read_text())
    clips = []
    for number, entry in enumerate(entries):
        path = shared_data / "odd_videos" / entry["file"]
        clips.append(Clip(f"odd_{number:03d}", str(path), "train", ("odd",), 0.0, 0.0, 1.0,
                          hashlib.sha256(path.read_bytes()).hexdigest(), {}))
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    stage(tmp_path, clips, replace_config(max_skip_fraction=0.5))
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    found = {key: record["num_decodable"] for key, (record, _) in read_shards(tmp_path / "shards").items()}
    expected = {clip.video_id: entry["decoded"] for clip, entry in zip(clips, entries, strict=True) if entry["decoded"]}
    assert found == expected
    skipped = [json.loads(line)["video_id"] for line in (tmp_path / "shards/skipped.jsonl").read_text().splitlines()]
    assert sorted(skipped + list(found)) == [clip.video_id for clip in clips]
