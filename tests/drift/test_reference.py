"""What is drawn from an export to compare batches with."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from drift_world import World
from search_world import searchable_model

from hcmi.drift import Reference
from hcmi.drift.reference import _draw_captions
from hcmi.errors import DriftError


def reference(world: World, export: str = "export", seed: int = 0) -> Reference:
    root, _ = world
    return Reference(searchable_model(), root / export, root / "shards", np.random.default_rng(seed))


def test_sample_is_the_held_out_clips_and_the_gallery_the_others(world):
    found = reference(world)
    assert len(found.sample) == 50
    assert {clip.split for clip in found.sample.clips} == {"test"}
    assert len(found.gallery) == 20
    assert found.scores.clips_NN.shape == (50, 50)
    assert found.scores.gallery_NG.shape == (50, 20)


def test_each_row_is_given_one_of_its_captions_or_none():
    video_rows = np.array([0, 0, 2, 2, 2, 5])
    drawn = [_draw_captions(video_rows, np.array([0, 1, 2, 5]), np.random.default_rng(seed)) for seed in range(40)]
    assert {tuple(column) for column in map(sorted, map(set, zip(*(row.tolist() for row in drawn), strict=True)))} == {
        (0, 1), (-1,), (2, 3, 4), (5,)}


def test_export_without_held_out_clips_is_refused(world):
    root, _ = world
    shutil.copytree(root / "export", root / "no_reference")
    shutil.rmtree(root / "no_reference" / "reference")
    with pytest.raises(DriftError, match="need the held-out clips to compare with, got none"):
        reference(world, "no_reference")


def test_export_of_other_shards_is_refused(world):
    root, _ = world
    shutil.copytree(root / "export", root / "other_shards")
    path = root / "other_shards" / "reference" / "videos.parquet"
    table = pq.read_table(path)
    names = ["unknown_clip", *table["video_id"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("video_id"), "video_id", [names]), path)
    with pytest.raises(DriftError, match=r"need clips that are in \S+/shards, got unknown_clip, which is not"):
        reference(world, "other_shards")
