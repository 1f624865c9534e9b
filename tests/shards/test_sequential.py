"""Sequential passes: the same batches as random access gives, from a folder, a command, a server; and one line when the
shards are broken."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_shards import clip_and_frame, make_shards

from hcmi.errors import DataError
from hcmi.shards import ShardReader, clip_batches, eval_batches, pick_frames, read_splits


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """30 clips in 8 shards, 6 frames each, in a folder whose name has characters that mean something in a URL."""
    return make_shards(tmp_path_factory.mktemp("a#b?c") / "shards", [f"a{clip}" for clip in range(30)])


class Handler(SimpleHTTPRequestHandler):
    broken = ""         # the name of a file of which half is sent

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[:len(content) // 2] if self.broken and self.broken in self.path else content)


@pytest.fixture
def serve():
    """Start a server of a folder; returns its address."""
    servers = []

    def start(folder, broken=""):
        handler = type("Handler", (Handler,), {"broken": broken})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def read(source, split="train", batch_size=7, num_frames=4):
    return list(clip_batches(read_splits(source)[split], batch_size, num_frames))


def assert_same(batches, oracle):
    assert len(batches) == len(oracle)
    for a, b in zip(batches, oracle, strict=True):
        assert a.clips == b.clips
        assert a.stored == b.stored
        assert a.picked.rows == b.picked.rows
        assert torch.equal(a.picked.frames_BTHXC, b.picked.frames_BTHXC)
        assert torch.equal(a.picked.frame_mask_BT, b.picked.frame_mask_BT)


def test_eval_batches_give_the_frames_of_random_access(tmp_path):
    """Clips with fewer frames than are picked, and with more."""
    num_stored = [2, 4, 6, 1, 12, 11]
    reader = ShardReader(make_shards(tmp_path, list("abcdef"), num_frames=num_stored), "train")
    batches = list(eval_batches(reader, 4, 4))
    assert [batch.rows for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    frames_NTHXC = torch.cat([batch.frames_BTHXC for batch in batches]).numpy()
    masks_NT = torch.cat([batch.frame_mask_BT for batch in batches]).numpy()
    for row, stored in enumerate(num_stored):
        picks = pick_frames(stored, 4)
        assert masks_NT[row].tolist() == [True] * len(picks) + [False] * (4 - len(picks))
        np.testing.assert_array_equal(frames_NTHXC[row, :len(picks)], reader.frames(row, picks))
        assert not frames_NTHXC[row, len(picks):].any()


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_clip_batches_give_each_clip_once_in_order_when_split_over_ranks(shards, world_size):
    reader = ShardReader(shards, "train")
    found = [one for rank in range(world_size) for one in clip_batches(reader.index, 4, 3, rank, world_size)]
    assert [clip.video_id for one in found for clip in one.clips] == [clip.video_id for clip in reader.clips]
    batches = [one.picked for one in found]
    assert [row for batch in batches for row in batch.rows] == list(range(30))
    clips, frames = clip_and_frame(torch.cat([batch.frames_BTHXC for batch in batches]))
    assert (clips == np.arange(30)[:, None]).all()
    assert (frames == [1, 3, 5]).all()
    assert all(len(batch.rows) <= 4 and batch.frame_mask_BT.all() for batch in batches)


def test_clip_batches_give_nothing_to_a_rank_when_there_are_more_ranks_than_clips(tmp_path):
    reader = ShardReader(make_shards(tmp_path, ["a", "b"], split="test"), "test")
    parts = [list(clip_batches(reader.index, 2, 1, rank, 3)) for rank in range(3)]
    assert [sum(len(batch.clips) for batch in part) for part in parts] == [0, 1, 1]


def test_clips_are_those_of_the_reader_when_read_in_one_pass(shards):
    reader, batches = ShardReader(shards, "train"), read(shards)
    assert [clip for batch in batches for clip in batch.clips] == reader.clips
    assert [stored for batch in batches for stored in batch.stored] == reader.stored


def test_pass_ignores_what_webdataset_would_take_from_its_surroundings(shards, monkeypatch):
    """A cache named in the environment, and several ranks: `webdataset.WebDataset` refuses both."""
    oracle = read(shards)
    for name, value in {"WDS_CACHE": "/nowhere", "RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert_same(read(shards), oracle)


def test_pass_gives_the_same_when_the_shards_are_behind_a_url(tmp_path, serve, monkeypatch):
    folder = make_shards(tmp_path / "shards", [f"a{clip}" for clip in range(9)])
    oracle = read(folder)
    assert_same(read(f"pipe:cat {folder}"), oracle)
    assert_same(read(serve(folder) + "/"), oracle)
    (tmp_path / "bin").mkdir()
    aws = tmp_path / "bin/aws"
    aws.write_text(f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && cat "{tmp_path}/${{3#s3://bucket/}}"\n')
    aws.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert_same(read("s3://bucket/shards"), oracle)


def refusal(source) -> str:
    with pytest.raises(DataError) as error:
        read(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusal_fails_when_the_shards_are_sound(fresh):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        refusal(fresh)


@pytest.mark.parametrize(("name", "need"), [("index", "the index of the shards"), ("000001", "the shard that index")])
def test_pass_says_so_when_a_download_breaks_off(fresh, serve, name, need):
    base = serve(fresh, broken=name)
    message = refusal(base)
    assert message.startswith(f"{base}/")
    assert name in message
    assert ("need " + need) in message or "need the clip " in message or "frames of the clip" in message
    assert message.endswith(". Correct the address, or try again.")


def test_pass_says_so_when_there_is_nothing_at_the_address(tmp_path, serve):
    base = serve(tmp_path)
    assert refusal(base) == (f"{base}/index.parquet: need the index of the shards, got: exit code 22 of the command "
                             "that reads it. Correct the address, or try again.")
    assert refusal("gopher://host/shards") == (
        "gopher://host/shards/index.parquet: need the index of the shards, got: "
        "gopher://host/shards/index.parquet: no gopen handler defined. Correct the address, or try again.")


def test_pass_runs_no_command_that_an_index_names(fresh, tmp_path):
    rows = pq.read_table(fresh / "index.parquet").to_pylist()
    rows[0]["shard"] = f"x.tar; touch {tmp_path}/touched; echo train-000000.tar"
    pq.write_table(pa.Table.from_pylist(rows), fresh / "index.parquet")
    assert "need names of shards as `hcmi shards` gives them, got 'x.tar; touch" in refusal(f"pipe:cat {fresh}")
    assert not (tmp_path / "touched").exists()


def damage(folder, frame: int) -> None:
    place = pq.read_table(folder / "index.parquet").to_pylist()[0]
    data = bytearray((folder / "train-000000.tar").read_bytes())
    data[place["frame_offsets"][frame]:place["frame_offsets"][frame] + 100] = bytes(100)
    (folder / "train-000000.tar").write_bytes(data)


def test_pass_names_shard_and_clip_as_random_access_does_when_a_frame_is_broken(fresh):
    reader = ShardReader(fresh, "train")
    damage(fresh, 3)
    with pytest.raises(DataError) as random:
        reader.frames(0, [3])
    with pytest.raises(DataError) as sequential:
        list(eval_batches(reader, 4, 6))
    assert str(sequential.value) == str(random.value)
    assert str(random.value).startswith(f"{fresh}/train-000000.tar: need a 16x16 JPEG as frame 3 of clip v0000, got ")
    list(eval_batches(reader, 4, 2))        # frames 1 and 4: only what is picked is decoded
    damage(fresh, 0)
    assert refusal(fresh).startswith(f"{fresh}/train-000000.tar: need a JPEG as frame 0 of clip v0000, got ")


def test_pass_names_the_shard_when_it_is_missing(fresh):
    (fresh / "train-000001.tar").unlink()
    assert refusal(fresh) == (f"{fresh}/train-000001.tar: need the shard that index.parquet names, got: No such file "
                              "or directory. Run `hcmi shards` again, or copy the whole folder again.")


@pytest.mark.parametrize("num_bytes", [0, 100, 512, 20_000, 20_480])
def test_pass_names_the_shard_when_only_a_part_was_copied(fresh, num_bytes):
    shard = fresh / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:num_bytes])
    message = refusal(fresh)
    assert message.startswith(f"{shard}: need ")
    assert "object at" not in message
    assert message.endswith("Run `hcmi shards` again, or copy the whole folder again.")


def test_pass_refuses_when_a_shard_is_another_runs(fresh, tmp_path):
    other = make_shards(tmp_path / "other", list("abcdef"), num_frames=9)
    (fresh / "train-000000.tar").write_bytes((other / "train-000000.tar").read_bytes())
    assert "need clip v0000 with 6 frames as in index.parquet, got clip v0000 with 9." in refusal(fresh)
    (fresh / "train-000000.tar").write_bytes((other / "train-000001.tar").read_bytes())
    assert ("train-000000.tar: need the clip v0000 that index.parquet names, got: the end of the shard: it was cut "
            "short or is another one.") in refusal(fresh)
