"""The export of real little videos: every file of the contract, row for row what the model says."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from model_world import PARAMS
from search_world import D, T, changes_until_killed, searchable_model, write_video

from hcmi.cli import main
from hcmi.config import ExportConfig
from hcmi.dataset import write_manifest
from hcmi.encode import encode_clips, encode_split, frame_times, save_split
from hcmi.errors import DataError
from hcmi.export import export, stage
from hcmi.export.stage import precision_cost
from hcmi.index import TokenStore, read_texts
from hcmi.model import load_retriever
from hcmi.search import Retriever
from hcmi.shards import ShardReader, write_shards
from hcmi.types import Clip

SPLITS = ("train", "train", "val", "test", "test", "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with model/, shards/, manifest.parquet and export/ of six videos."""
    root = tmp_path_factory.mktemp("world")
    clips = []
    for number, split in enumerate(SPLITS):
        path = write_video(root / "videos" / f"v{number}.mp4", 250 - 30 * number, seconds=1 + 0.5 * number)
        clips.append(Clip(f"v{number}", str(path), split, (f"grey {number}", "a ring")[:1 + number % 2], 0.0,
                          1 + 0.5 * number, 1 + 0.5 * number, f"sha{number}", {"grey": str(number)}))
    write_manifest(clips, root / "manifest.parquet")
    write_shards(manifest_path=root / "manifest.parquet", out_dir=root / "shards",
                 config=PARAMS.shards.model_copy(update={"size": 16, "num_frames": 2 * T, "max_clips_per_shard": 2,
                                                  "num_workers": 1}))
    searchable_model().save_pretrained(root / "model")
    run(root)
    return root


def run(root, out="export", precision="float16"):
    config = ExportConfig(batch_size=2, precision=precision, parquet=True)
    return export(model_dir=root / "model", shards=root / "shards", out_dir=root / out, config=config)


def test_rows_of_all_files_agree_with_the_model(world):
    table = pq.read_table(world / "export/videos.parquet")
    assert table["row"].to_pylist() == list(range(6))
    assert sorted(table["video_id"].to_pylist()) == [f"v{n}" for n in range(6)]
    store = TokenStore(world / "export/embeddings")
    for split in ("train", "val", "test"):
        reader = ShardReader(world / "shards", split)
        encoded = encode_split(searchable_model(), reader, 4)
        for video_id, tokens_row in zip(encoded.video_ids, range(len(reader)), strict=True):
            row = table["video_id"].to_pylist().index(video_id)
            assert table["split"][row].as_py() == split
            got = store.tokens(slice(row, row + 1))
            torch.testing.assert_close(got.frames_BTD[0], encoded.videos.frames_BTD[tokens_row], atol=2e-3, rtol=0)
            torch.testing.assert_close(got.clip_weights_BC[0], encoded.videos.clip_weights_BC[tokens_row], atol=1e-3,
                                       rtol=0)
            np.testing.assert_allclose(store.times([row])[0], reader.stored[tokens_row].times_s[1::2], atol=1e-5)


def test_arrays_are_memory_mapped_and_half_precision(world):
    store = TokenStore(world / "export/embeddings")
    assert {str(store.arrays[name].dtype) for name in store.arrays if name != "times_s"} == {"float16"}
    assert all(isinstance(array, np.memmap) for array in store.arrays.values())


def test_meta_says_which_model_made_it(world):
    meta = json.loads((world / "export/meta.json").read_text())
    assert meta["fingerprint"] == searchable_model().fingerprint
    assert meta["splits"] == {"train": 2, "val": 1, "test": 3}
    assert meta["dim"] == D
    assert meta["levels"] == ["frame_word", "clip_phrase", "video_sentence"]
    assert meta["preprocessing"]["image_size"] == 16
    assert meta["precision_cost"]["max_score_difference"] < 2e-3


def test_reference_holds_the_held_out_videos_and_texts(world):
    folder = world / "export/reference"
    reader = ShardReader(world / "shards", "test")
    encoded = encode_split(searchable_model(), reader, 4)
    videos = pq.read_table(folder / "videos.parquet")
    assert videos["video_id"].to_pylist() == encoded.video_ids
    queries = pq.read_table(folder / "queries.parquet")
    assert queries["caption"].to_pylist() == encoded.captions
    assert queries["video_row"].to_pylist() == encoded.caption_video.tolist()
    torch.testing.assert_close(read_texts(folder / "embeddings").words_BWD, encoded.texts.words_BWD, atol=2e-3, rtol=0)
    torch.testing.assert_close(TokenStore(folder / "embeddings").tokens(slice(None)).clips_BCD,
                               encoded.videos.clips_BCD, atol=2e-3, rtol=0)


def test_search_answers_from_the_export(world):
    hits = Retriever(world / "model", world / "export/index").search("a ring", top=6)
    assert sorted(hit.video_id for hit in hits) == [f"v{n}" for n in range(6)]
    durations = {f"v{n}": 1 + 0.5 * n for n in range(6)}
    assert all(0 <= hit.start_s < hit.end_s <= durations[hit.video_id] for hit in hits)
    tagged = Retriever(world / "model", world / "export/index").search("a ring", tags={"grey": "4"})
    assert [hit.video_id for hit in tagged] == ["v4"]


def test_parquet_is_read_by_others(world):
    rows = pads.dataset(world / "export/embeddings.parquet").to_table().to_pylist()
    store = TokenStore(world / "export/embeddings")
    assert len(rows) == 6
    np.testing.assert_allclose(rows[4]["frames"], store.tokens(slice(4, 5)).frames_BTD[0], atol=1e-6)
    np.testing.assert_allclose(rows[4]["video"], store.vectors(slice(4, 5))[0], atol=1e-6)
    assert np.shape(rows[0]["clips"]) == store.arrays["clips"].shape[1:]


def test_exporting_again_gives_the_same_bytes(world):
    run(world, "again")
    assert same_files(world / "export", world / "again") == []


def same_files(one, other) -> list[str]:
    """Files that differ."""
    names = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file() and path.name != ".lock"]
    assert names
    return [str(name) for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def test_what_evaluation_has_encoded_is_taken_and_not_encoded_again(world, tmp_path, monkeypatch):
    model, reader = load_retriever(world / "model"), ShardReader(world / "shards", "test")
    save_split(encode_split(model, reader, 2), tmp_path / "encoded.safetensors", model, reader)
    encoded = []
    monkeypatch.setattr(stage, "encode_clips", lambda model, index, size, **more: [
        encoded.append(index.split), *encode_clips(model, index, size)][1:])
    export(model_dir=world / "model", shards=world / "shards", out_dir=tmp_path / "export",
           config=ExportConfig(batch_size=2, precision="float16", parquet=True),
           encoded_file=tmp_path / "encoded.safetensors")
    assert encoded == ["train", "val"]
    assert same_files(world / "export", tmp_path / "export") == []


def test_export_needs_no_test_split_when_evaluation_has_kept_another(tmp_path):
    path = write_video(tmp_path / "v.mp4", 200, seconds=1)
    clip = Clip("v", str(path), "val", ("grey",), 0.0, 1.0, 1.0, "sha", {})
    write_manifest([clip], tmp_path / "manifest.parquet")
    write_shards(manifest_path=tmp_path / "manifest.parquet", out_dir=tmp_path / "shards",
                 config=PARAMS.shards.model_copy(update={"size": 16, "num_frames": 2 * T, "num_workers": 1}))
    searchable_model().save_pretrained(tmp_path / "model")
    model, reader = load_retriever(tmp_path / "model"), ShardReader(tmp_path / "shards", "val")
    save_split(encode_split(model, reader, 2), tmp_path / "encoded.safetensors", model, reader)
    summary = export(model_dir=tmp_path / "model", shards=tmp_path / "shards", out_dir=tmp_path / "export",
                     config=ExportConfig(batch_size=2, precision="float16", parquet=False),
                     encoded_file=tmp_path / "encoded.safetensors")
    assert summary["videos"] == 1


def test_rows_are_in_order_when_batches_are_not(world, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "encode_clips", lambda *given, **more: reversed(list(encode_clips(*given))))
    export(model_dir=world / "model", shards=world / "shards", out_dir=tmp_path / "export",
           config=ExportConfig(batch_size=1, precision="float16", parquet=False))
    assert pq.read_table(tmp_path / "export/videos.parquet").equals(pq.read_table(world / "export/videos.parquet"))
    for name in ("embeddings", "reference/embeddings"):
        got, expected = (TokenStore(root / "export" / name).tokens(slice(None)) for root in (tmp_path, world))
        torch.testing.assert_close(got.frames_BTD, expected.frames_BTD, atol=2e-3, rtol=0)


def test_int8_halves_the_vectors_and_says_its_cost(world):
    run(world, "small", "int8")
    big, small = (TokenStore(world / name / "embeddings") for name in ("export", "small"))
    assert small.precision == "int8"
    assert 2 * small.arrays["frames"].nbytes == big.arrays["frames"].nbytes
    cost = json.loads((world / "small/meta.json").read_text())["precision_cost"]
    assert 1e-5 < cost["max_score_difference"] < 0.05
    assert len(Retriever(world / "model", world / "small/index").search("a ring")) == 6


def test_precision_cost_counts_a_changed_first_place(world):
    encoded = encode_split(searchable_model(), ShardReader(world / "shards", "test"), 4)
    moved = encoded.videos[[1, 2, 0]]
    cost = precision_cost(searchable_model(), encoded.texts, encoded.caption_video, encoded.videos, moved)
    same = precision_cost(searchable_model(), encoded.texts, encoded.caption_video, encoded.videos, encoded.videos)
    assert same["max_score_difference"] == 0
    assert same["t2v_R@1_exact"] == same["t2v_R@1_stored"]
    assert cost["max_score_difference"] > 0


def test_frame_times_are_those_of_the_frames_that_are_picked():
    assert frame_times([0.0, 1.0, 2.0, 3.0], 2).tolist() == [1.0, 3.0]
    assert frame_times([0.5, 1.5], 4).tolist() == [0.5, 1.5, 1.5, 1.5]


def test_old_export_stays_when_the_new_one_fails(world, tmp_path):
    before = (world / "export/meta.json").read_bytes()
    shutil.copytree(world / "shards", tmp_path / "shards")
    tar = tmp_path / "shards/val-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\x00"))
    with pytest.raises(DataError, match=r"need a JPEG as frame 0 of clip v\d"):
        export(model_dir=world / "model", shards=tmp_path / "shards", out_dir=world / "export",
               config=ExportConfig(batch_size=2, precision="float16", parquet=False))
    assert (world / "export/meta.json").read_bytes() == before
    assert not list(world.glob(".export*"))


SETUP = """
from pathlib import Path
from test_export_stage import run
world = Path({world!r})
run(world, "killed", "int8")
"""


def test_export_is_whole_or_absent_when_the_stage_is_killed(world):
    found = 0
    kills = [(1, share) for share in np.random.default_rng(0).uniform(0, 1, 12).tolist()]
    for _ in changes_until_killed(SETUP.format(world=str(world)), 'run(world, "killed")', kills):
        if (world / "killed").exists():
            found += 1
            retriever = Retriever(searchable_model(), world / "killed" / "index")
            assert len(retriever.search("a ring", top=6)) == 6
            assert pq.read_table(world / "killed/videos.parquet").num_rows == 6
            assert json.loads((world / "killed/meta.json").read_text())["num_videos"] == 6
    assert found > 6
    run(world, "killed")
    for path in sorted((world / "export").rglob("*")):
        if path.is_file():
            assert (world / "killed" / path.relative_to(world / "export")).read_bytes() == path.read_bytes(), path


def test_export_holds_nothing_of_the_one_whose_place_it_takes(world):
    run(world, "again")
    (world / "again/embeddings/old.npy").write_text("of the old export")
    run(world, "again")
    names = [{path.relative_to(world / out) for path in (world / out).rglob("*")} for out in ("export", "again")]
    assert names[0] == names[1]


@pytest.fixture
def serve():
    """Start a server of a folder; returns its address."""
    servers = []

    def start(folder):
        handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}),
                          directory=str(folder))
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["http", "pipe"])
def test_export_has_the_same_bytes_when_the_shards_are_behind_a_url(world, tmp_path, serve, kind):
    base = serve(world / "shards") if kind == "http" else f"pipe:cat {world}/shards"
    config = ExportConfig(batch_size=2, precision="float16", parquet=True)
    export(model_dir=world / "model", shards=base, out_dir=tmp_path / "export", config=config)
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (world / "export",
                                                                                     tmp_path / "export")]
    assert names[0] == names[1]
    for path in (world / "export").rglob("*"):
        if path.is_file():
            assert (tmp_path / "export" / path.relative_to(world / "export")).read_bytes() == path.read_bytes(), path


def test_verb_writes_nothing_and_says_so_in_one_line_when_a_download_fails(world, tmp_path, serve, repo_root):
    shutil.copytree(world / "shards", tmp_path / "shards")
    (tmp_path / "shards/test-000000.tar").unlink()
    base = serve(tmp_path / "shards")
    answer = CliRunner().invoke(main, ["export", "--model", str(world / "model"), "--shards", base, "--out",
                                       str(tmp_path / "export"), "--params", str(repo_root / "params.yaml")])
    assert answer.exit_code == 1
    assert answer.stderr.splitlines()[-1] == (
        f"hcmi: {base}/test-000000.tar: need the shard that index.parquet names, whole, got: exit code 22 of the "
        "command that reads it. Correct the address, or try again.")
    assert not (tmp_path / "export").exists()


def test_export_refuses_when_no_clip_is_in_the_index(world, tmp_path):
    index = pq.read_table(world / "shards/index.parquet")
    pq.write_table(index.slice(0, 0), tmp_path / "index.parquet")
    with pytest.raises(DataError, match=r"need at least one clip to export, got none. Run `hcmi shards`"):
        export(model_dir=world / "model", shards=tmp_path, out_dir=tmp_path / "export",
               config=ExportConfig(batch_size=2, precision="float16", parquet=False))


def test_export_refuses_when_there_are_no_shards(world, tmp_path):
    with pytest.raises(DataError, match=r"index.parquet: need the index of the shards, got no file\. Run `hcmi"):
        export(model_dir=world / "model", shards=tmp_path, out_dir=tmp_path / "export",
               config=ExportConfig(batch_size=2, precision="float16", parquet=False))
