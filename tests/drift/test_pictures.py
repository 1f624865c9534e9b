"""What the page draws: example clips, the map and the histograms."""

import base64
from io import BytesIO

import numpy as np
import pytest
from drift_world import World
from PIL import Image
from search_world import searchable_model

from hcmi.drift import Reference
from hcmi.drift.pictures import FRAMES_EACH, NUM_EXAMPLES, SIZE, at_random, draw, histograms, map_points


def test_map_separates_two_sets_along_their_shift_whatever_their_sizes():
    generator = np.random.default_rng(0)
    reference, batch = generator.normal(size=(200, 8)), generator.normal(size=(20, 8)) + 9 * np.eye(8)[3]
    first, second = map_points(reference, batch)
    assert (first.shape, second.shape) == ((200, 2), (20, 2))
    both = np.concatenate([first, second])
    assert both.min(0).tolist() == [0, 0]
    assert both.max(0).tolist() == [1, 1]
    assert first[:, 0].max() < second[:, 0].min() or first[:, 0].min() > second[:, 0].max()


def test_map_has_two_columns_when_embeddings_have_one():
    first, second = map_points(np.array([[0.0], [1.0]]), np.array([[0.5]]))
    assert sorted(first[:, 0].tolist()) == [0, 1]
    assert second[0].tolist() == pytest.approx([0.5, 0])


def test_histograms_share_their_bins_and_sum_to_one_when_values_are_missing():
    first, second = histograms(np.array([*range(100), np.nan]), np.array([*range(50, 150), np.inf]))
    assert len(first) == len(second)
    assert first[-1] == second[0] == 0
    assert second[-1] > 0
    assert first.sum() == pytest.approx(100 / 100)
    assert second.sum() == pytest.approx(100 / 100)


def test_examples_are_clips_of_the_sample_and_show_the_middle_frame_when_a_file_is_missing(world: World):
    root, _ = world
    sample = Reference(searchable_model(), root / "export", root / "shards", np.random.default_rng(0)).sample
    moved = root / "raw" / "moved"
    (root / "raw" / "videos").rename(moved)
    try:
        [missing] = draw([at_random(sample, np.random.default_rng(1))], 20.0, root)
    finally:
        moved.rename(root / "raw" / "videos")
    [found] = draw([at_random(sample, np.random.default_rng(1))], 20.0, root)
    assert [len(example["frames"]) for example in missing] == [1] * NUM_EXAMPLES
    assert [len(example["frames"]) for example in found] == [FRAMES_EACH] * NUM_EXAMPLES
    greys = {clip.video_id: clip.captions[0].split()[5] for clip in sample.clips}
    for example in (*found, *missing):
        grey = int(greys[example["video_id"]])
        picture = Image.open(BytesIO(base64.b64decode(example["frames"][0].split(",")[1])))
        assert picture.size == (SIZE, SIZE)
        assert abs(np.asarray(picture).mean() - grey) < 20      # frames are darker by 2 each
