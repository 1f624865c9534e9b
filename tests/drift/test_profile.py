"""Distances compared with scipy, loops and hand-worked values; the false alarm rate with the stated one."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hcmi.drift import Profile, compare, query_columns
from hcmi.drift.profile import assignments, clip_columns, energy_distance, fit_temperature, wasserstein


def split(num_reference: int, num_batch: int) -> np.ndarray:
    return (np.arange(num_reference + num_batch) >= num_reference)[None]


def world(count: int, generator: np.random.Generator, shift: float = 0.0) -> Profile:
    columns = pd.DataFrame({"brightness": generator.normal(100 + 20 * shift, 20, count),
                            "duration_s": generator.exponential(3, count), "width": np.full(count, 128.0)})
    return Profile(columns, {"video_embedding": generator.normal(shift, 1, (count, 8))})


def test_wasserstein_is_scipys_over_the_reference_spread_when_values_are_missing():
    generator = np.random.default_rng(0)
    reference, batch = generator.normal(5, 2, 40), generator.normal(6, 2, 15)
    pooled = np.concatenate([reference, [np.nan, np.inf], batch])
    rows = np.arange(len(pooled)) >= 42
    expected = stats.wasserstein_distance(reference, batch) / reference.std()
    assert wasserstein(pooled, rows[None])[0] == pytest.approx(expected)


def test_wasserstein_divides_by_no_less_than_a_thousandth_when_the_reference_is_constant():
    assert wasserstein(np.array([3.0, 3, 3, 5, 5]), split(3, 2))[0] == pytest.approx(2 / 0.001)


def test_energy_distance_agrees_with_loops():
    generator = np.random.default_rng(1)
    reference, batch = generator.normal(0, 1, (7, 3)), generator.normal(1, 1, (4, 3))

    def mean_gap(first, second):
        return np.mean([[np.linalg.norm(a - b) for b in second] for a in first])

    expected = 2 * mean_gap(reference, batch) - mean_gap(reference, reference) - mean_gap(batch, batch)
    assert energy_distance(np.concatenate([reference, batch]), split(7, 4))[0] == pytest.approx(expected, rel=1e-4)


def test_query_columns_by_hand():
    columns = query_columns(np.array([2.0, 0.0]), np.array([[1.0, 0.5], [1.0, 3.0]]), temperature=1.0)
    assert columns["rank"].tolist() == [1, 3]
    assert columns["top1_score"].tolist() == [2, 3]
    assert columns["margin"].tolist() == [1, 2]
    shares = np.exp([2, 1, 0.5]) / np.exp([2, 1, 0.5]).sum()
    assert columns["entropy"][0] == pytest.approx(-(shares * np.log(shares)).sum())


def test_clip_columns_by_hand_when_one_half_is_red():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[:, :, 2:, 0] = 200
    frames[1] //= 2
    found = clip_columns(frames)
    grey = 0.299 * 200
    assert found["brightness"] == pytest.approx((grey / 2 + grey / 4) / 2)
    assert found["contrast"] == pytest.approx((grey / 2 + grey / 4) / 2)
    assert found["saturation"] == pytest.approx((100 + 50) / 2)
    assert found["warmth"] == pytest.approx(75)
    assert found["motion"] == pytest.approx(grey / 4)
    assert found["sharpness"] == pytest.approx((0 + (grey + grey / 2) / 2 / 3) / 2)


def test_clip_columns_have_no_motion_when_there_is_one_frame():
    assert clip_columns(np.full((1, 1, 1, 3), 7, np.uint8)) == pytest.approx(
        {"brightness": 7, "contrast": 0, "saturation": 0, "warmth": 0, "sharpness": 0, "motion": 0}, abs=1e-5)


def test_temperature_scales_with_the_scores():
    sims = np.random.default_rng(2).normal(size=(30, 30)) + 3 * np.eye(30)
    assert fit_temperature(10 * sims) == pytest.approx(10 * fit_temperature(sims))


def test_assignments_keep_the_numbers_of_each_group():
    real = np.array([0, 0, 0, 1, 1, 0, 1], bool)
    groups = np.array([0, 0, 0, 0, 0, 1, 1])
    found = assignments(real, groups, 200, np.random.default_rng(0))
    assert (found[0] == real).all()
    assert (found[:, :5].sum(1) == 2).all()
    assert (found[:, 5:].sum(1) == 1).all()
    assert found[:, :5].any(0).all()


def test_compare_alarms_at_the_stated_rate_when_nothing_has_changed():
    generator = np.random.default_rng(3)
    alarms = sum(any(shift.drifted for shift in compare(world(60, generator), world(25, generator), 0.1, generator))
                 for _ in range(200))
    assert 8 <= alarms <= 34        # 20 expected; 3.3 standard deviations


def test_compare_names_what_changed_when_one_column_moves():
    generator = np.random.default_rng(4)
    reference, batch = world(200, generator), world(60, generator)
    batch.columns["brightness"] += 30
    drifted = {shift.name for shift in compare(reference, batch, 0.01, generator) if shift.drifted}
    assert drifted == {"brightness"}


def test_compare_sees_embeddings_move():
    generator = np.random.default_rng(5)
    shifts = compare(world(200, generator), world(60, generator, 0.8), 0.01, generator)
    assert {shift.name for shift in shifts if shift.drifted} >= {"video_embedding", "brightness"}


def test_compare_leaves_out_columns_that_never_vary_or_are_missing():
    generator = np.random.default_rng(6)
    reference, batch = world(50, generator), world(50, generator)
    batch.columns["duration_s"] = np.nan
    assert [shift.name for shift in compare(reference, batch, 0.05, generator)] == ["brightness", "video_embedding"]


def test_compare_gives_equal_answers_when_the_seed_is_equal():
    reference, batch = world(50, np.random.default_rng(7)), world(30, np.random.default_rng(8))
    first, second = (compare(reference, batch, 0.05, np.random.default_rng(9)) for _ in range(2))
    assert [vars(shift) for shift in first[:2]] == [vars(shift) for shift in second[:2]]


def test_profile_refuses_embeddings_of_another_length():
    with pytest.raises(AssertionError, match="video_embedding: 2 rows, columns: 3"):
        Profile(pd.DataFrame({"rank": [1, 2, 3]}), {"video_embedding": np.zeros((2, 4))})
