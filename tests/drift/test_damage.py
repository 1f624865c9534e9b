"""Damage to frames: none at degree 0, by hand, and copies that are spread over the clips."""

import numpy as np
import pytest

from hcmi.drift.damage import COPIES, DAMAGES, damage, damaged_rows

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 2, 20, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_keeps_shape_and_changes_nothing_at_degree_zero(kind):
    assert (damage(FRAMES, kind, np.random.default_rng(0), 0.0) == FRAMES).all()
    worst = damage(FRAMES, kind, np.random.default_rng(0), DAMAGES[kind][1])
    assert worst.shape == FRAMES.shape
    assert worst.dtype == np.uint8
    assert (worst != FRAMES).any()


def test_damage_by_hand():
    frames = np.full((2, 1, 20, 20, 3), (200, 100, 0), np.uint8)
    frames[1] = 40
    generator = np.random.default_rng(0)
    assert damage(frames, "brighter", generator, 0.5)[0, 0, 0, 0].tolist() == [255, 150, 0]
    assert damage(frames, "darker", generator, 0.5)[0, 0, 0, 0].tolist() == [100, 50, 0]
    assert damage(frames, "paler", generator, 0.5)[0, 0, 0, 0].tolist() == [150, 100, 50]
    assert damage(frames, "mixed", generator, 0.25)[0, 0, 0, 0].tolist() == [160, 85, 10]     # with the clip before
    assert (damage(frames, "covered", generator, 0.5)[0] == 128).all(-1).mean() == pytest.approx(1 / 4)


def test_random_degrees_differ_from_clip_to_clip_and_are_the_same_again():
    frames = np.full((5, 1, 8, 8, 3), 100, np.uint8)
    first, second = (damage(frames, "darker", np.random.default_rng(3)) for _ in range(2))
    assert (first == second).all()
    assert len(set(first[:, 0, 0, 0, 0].tolist())) == 5
    assert 50 <= first.min() < first.max() <= 95


def test_each_clip_is_damaged_once_at_most():
    rows = damaged_rows(100)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(100))
    assert {len(some) for some in damaged_rows(600).values()} == {COPIES}
    assert {len(some) for some in damaged_rows(3).values()} == {0, 1}
