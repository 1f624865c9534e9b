"""R@1 of batches whose clips hang together: its interval is as wide as that of the independent clips they are worth."""

import numpy as np
import pytest
from made_scores import scores

from hcmi.drift import Scores, recall_at_1
from hcmi.drift.severity import measure


def repeated(some: Scores, times: int) -> tuple[Scores, np.ndarray]:
    """Every clip `times` times, and the groups of the copies."""
    rows = np.repeat(np.arange(len(some)), times)
    return some[rows], rows


def test_copies_of_each_clip_change_neither_recall_nor_interval():
    """Taken for independent clips, they made the intervals half as wide."""
    generator = np.random.default_rng(0)
    batch, known = scores(60, generator), scores(150, generator)
    alone = measure(batch, known, np.arange(60), np.arange(150))
    (many, groups), (many_known, known_groups) = repeated(batch, 4), repeated(known, 4)
    copied = measure(many, many_known, groups, known_groups)
    for name in ("recall", "low", "high", "reference", "change", "change_low", "change_high"):
        assert getattr(copied, name) == pytest.approx(getattr(alone, name), abs=0.01)
    assert copied.captions == 240
    careless = measure(many, many_known, np.arange(240), np.arange(600))
    assert careless.high - careless.low < 0.6 * (copied.high - copied.low)


def test_interval_holds_the_true_recall_when_pairs_of_clips_are_alike():
    """Of 200 batches; with each clip taken for itself, 95 % became less."""
    generator = np.random.default_rng(1)
    pool = scores(3000, generator)
    truth, holds = recall_at_1(pool), {True: 0, False: 0}
    for _ in range(200):
        rows = np.repeat(generator.choice(3000, 50, replace=False), 2)
        batch = Scores(pool.clips_NN[np.ix_(rows, rows)], pool.gallery_NG[rows])
        for together in holds:
            found = measure(batch, batch, rows if together else np.arange(100), rows)
            holds[together] += found.low <= truth <= found.high
    assert holds[True] >= 184       # 190 expected; 2 standard deviations
    assert holds[False] <= 178
