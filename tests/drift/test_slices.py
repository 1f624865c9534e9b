"""Parts of a batch that are found less: by tag, by what the clips show, and none where nothing differs."""

import warnings

import numpy as np
import pytest

from hcmi.drift.slices import NEW_WORDS, Slice, weak_slices


def batch(count: int = 200) -> tuple[list[str], list[dict[str, str]], np.ndarray]:
    """Every fourth clip shows a star and has its own direction; every second one is tagged as long."""
    generator = np.random.default_rng(0)
    stars = np.arange(count) % 4 == 0
    captions = ["a star fades" if star else "a ring slides" for star in stars]
    tags = [{"length": "long" if row % 2 else "short"} for row in range(count)]
    return captions, tags, np.where(stars, 1.0, -1.0)[:, None] + 0.05 * generator.normal(size=(count, 3))


def test_nothing_is_named_when_misses_are_everywhere():
    captions, tags, vectors = batch()
    hits = (np.random.default_rng(1).random(200) < 0.9).astype(float)
    assert weak_slices(hits, captions, tags, vectors, {}) == []


def test_weak_tag_is_named_with_its_recall():
    captions, tags, vectors = batch()
    hits = np.ones(200)
    hits[1:101:2] = 0           # 50 of the 100 long clips
    [found] = [some for some in weak_slices(hits, captions, tags, vectors, {}) if "=" in some.name]
    assert found == Slice("length = long", 100, 50.0, 100.0)
    assert found.sentence == "length = long: R@1 is 50 % of 100 captions, and 100 % of the others."


def test_weak_cluster_is_named_by_its_words():
    captions, _, vectors = batch()
    hits = np.array(["star" not in caption for caption in captions], float)
    found = weak_slices(hits, captions, [{}] * 200, vectors, {})
    assert found
    assert all(some.recall < 100 for some in found)
    assert any("star" in some.name and some.recall == 0 for some in found)


def test_parts_of_few_captions_are_left_out():
    captions, _, vectors = batch(40)
    tags = [{"kind": "rare" if row < 9 else "usual"} for row in range(40)]
    hits = (np.arange(40) >= 9).astype(float)
    assert not [some for some in weak_slices(hits, captions, tags, vectors, {}) if "kind" in some.name]


def test_captions_with_unknown_words_are_a_part():
    captions, _, vectors = batch(100)
    new = np.arange(100) >= 80
    hits = np.where(new & (np.arange(100) % 2 == 0), 0.0, 1.0)
    found = weak_slices(hits, captions, [{}] * 100, vectors, {NEW_WORDS: new})
    assert [some for some in found if some.name == NEW_WORDS] == [Slice(NEW_WORDS, 20, 50.0, 100.0)]


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_clusters_are_no_more_than_the_looks_when_clips_are_alike(looks):
    """240 clips ask for 8 clusters. Of one look there is none; the vectors of one look differ by rounding."""
    row = np.arange(240)
    vectors = np.eye(8)[row % looks] + 1e-7 * np.random.default_rng(0).normal(size=(240, 8))
    hits = (row % looks != 0).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weak_slices(hits, [f"a look{place % looks} b{place}" for place in row], [{}] * 240, vectors, {})
    assert [(some.captions, some.recall, some.rest) for some in found] == [(240 // looks, 0.0, 100.0)] * (looks > 1)
    assert all("look0" in some.name for some in found)
