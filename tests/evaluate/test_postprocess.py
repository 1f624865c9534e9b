"""Post-processing against slow oracles written as loops over the papers' formulas, and what must not leak."""

import math

import numpy as np
import pytest

from hcmi.evaluate import choose_level_weights, ranks
from hcmi.evaluate.postprocess import (
    DEPLOYABLE,
    FEWEST_CLIPS,
    SCALES_TRIED,
    choose_scale,
    dsl,
    qb_norm,
    sinkhorn,
    sinkhorn_single,
)

RNG = np.random.default_rng(3)
SIMS = RNG.uniform(-0.3, 0.6, (14, 9))
BANK = RNG.uniform(-0.3, 0.6, (11, 9))


def slow_qb_norm(sims, bank, scale):
    popular = {int(np.argmax(row)) for row in bank}
    out = []
    for row in sims:
        if int(np.argmax(row)) in popular:
            row = [math.log(math.exp(scale * s) / sum(math.exp(scale * b[v]) for b in bank)) / scale
                   for v, s in enumerate(row)]
        out.append(row)
    return np.array(out)


def slow_plan(sims, scale, steps):
    plan = np.exp(scale * sims)
    num_queries, num_videos = plan.shape
    for _ in range(steps):
        for q in range(num_queries):
            plan[q] /= plan[q].sum() * num_queries
        for v in range(num_videos):
            plan[:, v] /= plan[:, v].sum() * num_videos
    return plan


def test_qb_norm_matches_the_oracle_when_only_some_queries_hit_popular_videos():
    bank = BANK[:3]
    hit = np.isin(SIMS.argmax(1), bank.argmax(1))
    assert 0 < hit.sum() < len(SIMS)
    np.testing.assert_allclose(qb_norm(SIMS, bank, 20.0), slow_qb_norm(SIMS, bank, 20.0))


def test_qb_norm_demotes_a_hub_when_the_bank_shows_it():
    hub_QV = np.array([[0.5, 0.52], [0.1, 0.6]])
    bank = np.array([[0.1, 0.5], [0.2, 0.6], [0.0, 0.55]])
    assert hub_QV.argmax(1).tolist() == [1, 1]
    assert qb_norm(hub_QV, bank).argmax(1).tolist() == [0, 1]


def test_sinkhorn_matches_the_oracle_when_the_gallery_is_rectangular():
    np.testing.assert_allclose(np.exp(sinkhorn(SIMS, 20.0, 7)), slow_plan(SIMS, 20.0, 7), rtol=1e-9)


def test_sinkhorn_gives_every_video_its_share_when_done():
    plan = np.exp(sinkhorn(SIMS, 20.0))
    np.testing.assert_allclose(plan.sum(0), 1 / SIMS.shape[1])
    np.testing.assert_allclose(plan.sum(1), 1 / len(SIMS), rtol=0.1)


def test_sinkhorn_single_uses_the_prices_of_the_banks_plan():
    plan = slow_plan(BANK, 20.0, 10)
    logs = np.log(plan) - 20.0 * BANK
    price_V = logs[0] - logs[0, 0]
    expected = SIMS + price_V / 20.0
    found = sinkhorn_single(SIMS, BANK, 20.0, 10)
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], atol=1e-9)


def test_dsl_matches_the_formula():
    expected = np.array([[s * math.exp(100 * s) / sum(math.exp(100 * other[v]) for other in SIMS)
                          for v, s in enumerate(row)] for row in SIMS])
    np.testing.assert_allclose(dsl(SIMS), expected)


@pytest.mark.parametrize("method", [qb_norm, sinkhorn_single])
def test_deployable_methods_do_not_change_when_the_other_queries_do(method):
    alone = np.concatenate([method(SIMS[i:i + 1], BANK) for i in range(len(SIMS))])
    np.testing.assert_array_equal(method(SIMS, BANK), alone)
    assert DEPLOYABLE[method.__name__]


@pytest.mark.parametrize("method", [dsl, sinkhorn])
def test_methods_not_deployable_change_when_the_other_queries_do(method):
    assert not np.allclose(method(SIMS[:7]), method(SIMS)[:7])
    assert not DEPLOYABLE[method.__name__]


@pytest.mark.parametrize("method", [dsl, sinkhorn, lambda s: qb_norm(s, BANK), lambda s: sinkhorn_single(s, BANK)])
def test_methods_stay_finite_when_scores_are_far_out(method):
    assert np.isfinite(method(100 * SIMS)).all()


def found_first(num_found: int) -> np.ndarray:
    """100 captions and their clips: the first `num_found` captions find their clip, the others rank it second."""
    sims_QV = np.eye(100)
    for query in range(num_found, 100):
        sims_QV[query, query - 1] = 2
    return sims_QV


@pytest.mark.parametrize(("more_found", "chosen"), [(0, 100), (3, 100), (4, 200)])
def test_choose_scale_leaves_its_default_when_another_is_better_by_two_standard_errors(more_found, chosen):
    """A share p of the clips gains 1/2. Its mean p/2 exceeds twice sqrt(p (1 - p) / 4 / 100) when p > 1/26."""
    clips = np.arange(100)
    assert choose_scale(lambda scale: found_first(50 + more_found * (scale == 200)), clips, "t2v", 100.0) == chosen


def test_choose_scale_looks_at_the_direction_it_is_asked_for():
    texts_find = np.eye(100) + 10 * np.arange(100)[:, None]     # each caption's best clip is its own, not the reverse
    at_scale = {20.0: texts_find, 50.0: texts_find.T}
    for direction, chosen in (("t2v", 20.0), ("v2t", 50.0)):
        assert choose_scale(lambda scale: at_scale.get(scale, found_first(0)), np.arange(100), direction,
                            100.0) == chosen


def test_choose_scale_is_the_default_when_all_scales_are_equal():
    for default in SCALES_TRIED:
        assert choose_scale(lambda scale: np.eye(100), np.arange(100), "t2v", default) == default


def test_choose_level_weights_drops_a_level_of_noise():
    truth = np.repeat(np.arange(FEWEST_CLIPS), 2)
    size = (2 * FEWEST_CLIPS, FEWEST_CLIPS)
    good = 0.1 * RNG.normal(size=size) + 0.2 * (truth[:, None] == np.arange(FEWEST_CLIPS))
    noise = RNG.normal(size=size)
    weights = choose_level_weights({"frame_word": good, "clip_phrase": noise, "video_sentence": good}, truth)
    assert weights["clip_phrase"] == 0
    assert sum(weights.values()) == 3
    combined = sum(w * s for w, s in zip(weights.values(), (good, noise, good), strict=True))
    assert ranks(combined, truth).hits_at(1).mean() > ranks(good + noise + good, truth).hits_at(1).mean()


def test_choose_level_weights_keeps_them_equal_when_levels_agree():
    level = np.eye(8)
    weights = choose_level_weights(dict.fromkeys("abc", level), np.arange(8))
    assert weights == {"a": 1, "b": 1, "c": 1}


def test_choose_level_weights_ignores_a_video_when_it_has_no_caption():
    assert choose_level_weights({"video_sentence": np.eye(3)[:2]}, [0, 1]) == {"video_sentence": 1}


def test_choose_level_weights_keeps_them_equal_when_clips_are_few():
    """Two clips once gave 0, 0, 3: that both clips do better with one level says nothing about a third."""
    wrong, right = 1 - np.eye(FEWEST_CLIPS), np.eye(FEWEST_CLIPS)
    for clips, weights in ((2, [1, 1, 1]), (FEWEST_CLIPS - 1, [1, 1, 1]), (FEWEST_CLIPS, [0.5, 0.5, 2])):
        levels = {name: level[:clips, :clips] for name, level in zip("abc", (wrong, wrong, right), strict=True)}
        assert list(choose_level_weights(levels, np.arange(clips)).values()) == weights


@pytest.fixture(scope="module")
def msrvtt(shared_data):
    """CLIP's scores of 1,000 captions with 1,000 clips; caption i belongs to clip i."""
    return np.load(shared_data / "metrics" / "msrvtt_1ka_sims_text_by_video.npy").astype(np.float64)


def recall_at_1(sims_QV) -> float:
    return 100 * ranks(sims_QV, np.arange(len(sims_QV))).hits_at(1).mean()


def test_methods_that_see_all_queries_gain_on_clip_when_the_scale_is_the_default(msrvtt):
    assert recall_at_1(msrvtt) == pytest.approx(48.0)
    assert recall_at_1(sinkhorn(msrvtt)) == pytest.approx(53.8)      # 46.0 with a scale of 20
    assert recall_at_1(sinkhorn(msrvtt).T) == pytest.approx(53.1)    # 45.8 before
    assert recall_at_1(dsl(msrvtt)) == pytest.approx(52.8)
    assert recall_at_1(dsl(msrvtt.T)) == pytest.approx(52.45)


@pytest.mark.parametrize("spread", [1, 1 / 4])
def test_choose_scale_suits_other_clips_when_it_was_chosen_on_half_of_clips_scores(msrvtt, spread):
    """The scale follows the spread of a model's scores, so the gain does not depend on it."""
    order = np.random.default_rng(0).permutation(1000)
    val_QV, test_QV = (spread * msrvtt[np.ix_(half, half)] for half in (order[:500], order[500:]))
    scale = choose_scale(lambda scale: sinkhorn(val_QV, scale), np.arange(500), "t2v", 100.0)
    assert scale in ((100,) if spread == 1 else (200, 500))
    assert recall_at_1(sinkhorn(test_QV, scale)) > recall_at_1(test_QV) + 5
