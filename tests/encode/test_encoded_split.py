"""Clips as tokens: by one process or two, and what evaluation keeps for the export."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from model_world import tiny_model

from hcmi.encode import EncodedSplit, encode_split, load_split, save_split
from hcmi.model import load_retriever
from hcmi.shards import ShardReader


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(wild=True).save_pretrained(folder)
    return folder


def assert_equal(got: EncodedSplit, expected: EncodedSplit, tolerance: float = 0.0) -> None:
    assert (got.video_ids, got.captions) == (expected.video_ids, expected.captions)
    assert got.caption_video.tolist() == expected.caption_video.tolist()
    for kind in ("videos", "texts"):
        for name, values in vars(getattr(expected, kind)).items():
            torch.testing.assert_close(getattr(getattr(got, kind), name), values, rtol=0, atol=tolerance)


def test_two_processes_encode_what_one_does(films, model_dir):
    model, reader = load_retriever(model_dir), ShardReader(films, "train")
    two = encode_split(model, reader, 5, processes=2, model_dir=model_dir)
    assert_equal(two, encode_split(model, reader, 5), 1e-6)


# what evaluation keeps

def test_load_split_gives_what_was_saved(films, model_dir, tmp_path):
    model, reader = load_retriever(model_dir), ShardReader(films, "val")
    saved = encode_split(model, reader, 4)
    save_split(saved, tmp_path / "encoded.safetensors", model, reader)
    found = load_split(tmp_path / "encoded.safetensors", model, reader)
    assert found is not None
    assert_equal(found, saved)


def test_load_split_gives_nothing_when_it_was_made_of_something_else(films, model_dir, tmp_path):
    model, reader = load_retriever(model_dir), ShardReader(films, "val")
    path = tmp_path / "encoded.safetensors"
    assert load_split(path, model, reader) is None
    assert load_split(None, model, reader) is None
    save_split(encode_split(model, reader, 4), path, model, reader)
    assert load_split(path, tiny_model(seed=1), reader) is None
    assert load_split(path, model, ShardReader(films, "train")) is None
    shutil.copytree(films, tmp_path / "shards")
    elsewhere = ShardReader(tmp_path / "shards", "val")
    assert load_split(path, model, elsewhere) is not None
    table = pq.read_table(films / "index.parquet")
    pq.write_table(table.set_column(table.schema.get_field_index("record"), "record", pa.array(["other"] * len(table))),
                   tmp_path / "shards" / "index.parquet")
    assert load_split(path, model, elsewhere) is None
    path.write_bytes(path.read_bytes()[:-10])
    assert load_split(path, model, reader) is None
