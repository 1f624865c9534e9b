"""Hand-worked shares, and estimates on batches whose R@1 is known."""

import numpy as np
import pytest

from hcmi.drift.estimate import damaged, different_answers, estimate_recall, recall_at_1


def scores(count: int, generator: np.random.Generator, noise: float = 0.7, dim: int = 24) -> np.ndarray:
    meaning = generator.normal(size=(count, dim))
    texts, clips = (meaning + noise * generator.normal(size=(count, dim)) for _ in range(2))
    return (texts / np.linalg.norm(texts, axis=1)[:, None]) @ (clips / np.linalg.norm(clips, axis=1)[:, None]).T


def test_recall_by_hand_when_one_tie():
    assert recall_at_1(np.array([[3.0, 1, 1], [2, 2, 0], [5, 0, 1]])) == pytest.approx(100 * (1 + 0.5 + 0) / 3)


def test_recall_is_chance_when_all_scores_tie():
    assert recall_at_1(np.zeros((20, 20))) == pytest.approx(5)


def test_different_answers_by_hand():
    assert different_answers(np.array([[9.0, 1, 1, 1], [9, 1, 1, 1], [1, 1, 9, 1], [1, 1, 1, 9]])) == 75


def test_answers_do_not_depend_on_whose_text_is_whose():
    generator = np.random.default_rng(0)
    batch, reference = scores(50, generator), scores(120, generator)
    first = estimate_recall(batch, reference, np.random.default_rng(1))
    second = estimate_recall(batch[generator.permutation(50)], reference, np.random.default_rng(1))
    assert first == second


def test_damage_lowers_recall_to_chance_when_strong():
    generator = np.random.default_rng(2)
    sims = scores(100, generator)
    assert recall_at_1(sims) > 80
    assert recall_at_1(damaged(sims, 0.0, 4, generator)) == recall_at_1(sims)
    assert recall_at_1(damaged(sims, 5.0, 4, generator)) < 15


@pytest.mark.parametrize("noise", [0.6, 1.0])
def test_estimate_is_near_the_truth_when_batch_is_like_the_reference(noise):
    generator = np.random.default_rng(3)
    found, truth = [], []
    for _ in range(5):
        batch = scores(80, generator, noise)
        found.append(estimate_recall(batch, scores(200, generator, noise), generator))
        truth.append(recall_at_1(batch))
    assert np.mean([abs(e.recall - t) for e, t in zip(found, truth, strict=True)]) < 8
    assert sum(e.low <= t <= e.high for e, t in zip(found, truth, strict=True)) >= 3


def test_estimate_falls_with_the_truth_when_clips_attract_queries():
    generator = np.random.default_rng(4)
    reference, batch = scores(200, generator), damaged(scores(100, generator), 1.5, 3, generator)
    estimate = estimate_recall(batch, reference, generator)
    assert recall_at_1(batch) < 50
    assert estimate.recall < 60
    assert estimate.low <= estimate.recall <= estimate.high


def test_estimate_refuses_a_batch_larger_than_the_reference():
    with pytest.raises(AssertionError, match="need a batch of at most 10 clips, got 20"):
        estimate_recall(np.zeros((20, 20)), np.zeros((10, 10)), np.random.default_rng(0))
