"""The figures of a split on scores small enough to work out by hand."""

import numpy as np
import pytest

from hcmi.evaluate.postprocess import dsl, sinkhorn
from hcmi.evaluate.split_metrics import SplitMetrics, chance, choose_scales, post_processed, shared_captions


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


def test_chance_is_that_of_equal_scores_when_worked_by_hand():
    """Captions of clips 0, 0, 1, 2; clip 3 has none. A text has one right clip of 4; clip 0 two right texts of 4."""
    found = chance(SplitMetrics(np.array([0, 0, 1, 2]), 4, 50))
    assert found["t2v"] == {"R@1": 25, "R@5": 100, "R@10": 100, "R@50": 100}
    assert found["v2t"]["R@1"] == pytest.approx(100 * (2 / 4 + 1 / 4 + 1 / 4) / 3, abs=1e-3)


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


def test_post_processed_uses_the_scale_of_each_direction_when_scales_were_chosen():
    generator = np.random.default_rng(6)
    sims_QV, truth = generator.uniform(-0.2, 0.5, (40, 20)), np.arange(40) // 2
    split = SplitMetrics(truth, 20, 20)
    chosen = {"dsl": {"t2v": 5.0, "v2t": 500.0}, "sinkhorn": {"t2v": 500.0, "v2t": 5.0}}
    found = post_processed(split, sims_QV, None, chosen)
    assert {name: entry["scale"] for name, entry in found.items()} == chosen
    assert found["dsl"]["t2v"] == split.t2v_summary(split.t2v_ranks(dsl(sims_QV, 5)))
    assert found["dsl"]["v2t"] == split.v2t_summary(split.v2t_ranks(dsl(sims_QV.T, 500)))
    assert found["sinkhorn"]["t2v"] == split.t2v_summary(split.t2v_ranks(sinkhorn(sims_QV, 500)))
    assert found["sinkhorn"]["v2t"] == split.v2t_summary(split.v2t_ranks(sinkhorn(sims_QV, 5).T))


def test_choose_scales_follow_the_spread_of_the_scores_when_these_are_shrunk():
    """Twelve clips are hubs. With a tenth of the spread, a higher scale is needed to see them."""
    generator = np.random.default_rng(7)
    truth = np.arange(240) // 2
    sims_QV = generator.normal(0, 0.05, (240, 120)) + 0.2 * (truth[:, None] == np.arange(120))
    sims_QV[:, generator.permutation(120)[:12]] += 0.1
    wide, narrow = (choose_scales(truth, spread * sims_QV, None)["sinkhorn"]["t2v"] for spread in (1, 0.1))
    assert (wide, narrow) == (100, 500)


def test_clip_is_ranked_by_its_best_caption_when_published_code_does():
    """Clip 0 has two captions, clip 1 three, clip 2 none. Worked by hand."""
    split = SplitMetrics(np.array([1, 0, 1, 1, 0]), 3, samples=10)
    sims_VQ = np.array([[.9, .1, .8, .7, .6],       # clip 0: its best is 0.6; three captions of clip 1 are higher
                        [.1, .3, .2, .4, .5],       # clip 1: its best is 0.4; 0.5 of clip 0 is higher
                        [.0, .0, .0, .0, .0]])
    assert split.v2t_ranks(sims_VQ).expected.tolist() == [4, 2]
    assert split.v2t_ranks_by_clip(sims_VQ).expected.tolist() == [2, 2]


def test_best_captions_are_those_of_a_loop_when_scores_are_random():
    generator = np.random.default_rng(0)
    caption_video = generator.permutation(np.repeat(np.arange(12), generator.integers(0, 5, 12)))
    sims_VQ = generator.normal(size=(12, len(caption_video)))
    split = SplitMetrics(caption_video, 12, samples=10)
    expected = []
    for video in split.captioned:
        best = {other: max(sims_VQ[video, caption_video == other]) for other in split.captioned}
        expected.append(1 + sum(score > best[video] for score in best.values()))
    found = split.v2t_ranks_by_clip(sims_VQ)
    assert found.expected.tolist() == expected
    assert found.hits_at(1).tolist() == split.v2t_ranks(sims_VQ).hits_at(1).tolist()
