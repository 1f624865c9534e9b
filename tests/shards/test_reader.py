"""Random access against what webdataset reads, and one line for each way in which shards can be broken."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from made_shards import clip_and_frame, jpeg, make_shards, write_index

from hcmi.errors import DataError
from hcmi.shards import ShardReader
from hcmi.types import Clip


def test_reader_returns_the_pixels_webdataset_reads_when_frames_are_asked_for(shards):
    reader = ShardReader(shards, "train")
    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [clip.video_id for clip in reader.clips]
    for row, sample in enumerate(samples):
        assert reader.clips[row] == Clip.from_row(sample["json"])
        oracle = np.stack([sample[f"{frame:02d}.jpg"] for frame in (4, 0, 4)])
        np.testing.assert_array_equal(reader.frames(row, [4, 0, 4]), oracle)


def test_reader_gives_no_frames_when_none_are_asked_for(shards):
    reader = ShardReader(shards, "train")
    assert reader.frames(3, []).shape == (0, *reader.frame_shape)


def test_reader_works_the_same_when_pickled_or_used_from_threads(shards):
    reader = pickle.loads(pickle.dumps(ShardReader(shards, "train")))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: clip_and_frame(reader.frames(row, [row % 6])[0]), list(range(30)) * 10))
    assert [(int(clip), int(frame)) for clip, frame in answers] == [(row, row % 6) for row in range(30)] * 10


def test_reader_refuses_a_frame_when_it_is_not_stored(shards):
    with pytest.raises(IndexError, match="clip v0003: need a frame below 6, got 6"):
        ShardReader(shards, "train").frames(3, [0, 6])


# broken shards

def assert_refused(folder, message, split="train"):
    def read_all():
        reader = ShardReader(folder, split)
        return [reader.frames(row, range(reader.num_stored[row])) for row in range(len(reader))]
    with pytest.raises(DataError, match=message) as caught:
        read_all()
    assert "\n" not in str(caught.value)


def test_assert_refused_fails_when_shards_are_sound(fresh):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_refused(fresh, "any")


def test_reader_names_the_splits_when_the_one_asked_for_is_unknown(fresh):
    assert_refused(fresh, r"index.parquet: need clips of the split 'val', got splits: train\. Name another", "val")


def test_reader_says_so_when_every_clip_was_skipped(fresh):
    table = pq.read_table(fresh / "index.parquet")
    pq.write_table(table.slice(0, 0), fresh / "index.parquet")
    assert_refused(fresh, "got splits: none: every clip was skipped")


def test_reader_says_what_to_run_when_there_are_no_shards(tmp_path):
    assert_refused(tmp_path, r"index.parquet: need the index of the shards, got no file\. Run `hcmi shards` first\.")


@pytest.mark.parametrize("content", [b"", b"no parquet at all"])
def test_reader_refuses_an_index_when_it_is_not_one(fresh, content):
    (fresh / "index.parquet").write_bytes(content)
    assert_refused(fresh, "need an index as `hcmi shards` writes it, got: ")


def test_reader_refuses_an_index_when_a_column_is_missing(fresh):
    pq.write_table(pq.read_table(fresh / "index.parquet").drop(["frame_sizes"]), fresh / "index.parquet")
    assert_refused(fresh, "need an index as `hcmi shards` writes it, got: .*frame_sizes")


def test_reader_names_the_shard_when_it_is_missing(fresh):
    (fresh / "train-000001.tar").unlink()
    assert_refused(fresh, r"train-000001.tar: need the shard that index.parquet names, got: No such file")


def test_reader_names_the_shard_when_only_half_was_copied(fresh):
    shard = fresh / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    assert_refused(fresh, r"train-000000.tar: need at least \d+ bytes, got 20000: it was cut short\. Run")


def test_reader_refuses_when_a_shard_is_another_runs(fresh, tmp_path):
    other = make_shards(tmp_path / "other", list("abcdef"), num_frames=9)
    (fresh / "train-000000.tar").write_bytes((other / "train-000000.tar").read_bytes())
    assert_refused(fresh, "train-000000.tar: need .* in|where index.parquet")


def test_reader_refuses_when_the_index_names_another_clip(fresh):
    table = pq.read_table(fresh / "index.parquet").to_pylist()
    table[0]["video_id"], table[1]["video_id"] = table[1]["video_id"], table[0]["video_id"]
    pq.write_table(pa.Table.from_pylist(table), fresh / "index.parquet")
    assert_refused(fresh, "need clip v0001 with 6 frames as in index.parquet, got clip v0000 with 6")


def test_reader_refuses_when_the_index_lists_sizes_for_other_frames(fresh):
    table = pq.read_table(fresh / "index.parquet").to_pylist()
    table[0]["frame_sizes"].pop()
    pq.write_table(pa.Table.from_pylist(table), fresh / "index.parquet")
    assert_refused(fresh, "need an offset and a size for each frame of each clip, got 36 and 35")


@pytest.mark.parametrize("frame", [0, 3])
def test_reader_names_clip_and_frame_when_a_jpeg_is_broken(fresh, frame):
    place = pq.read_table(fresh / "index.parquet").to_pylist()[0]
    shard = fresh / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[place["frame_offsets"][frame]:place["frame_offsets"][frame] + 100] = bytes(100)
    shard.write_bytes(data)
    assert_refused(fresh, f"train-000000.tar: need a .*JPEG as frame {frame} of clip v0000, got ")


def test_reader_names_clip_and_frame_when_a_frame_has_another_size(tmp_path):
    with wds.TarWriter(str(tmp_path / "train-000000.tar"), mtime=0) as writer:
        writer.write({"__key__": "v0", "json": json.dumps({
            "video_id": "v0", "captions": ["x"], "path": "p", "split": "train", "start_s": 0, "end_s": 1,
            "duration_s": 1, "sha256": "s", "tags": {}, "times_s": [0, 0.5], "decoder": "decord", "num_decodable": 2,
            "width": 640, "height": 360}).encode(), "00.jpg": jpeg(0, 0), "01.jpg": jpeg(0, 1, size=8)})
    write_index(tmp_path)
    assert_refused(tmp_path, "need a 16x16 JPEG as frame 1 of clip v0, got 8x8 pixels")
