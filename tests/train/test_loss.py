"""The loss against values worked out by hand and slow loops; the helpers of the tests fail on planted bugs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_by_loops import balance_by_loops, contrastive_by_loops, drawn, margin_by_loops, same_by_loops

from hcmi.train.loss import balance, contrastive, margin, same_meaning


def assert_is_contrastive(loss, mode: str, seed: int = 0, size: int | None = None, captions: int = 1) -> None:
    sims_QB, positives_BB = drawn(seed, size, captions)
    oracle = contrastive_by_loops(sims_QB.tolist(), 3.0, positives_BB.tolist(), mode)
    assert float(loss(sims_QB, torch.tensor(3.0), positives_BB, mode)) == pytest.approx(oracle, abs=1e-5)


def assert_is_same_videos(same, seed: int = 0, size: int = 6) -> None:
    generator = np.random.default_rng(seed)
    whole = generator.normal(size=(size, 4))[generator.integers(0, size, size)]     # some are the same
    views = [torch.from_numpy(whole + 0.3 * generator.normal(size=(size, 4))) for _ in range(2)]
    found, oracle = same(*views), same_by_loops(*(view.tolist() for view in views))
    assert found.tolist() == oracle, f"need {oracle}, got {found.tolist()}"


def assert_is_margin(loss, seed: int = 0, size: int | None = None, with_positives: bool = True,
                     captions: int = 1) -> None:
    sims_QB, positives_BB = drawn(seed, size, captions)
    given = (positives_BB,) if with_positives else ()
    oracle = margin_by_loops(sims_QB.tolist(), 0.2, *(matrix.tolist() for matrix in given))
    assert float(loss(sims_QB, 0.2, *given)) == pytest.approx(oracle, abs=1e-6)


def assert_is_balance(loss, seed: int = 0, size: int | None = None, with_positives: bool = True,
                      captions: int = 1) -> None:
    sims_QB, positives_BB = drawn(seed, size, captions)
    given = (positives_BB,) if with_positives else ()
    oracle = balance_by_loops(sims_QB.tolist(), 3.0, *(matrix.tolist() for matrix in given))
    assert float(loss(sims_QB, torch.tensor(3.0), *given)) == pytest.approx(oracle, abs=1e-4)


# contrastive

def test_contrastive_is_the_mean_of_both_directions_when_worked_by_hand():
    sims_BB = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    # rows (text to video): log(1 + e^-1), log(1 + e^-1); columns (video to text): log(1 + e^1), log(1 + e^-3)
    t2v = math.log(1 + math.exp(-1))
    v2t = (math.log(1 + math.e) + math.log(1 + math.exp(-3))) / 2
    assert float(contrastive(sims_BB, torch.tensor(1.0))) == pytest.approx((t2v + v2t) / 2)


def test_contrastive_is_log_of_the_batch_when_all_scores_are_equal():
    assert float(contrastive(torch.full((5, 5), 0.3), torch.tensor(20.0))) == pytest.approx(math.log(5))


def test_contrastive_shares_the_target_when_a_pair_is_positive():
    sims_BB, positives_BB = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[True, True], [False, True]])
    # video 0 (column 0, scores 0 0) has both texts: log 2; video 1 (scores 0 1) its own: log(1 + e) - 1
    # text 0 (row 0) its own: log 2; text 1 (row 1, scores 0 1) has both videos: log(1 + e) - 1/2
    v2t = (math.log(2) + math.log(1 + math.e) - 1) / 2
    t2v = (math.log(2) + math.log(1 + math.e) - 0.5) / 2
    found = contrastive(sims_BB, torch.tensor(1.0), positives_BB, "positive")
    assert float(found) == pytest.approx((v2t + t2v) / 2)


def test_contrastive_leaves_the_pair_out_when_it_is_masked():
    sims_BB, positives_BB = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[True, True], [False, True]])
    # video 0 and text 1 have no negative left: 0; text 0: log 2; video 1: log(1 + e) - 1
    found = contrastive(sims_BB, torch.tensor(1.0), positives_BB, "mask")
    assert float(found) == pytest.approx((math.log(2) + math.log(1 + math.e) - 1) / 4, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(["off", "positive", "mask"]), st.integers(1, 3))
def test_contrastive_equals_loops_when_scores_are_random(seed, mode, captions):
    assert_is_contrastive(contrastive, mode, seed, None, captions)


@pytest.mark.parametrize("mode", ["off", "positive", "mask"])
def test_contrastive_is_unchanged_when_the_batch_is_permuted(mode):
    sims_BB, positives_BB = drawn(3, 6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    before = contrastive(sims_BB, torch.tensor(5.0), positives_BB, mode)
    after = contrastive(sims_BB[order][:, order], torch.tensor(5.0), positives_BB[order][:, order], mode)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("mode", ["off", "positive", "mask"])
def test_losses_are_zero_with_finite_gradients_when_the_batch_is_one(mode):
    sims_BB = torch.tensor([[0.4]], requires_grad=True)
    alone = torch.ones(1, 1, dtype=torch.bool)
    total = contrastive(sims_BB, torch.tensor(10.0), alone, mode) + margin(sims_BB, 0.2, alone) + margin(sims_BB, 0.2)
    total = total + balance(sims_BB, torch.tensor(10.0), alone) + balance(sims_BB, torch.tensor(10.0))
    total.backward()
    assert total.item() == 0
    assert torch.equal(sims_BB.grad, torch.zeros(1, 1))


# adaptive label denoising

def test_same_videos_compares_with_the_anchors_own_agreement_when_worked_by_hand():
    view1_BD = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    view2_BD = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    # own agreement: 0.8, 0.8, 1; between 0 and 1 the four cosines are 0.8 1 1 0.8: mean 0.9 >= 0.8, in both directions
    # between 0 or 1 and 2: (0 + 0 + 0.6 + 0.6) / 4 = 0.3
    expected = [[True, True, False], [True, True, False], [False, False, True]]
    assert same_meaning(view1_BD, view2_BD).tolist() == expected


def test_same_videos_is_not_symmetric_when_one_anchor_is_less_sure():
    view1_BD = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    view2_BD = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # between them: (0.6 + 1 + 0.6 + 1) / 4 = 0.8; own agreement of 0 is 1, of 1 is 0.6
    assert same_meaning(view1_BD, view2_BD).tolist() == [[True, False], [True, True]]


def test_same_videos_ignores_length_and_gives_no_gradient_when_embeddings_are_scaled():
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(5, 4, generator=generator, requires_grad=True) for _ in range(2)]
    found = same_meaning(*views)
    assert torch.equal(found, same_meaning(7 * views[0], 0.1 * views[1]))
    assert not found.requires_grad


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31))
def test_same_videos_equals_loops_when_views_are_random(seed):
    assert_is_same_videos(same_meaning, seed)


# marginal sample enhancement

def test_margin_takes_the_hardest_negatives_when_worked_by_hand():
    sims_BB = torch.tensor([[0.5, 0.6, 0.0], [0.1, 0.9, 0.0], [0.2, 0.3, 0.8]])
    # texts: 0.6 - 0.5 + 0.2 = 0.3, then 0.1 - 0.9 and 0.3 - 0.8 + 0.2 < 0: 0.3
    # videos: column 0: 0.2 - 0.5 + 0.2 = -0.1: 0; column 1: 0.6 - 0.9 + 0.2 = -0.1: 0; column 2: 0
    assert float(margin(sims_BB, 0.2)) == pytest.approx(0.3 / 3 / 2)
    # with theta 0.4: texts 0.5, 0, 0; videos 0.1, 0.1, 0
    assert float(margin(sims_BB, 0.4)) == pytest.approx(0.7 / 3 / 2)


def test_margin_mines_no_positives_when_denoising_calls_them_so():
    sims_BB = torch.tensor([[0.5, 0.9], [0.9, 0.5]])
    assert float(margin(sims_BB, 0.2)) == pytest.approx(0.6)
    assert float(margin(sims_BB, 0.2, torch.ones(2, 2, dtype=torch.bool))) == 0


def test_margin_pushes_the_right_pairs_together_when_backpropagated():
    sims_BB = torch.tensor([[0.5, 0.6], [0.1, 0.9]], requires_grad=True)
    margin(sims_BB, 0.2).backward()
    assert sims_BB.grad[0, 0] < 0 < sims_BB.grad[0, 1]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.booleans(), st.integers(1, 3))
def test_margin_equals_loops_when_scores_are_random(seed, with_positives, captions):
    assert_is_margin(margin, seed, None, with_positives, captions)


# balance of videos

def test_balance_is_how_far_one_video_is_ahead_when_worked_by_hand():
    sims_BB = torch.tensor([[0.9, 0.5], [0.3, 0.4]])
    # video 0 is ahead by 0.4 for its own text, video 1 by 0.1
    assert float(balance(sims_BB, torch.tensor(1.0))) == pytest.approx(0.3**2)
    assert float(balance(sims_BB, torch.tensor(10.0))) == pytest.approx(3.0**2)


def test_balance_counts_videos_by_how_easily_they_are_confused_when_there_are_three():
    sims_BB = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.4]])
    # videos 0 and 1 are ahead of each other by 0.5, and of video 2 by 1, which is ahead of them by 0.4. With scale 2,
    # video 0 confuses 1 and 2 as exp(-1) to exp(-1.4)
    far = 1 / (1 + math.exp(0.4))
    assert float(balance(sims_BB, torch.tensor(2.0))) == pytest.approx((2 * far + 1) * 1.2**2 / 3)


def test_balance_is_zero_when_videos_differ_but_none_is_ahead():
    generator = torch.Generator().manual_seed(0)
    sims_BB = torch.rand(5, 5, generator=generator)
    sims_BB = (sims_BB + sims_BB.T) / 2
    sims_BB.fill_diagonal_(1)
    assert float(balance(sims_BB, torch.tensor(20.0))) == pytest.approx(0, abs=1e-9)


def test_balance_is_about_the_captions_that_tell_videos_apart_when_others_are_true_of_both():
    telling, parts = [[0.9, 0.5], [0.3, 0.6]], [[0.8, 0.6], [0.8, 0.8]]     # clip 0 shows all of clip 1
    sims_QB = torch.tensor(telling + parts, requires_grad=True)
    loss = balance(sims_QB, torch.tensor(10.0))
    loss.backward()
    assert loss.item() == pytest.approx(1.0)        # ahead by 0.4 and 0.3
    assert sims_QB.grad[:2].all()
    assert not sims_QB.grad[2:].any()


def test_balance_lowers_the_video_that_is_ahead_when_backpropagated():
    sims_BB, scale = torch.tensor([[0.9, 0.5], [0.3, 0.4]], requires_grad=True), torch.tensor(5.0, requires_grad=True)
    balance(sims_BB, scale).backward()
    assert sims_BB.grad.sign().tolist() == [[1, -1], [1, -1]]
    assert scale.grad is None


def test_balance_ignores_pairs_when_denoising_calls_them_the_same():
    sims_BB = torch.tensor([[0.9, 0.5], [0.3, 0.4]])
    for one_way in ([[True, True], [False, True]], [[True, False], [True, True]]):
        assert float(balance(sims_BB, torch.tensor(5.0), torch.tensor(one_way))) == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.booleans(), st.integers(1, 3))
def test_balance_equals_loops_when_scores_are_random(seed, with_positives, captions):
    assert_is_balance(balance, seed, None, with_positives, captions)


# the helpers fail on planted bugs

@pytest.mark.parametrize("mode", ["positive", "mask"])
def test_assert_is_contrastive_fails_when_the_similarity_is_transposed(mode):
    with pytest.raises(AssertionError):
        assert_is_contrastive(lambda sims, scale, same, how: contrastive(sims.T, scale, same, how), mode, 1, 5)


@pytest.mark.parametrize("mode", ["positive", "mask"])
def test_assert_is_contrastive_fails_when_positives_are_ignored(mode):
    with pytest.raises(AssertionError):
        assert_is_contrastive(lambda sims, scale, same, how: contrastive(sims, scale, same, "off"), mode, 1, 5)


def test_assert_is_contrastive_fails_when_one_direction_is_left_out():
    def text_to_video_only(sims_BB, scale, *_):
        return -(scale * sims_BB).log_softmax(1).diagonal().mean()

    with pytest.raises(AssertionError):
        assert_is_contrastive(text_to_video_only, "off", 1, 5)


def test_assert_is_same_videos_fails_when_the_condition_is_reversed():
    def reversed_condition(view1_BD, view2_BD):
        same_BB = same_meaning(view1_BD, view2_BD)
        return ~same_BB | torch.eye(len(same_BB), dtype=torch.bool)

    with pytest.raises(AssertionError, match="need"):
        assert_is_same_videos(reversed_condition)


def test_assert_is_same_videos_fails_when_the_threshold_is_the_others():
    with pytest.raises(AssertionError, match="need"):
        assert_is_same_videos(lambda *views: same_meaning(*views).T)


def test_assert_is_margin_fails_when_the_sign_is_flipped():
    with pytest.raises(AssertionError):
        assert_is_margin(lambda sims, theta, *same: margin(-sims, theta, *same), 1, 5)
    with pytest.raises(AssertionError):
        assert_is_margin(lambda sims, theta, *same: margin(sims, -theta, *same), 1, 5)


def test_assert_is_margin_fails_when_the_similarity_is_transposed():
    with pytest.raises(AssertionError):
        assert_is_margin(lambda sims, theta, *same: margin(sims.T, theta, *same), 1, 5)


def test_assert_is_balance_fails_when_the_similarity_is_transposed():
    """Then texts that score high everywhere would count, which a text's ranking of the videos does not see."""
    with pytest.raises(AssertionError):
        assert_is_balance(lambda sims, scale, *same: balance(sims.T, scale, *same), 1, 5)


def test_assert_is_balance_fails_when_positives_are_ignored():
    with pytest.raises(AssertionError):
        assert_is_balance(lambda sims, scale, *same: balance(sims, scale), 1, 5)
