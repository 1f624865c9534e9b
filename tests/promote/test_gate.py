"""The decision, from figures: worse models are never promoted, better ones nearly always."""

import numpy as np
import pytest

from hcmi.evaluate import paired_difference
from hcmi.promote import Difference, decide


def difference(low: float, high: float, where: str = "test set") -> Difference:
    return Difference(where, 50.0, 50.0 + (low + high) / 2, low, high, 100)


@pytest.mark.parametrize(("test", "batches", "must", "passed", "said"), [
    ((0.5, 4), None, True, True, "Better on the test set, and not worse."),
    ((-0.5, 4), None, True, False, "Not shown to be better. `hcmi promote --not-worse` promotes it all the same."),
    ((-0.5, 4), None, False, True, "Not worse."),
    ((-0.9, -0.2), None, False, True, "Worse on the test set by less than the margin of 1 point."),
    ((-0.9, -0.2), None, True, False, "queries. Worse on the test set by less than the margin of 1 point. "
     "`hcmi promote --not-worse` promotes it all the same."),
    ((-0.9, -0.2), (-9, 9), False, True, "Worse on the test set by less than the margin of 1 point."),
    ((-0.9, -0.2), (5, 9), True, True,
     "Better on the newest batches, and worse on the test set by less than the margin of 1 point."),
    ((-1.5, 4), None, False, False, "A loss of more than 1 point cannot be ruled out."),
    ((-1.5, 4), (5, 9), True, False, "A loss of more than 1 point cannot be ruled out."),
    ((-0.5, 4), (5, 9), True, True, "Better on the newest batches, and not worse."),
    ((0.5, 4), (5, 9), True, True, "Better on the test set and the newest batches, and not worse."),
    ((0.5, 4), (-9, 9), True, True, "Better on the test set, and not worse."),
    ((0.5, 4), (-9, -1), True, False, "It is worse there."),
    ((0.5, 4), (-9, -1), False, False, "It is worse there."),
])
def test_decision_when_the_intervals_are(test, batches, must, passed, said):
    found = decide(difference(*test), batches and difference(*batches, where="newest batches"), 1.0, must)
    assert found[0] is passed
    assert found[1].endswith(said)


@pytest.mark.parametrize(("margin", "said"), [(1.0, "1 point"), (2.5, "2.5 points")])
def test_reason_names_the_margin(margin, said):
    assert decide(difference(-9, -1), None, margin)[1].endswith(f"A loss of more than {said} cannot be ruled out.")
    assert decide(difference(-0.9, -0.2), None, margin, False)[1].endswith(f"by less than the margin of {said}.")


def test_reason_names_the_figures():
    assert decide(difference(-9, -1), None, 1.0)[1] == (
        "test set: R@1 45.0 instead of 50.0, difference -5.0 [-9.0, -1.0], 100 queries. A loss of more than 1 point "
        "cannot be ruled out.")


def measured(gain: float, seed: int, videos: int = 300, captions: int = 3) -> Difference:
    """Champion and challenger find each caption's clip with chances that differ by `gain`; clips differ in difficulty.
    """
    generator = np.random.default_rng(seed)
    hard = generator.normal(0, 0.15, videos).repeat(captions)
    same = generator.random(videos * captions)          # most captions are found by both or by neither
    own = np.where(generator.random(len(same)) < 0.7, same, generator.random(len(same)))
    hits = [100.0 * (same < 0.5 + hard), 100.0 * (own < 0.5 + hard + gain)]
    low, high = paired_difference(*hits, np.random.default_rng(0), 300, np.arange(videos).repeat(captions))["ci95"]
    return Difference("test set", hits[0].mean(), hits[1].mean(), low, high, len(same))


def test_no_worse_model_is_promoted_and_at_most_two_of_twenty_better_ones_are_refused():
    worse = [decide(measured(-0.05, seed), None, 1.0, must)[0] for seed in range(20) for must in (True, False)]
    assert sum(worse) == 0
    better = [decide(measured(0.08, seed), None, 1.0)[0] for seed in range(20)]
    assert sum(better) >= 18
