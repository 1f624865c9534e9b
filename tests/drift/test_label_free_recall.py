"""Hand-worked shares, and estimates on batches whose R@1 is known."""

import numpy as np
import pytest
from made_scores import scores

from hcmi.drift import Scores, estimate_recall, recall_at_1
from hcmi.drift.label_free_recall import answered_by_sample, distorted, weakened


def test_recall_by_hand_when_one_tie():
    own = np.array([[3.0, 9, 9], [9, 2, 9], [9, 9, 1]])     # scores of other clips of the sample do not count
    assert recall_at_1(Scores(own, np.array([[1.0, 2], [2, 0], [5, 0]]))) == pytest.approx(100 * (1 + 0.5 + 0) / 3)


def test_recall_is_chance_when_all_scores_tie():
    assert recall_at_1(Scores(np.zeros((20, 20)), np.zeros((20, 19)))) == pytest.approx(5)


def test_answers_of_the_sample_by_hand():
    own = np.array([[9.0, 1, 1, 1], [9, 1, 1, 1], [1, 1, 1, 1], [1, 1, 2, 3]])
    assert answered_by_sample(Scores(own, np.array([[2.0, 1], [10, 1], [1, 1], [0, 2]]))) == 50


@pytest.mark.parametrize("near", [0.0, 0.4])
def test_unchanged_batches_have_the_references_recall_however_many_near_copies_they_hold(near):
    """Ranked among its own clips, a batch with near copies of them would lose some 15 points."""
    generator = np.random.default_rng(5)
    reference = recall_at_1(scores(600, generator))
    batches = [scores(100, generator, near=near) for _ in range(30)]
    assert np.mean([recall_at_1(batch) for batch in batches]) == pytest.approx(reference, abs=3)
    among_its_own = [(batch.clips_NN.argmax(1) == np.arange(100)).mean() for batch in batches]
    assert (100 * np.mean(among_its_own) < reference - 10) == (near > 0)


def test_answers_do_not_depend_on_whose_text_is_whose():
    generator = np.random.default_rng(0)
    batch, reference = scores(50, generator), scores(120, generator)
    texts = generator.permutation(50)
    mixed = Scores(batch.clips_NN[texts], batch.gallery_NG[texts])
    assert recall_at_1(mixed) < 20 < recall_at_1(batch)
    first = estimate_recall(batch, reference, np.random.default_rng(1))
    assert estimate_recall(mixed, reference, np.random.default_rng(1)) == first


def test_damage_lowers_recall_to_chance_when_strong():
    generator = np.random.default_rng(2)
    whole = scores(100, generator)
    assert recall_at_1(whole) > 80
    assert recall_at_1(distorted(whole, 0.0, 4, generator)) == recall_at_1(weakened(whole, 0.0)) == recall_at_1(whole)
    assert recall_at_1(distorted(whole, 5.0, 4, generator)) < 15
    assert recall_at_1(weakened(whole, 1.0)) < 5
    assert np.array_equal(weakened(whole, 0.5).gallery_NG, whole.gallery_NG)


@pytest.mark.parametrize(("noise", "near"), [(0.6, 0.0), (1.0, 0.0), (0.6, 0.4)])
def test_estimate_is_near_the_truth_when_batch_is_like_the_reference(noise, near):
    generator = np.random.default_rng(3)
    found, truth = [], []
    for _ in range(5):
        batch = scores(80, generator, noise, near)
        found.append(estimate_recall(batch, scores(200, generator, noise), generator))
        truth.append(recall_at_1(batch))
    assert np.mean([abs(e.recall - t) for e, t in zip(found, truth, strict=True)]) < 8
    assert sum(e.low <= t <= e.high for e, t in zip(found, truth, strict=True)) >= 3


@pytest.mark.parametrize("damage", [lambda some, generator: distorted(some, 1.5, 3, generator),
                                    lambda some, generator: weakened(some, 0.6)])
def test_estimate_falls_with_the_truth_when_the_batch_is_damaged(damage):
    generator = np.random.default_rng(4)
    reference, batch = scores(200, generator), damage(scores(100, generator), generator)
    estimate = estimate_recall(batch, reference, generator)
    assert recall_at_1(batch) < 50
    assert estimate.recall < 60
    assert estimate.low <= estimate.recall <= estimate.high


def test_estimate_refuses_a_batch_larger_than_the_reference():
    generator = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="need a batch of at most 10 clips, got 20"):
        estimate_recall(scores(20, generator), scores(10, generator), generator)


def test_scores_of_different_texts_are_refused():
    with pytest.raises(AssertionError, match=r"clips \(3, 3\), gallery \(2, 4\)"):
        Scores(np.zeros((3, 3)), np.zeros((2, 4)))
