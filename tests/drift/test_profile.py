"""Distances compared with scipy, loops and hand-worked values; the false alarm rate with the stated one."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hcmi.drift import Profile, compare, query_columns
from hcmi.drift.compare import assignments
from hcmi.drift.distances import RIDGE, classifier_gap, energy_distance, wasserstein
from hcmi.drift.groups import group_rows, near_limit
from hcmi.drift.profile import clip_columns, fit_temperature


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


def test_assignments_keep_the_numbers_of_each_stratum():
    real = np.array([0, 0, 0, 1, 1, 0, 1], bool)
    strata = np.array([0, 0, 0, 0, 0, 1, 1])
    found = assignments(real, strata, np.arange(7), 200, np.random.default_rng(0))
    assert (found[0] == real).all()
    assert (found[:, :5].sum(1) == 2).all()
    assert (found[:, 5:].sum(1) == 1).all()
    assert found[:, :5].any(0).all()


def test_assignments_move_units_as_a_whole_but_for_the_last():
    real = np.arange(20) >= 12
    units = np.repeat(np.arange(10), 2)
    found = assignments(real, np.zeros(20, int), units, 300, np.random.default_rng(0))[1:]
    cut = found[:, ::2] != found[:, 1::2]
    assert (found.sum(1) == 8).all()
    assert cut.sum(1).max() == 0         # 8 rows are 4 units
    assert found.any(0).all()


def test_classifier_tells_apart_what_differs_in_more_than_the_mean():
    generator = np.random.default_rng(0)
    same = generator.normal(size=(90, 6))
    wider = np.concatenate([generator.normal(size=(60, 6)), 3 * generator.normal(size=(30, 6))])
    assert abs(classifier_gap(same, split(60, 30), np.arange(90))[0]) < 0.15
    assert classifier_gap(wider, split(60, 30), np.arange(90))[0] > 0.3


def test_classifier_answers_for_each_unit_as_if_it_had_not_seen_it():
    """The closed form against fits without one unit each."""
    rows = np.random.default_rng(1).normal(size=(9, 2))
    units = np.array([0, 0, 1, 2, 3, 4, 5, 5, 6])
    labels = (np.arange(9) >= 6).astype(float) - 1 / 3
    gaps = ((rows[:, None] - rows) ** 2).sum(-1)
    kernel = np.exp(-gaps / np.median(gaps))
    answers = []
    for row in range(9):
        rest = units != units[row]
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + RIDGE * np.eye(rest.sum()), labels[rest])
        answers.append(kernel[row, rest] @ weights)
    expected = np.mean(answers[6:]) - np.mean(answers[:6])
    assert classifier_gap(rows, split(6, 3), units)[0] == pytest.approx(expected, rel=1e-4)


def test_energy_distance_ignores_how_near_the_rows_of_a_unit_are():
    rows = np.array([[0.0], [1], [2], [3], [3]])
    copies = energy_distance(rows, split(3, 2), np.array([0, 1, 2, 3, 3]))
    assert copies[0] > energy_distance(rows, split(3, 2))[0] - 1        # the pair counts as a usual one
    gaps = np.abs(rows - rows.T)
    gaps[3, 4] = gaps[4, 3] = gaps[np.triu_indices(5, 1)][:-1].mean()
    np.fill_diagonal(gaps, 0)
    assert copies[0] == pytest.approx(2 * gaps[:3, 3:].mean() - gaps[:3, :3].mean() - gaps[3:, 3:].mean(), rel=1e-5)


def test_groups_are_near_copies_and_parts_of_one_file():
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(60, 16))
    rows[41] = rows[40] + 0.01
    sources = [f"{number}.mp4" for number in range(60)]
    sources[11] = sources[10]
    found = group_rows(rows, sources, 0.95)
    assert found[41] == found[40]
    assert found[11] == found[10]
    assert len(set(found)) == 58
    assert len(set(group_rows(np.ones((60, 4)), sources, 0.95))) == 6      # of at most 10 each


def test_near_limit_is_passed_by_one_pair_in_a_thousand():
    generator = np.random.default_rng(3)
    known, others = generator.normal(size=(100, 8)), generator.normal(size=(300, 8))
    limit = near_limit(known, others)
    sims = (known / np.linalg.norm(known, axis=1)[:, None]) @ (others / np.linalg.norm(others, axis=1)[:, None]).T
    assert (sims > limit).mean() == pytest.approx(1 / 1000, rel=0.1)


def test_compare_alarms_at_the_stated_rate_when_nothing_has_changed():
    generator = np.random.default_rng(3)
    alarms = sum(any(shift.drifted for shift in compare(world(60, generator), world(25, generator), 0.1, generator))
                 for _ in range(200))
    assert 8 <= alarms <= 34        # 20 expected; 3.3 standard deviations


def with_neighbours(count: int, near: int, generator: np.random.Generator, limit: float) -> Profile:
    """`near` of the clips are near copies of others, as in batches that arrive together."""
    rows = generator.normal(size=(count, 16))
    rows[:near] = rows[near:2 * near] + 0.2 * generator.normal(size=(near, 16))
    columns = pd.DataFrame({"nearest_known": rows[:, 0]})
    groups = group_rows(rows, [str(number) for number in range(count)], limit) if limit < 1 else None
    return Profile(columns, {"video_embedding": rows}, groups)


def test_batches_of_neighbours_alarm_at_the_stated_rate_when_these_move_together():
    """With each clip for itself, as before, most of such batches alarm."""
    generator = np.random.default_rng(10)
    alarms = {}
    for limit in (0.9, 1.0):
        alarms[limit] = sum(any(shift.drifted for shift in compare(
            with_neighbours(150, 10, generator, limit), with_neighbours(60, 20, generator, limit), 0.05, generator))
            for _ in range(30))
    assert alarms[0.9] <= 5
    assert alarms[1.0] >= 10


def test_compare_names_what_changed_when_one_column_moves():
    generator = np.random.default_rng(4)
    reference, batch = world(200, generator), world(60, generator)
    batch.columns["brightness"] += 30
    drifted = {shift.name for shift in compare(reference, batch, 0.01, generator) if shift.drifted}
    assert drifted == {"brightness"}


def test_compare_sees_embeddings_move():
    generator = np.random.default_rng(5)
    shifts = compare(world(200, generator), world(60, generator, 0.8), 0.01, generator)
    assert {shift.name for shift in shifts if shift.drifted} >= {"video_embedding", "classifier", "brightness"}


def test_compare_leaves_out_columns_that_never_vary_or_are_missing():
    generator = np.random.default_rng(6)
    reference, batch = world(50, generator), world(50, generator)
    batch.columns["duration_s"] = np.nan
    assert [shift.name for shift in compare(reference, batch, 0.05, generator)] == [
        "brightness", "video_embedding", "classifier"]


def test_compare_gives_equal_answers_when_the_seed_is_equal():
    reference, batch = world(50, np.random.default_rng(7)), world(30, np.random.default_rng(8))
    first, second = (compare(reference, batch, 0.05, np.random.default_rng(9)) for _ in range(2))
    assert [vars(shift) for shift in first[:2]] == [vars(shift) for shift in second[:2]]


def test_profile_refuses_embeddings_of_another_length():
    with pytest.raises(AssertionError, match="video_embedding: 2 rows, columns: 3"):
        Profile(pd.DataFrame({"rank": [1, 2, 3]}), {"video_embedding": np.zeros((2, 4))})
