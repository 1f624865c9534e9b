"""The figures of a split on scores small enough to work out by hand."""

import numpy as np
import pytest

from hcmi.evaluate.split_metrics import SplitMetrics, post_processed, shared_captions


def test_shared_captions_count_every_clip_with_the_same_words_when_worked_by_hand():
    captions = ["A red ring", "a blue ring", "a red  ring", "a square"]        # of clips 0, 0, 1, 2
    split = SplitMetrics(np.array([0, 0, 1, 2]), 4, 50)
    sims_QV = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 0, 0], [0, 0, 1, 2.0]])
    found = shared_captions(split, captions, sims_QV)
    assert found["captions"] == 2
    assert split.t2v_ranks(sims_QV).expected.tolist() == [2, 1, 1, 2]
    assert (found["t2v"]["R@1"], found["t2v"]["n"]) == (75, 4)      # the first finds clip 1, which has the same caption
    assert split.v2t_ranks(sims_QV.T).expected.tolist() == [1, 1.5, 1]
    assert (found["v2t"]["R@1"], found["v2t"]["n"]) == (100, 3)     # clip 1: both captions that tie for it are right
    assert shared_captions(split, ["a", "b", "c", "d"], sims_QV) is None


def test_post_processed_keeps_deployable_methods_unchanged_when_other_queries_are_removed():
    generator = np.random.default_rng(5)
    sims_QV, bank_NV = generator.random((30, 10)), generator.random((20, 10))
    truth = np.arange(30) // 3
    whole = post_processed(SplitMetrics(truth, 10, 20), sims_QV, bank_NV)
    parts = [post_processed(SplitMetrics(truth[rows], 10, 20), sims_QV[rows], bank_NV)
             for rows in (slice(0, 12), slice(12, 30))]
    for name in ("qb_norm", "sinkhorn_single"):
        mean = sum(part[name]["t2v"]["n"] * part[name]["t2v"]["MnR"] for part in parts) / 30
        assert whole[name]["t2v"]["MnR"] == pytest.approx(mean, abs=1e-3)
