"""Similarities against values worked out by hand, slow loops, and unchanged by padding and order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import mask_of
from torch import Tensor

from hcmi.model.interaction import cosine, weighted_max_sim


def made(generator: torch.Generator, rows: int, tokens: int, dim: int = 5) -> tuple[Tensor, Tensor]:
    """Unit tokens [rows, tokens, dim] and weights that sum to 1."""
    vectors = torch.randn(rows, tokens, dim, generator=generator)
    return torch.nn.functional.normalize(vectors, dim=-1), torch.rand(rows, tokens, generator=generator).softmax(1)


def padded(tokens_BND: Tensor, weights_BN: Tensor, bait_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with more tokens after them, of weight 0, which match the other side perfectly."""
    rows = len(tokens_BND)
    return (torch.cat([tokens_BND, bait_ND.expand(rows, -1, -1)], 1),
            torch.cat([weights_BN, torch.zeros(rows, len(bait_ND))], 1))


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def max_sim_by_loops(texts, text_weights, videos, video_mask) -> list[list[float]]:
    """S(q, v) word by word and frame by frame, in double precision; words of weight 0 and masked frames are ignored."""
    scores = []
    for words, word_weights in zip(texts.tolist(), text_weights.tolist(), strict=True):
        row = []
        for frames, valid in zip(videos.tolist(), video_mask.tolist(), strict=True):
            total = 0.0
            for word, weight in zip(words, word_weights, strict=True):
                if weight > 0:
                    total += weight * max(dot(word, frame) for frame, is_frame in zip(frames, valid, strict=True)
                                          if is_frame)
            row.append(total)
        scores.append(row)
    return scores


def assert_is_max_sim(score, seed: int = 0) -> None:
    """`score` is the weighted MaxSim, texts as rows, padding ignored."""
    generator = torch.Generator().manual_seed(seed)
    for num_texts in (4, 3):        # as many texts as videos too: then no shape distinguishes rows from columns
        texts, videos = made(generator, num_texts, 6), made(generator, 3, 5)
        oracle = torch.tensor(max_sim_by_loops(*texts, videos[0], videos[1] > 0))
        frames_VTD, frame_weights_VT = padded(*videos, texts[0][0])
        found = score(*padded(*texts, videos[0][0]), frames_VTD, frame_weights_VT > 0)
        assert found.shape == oracle.shape, f"need texts as rows {tuple(oracle.shape)}, got {tuple(found.shape)}"
        assert (found - oracle).abs().max() < 1e-5


def all_valid(frames_VTD: Tensor) -> Tensor:
    return torch.ones(frames_VTD.shape[:2], dtype=torch.bool)


def test_cosine_is_the_product_of_unit_vectors_when_worked_by_hand():
    texts_QD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    videos_VD = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
    expected = torch.tensor([[0.0, 0.8], [0.8, 0.96], [-1.0, -0.6]])
    torch.testing.assert_close(cosine(texts_QD, videos_VD), expected)
    torch.testing.assert_close(cosine(texts_QD[1:], videos_VD), expected[1:])       # square, and not symmetric


def test_max_sim_takes_the_best_frame_of_each_word_when_worked_by_hand():
    words_QWD = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    frames_VTD = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]]]).expand(2, -1, -1)
    mask_VT = torch.tensor([[True, True, True], [True, False, True]])
    # cos: word 1: 0.6 1 -1 -> 1, without the second frame 0.6; word 2: 0.8 0 0 -> 0.8
    found = weighted_max_sim(words_QWD, torch.tensor([[0.25, 0.75]]), frames_VTD, mask_VT)
    assert found.tolist() == [pytest.approx([0.25 * 1 + 0.75 * 0.8, 0.25 * 0.6 + 0.75 * 0.8], abs=1e-6)]


def test_max_sim_is_that_of_colbert_over_the_number_of_words_when_weights_are_uniform():
    generator = torch.Generator().manual_seed(1)
    words_QWD, frames_VTD = made(generator, 3, 4)[0], made(generator, 2, 6)[0]
    colbert_QV = torch.einsum("qwd,vtd->qwvt", words_QWD, frames_VTD).amax(3).sum(1)
    found = weighted_max_sim(words_QWD, torch.full((3, 4), 1 / 4), frames_VTD, all_valid(frames_VTD))
    torch.testing.assert_close(found, colbert_QV / 4)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
def test_max_sim_equals_loops_when_tokens_are_random(seed):
    assert_is_max_sim(weighted_max_sim, seed)


def test_max_sim_is_permuted_alike_when_rows_and_tokens_are_permuted():
    generator = torch.Generator().manual_seed(2)
    (words, word_weights), frames = made(generator, 4, 6), made(generator, 3, 5)[0]
    mask_VT = mask_of([5, 2, 4], 5)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    inner_words, inner_frames = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    before = weighted_max_sim(words, word_weights, frames, mask_VT)
    after = weighted_max_sim(words[rows][:, inner_words], word_weights[rows][:, inner_words],
                             frames[columns][:, inner_frames], mask_VT[columns][:, inner_frames])
    torch.testing.assert_close(after, before[rows][:, columns])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_max_sim_is_never_lower_when_a_video_shows_more(seed, more):
    generator = torch.Generator().manual_seed(seed)
    (words, word_weights), frames = made(generator, 4, 6), made(generator, 3, 5)[0]
    others = made(generator, 3, more)[0]
    longer = torch.cat([frames, others], 1)
    before, after = (weighted_max_sim(words, word_weights, tokens, all_valid(tokens)) for tokens in (frames, longer))
    assert (after >= before - 1e-6).all()
    opposite = torch.cat([frames, -words[:1, :more].expand(3, -1, -1)], 1)       # match no word of the first text ...
    opposite[:, 5:] = torch.nn.functional.normalize(-(words[0] * word_weights[0][:, None]).sum(0), dim=0)
    scores = weighted_max_sim(words[:1], word_weights[:1], opposite, all_valid(opposite))
    assert (scores >= before[:1] - 1e-6).all()


def test_max_sim_of_a_text_is_unchanged_when_a_word_of_weight_0_is_added():
    generator = torch.Generator().manual_seed(6)
    texts, frames = made(generator, 4, 6), made(generator, 3, 5)[0]
    torch.testing.assert_close(weighted_max_sim(*padded(*texts, frames[0]), frames, all_valid(frames)),
                               weighted_max_sim(*texts, frames, all_valid(frames)))


def test_max_sim_is_minus_1_for_a_video_and_0_for_a_text_of_nothing_but_padding():
    generator = torch.Generator().manual_seed(3)
    (words, word_weights), frames = made(generator, 2, 3), made(generator, 2, 4)[0]
    word_weights[1] = 0
    found = weighted_max_sim(words, word_weights, frames, mask_of([4, 0], 4))
    needed = weighted_max_sim(words, word_weights, frames, all_valid(frames))[0, 0]
    torch.testing.assert_close(found, torch.tensor([[needed, -1.0], [0.0, 0.0]]))
    nothing = weighted_max_sim(words, word_weights, frames, mask_of([0, 0], 4))
    torch.testing.assert_close(nothing, torch.tensor([[-1.0, -1.0], [0.0, 0.0]]))


def test_max_sim_gives_padding_no_gradient_when_backpropagated():
    generator = torch.Generator().manual_seed(4)
    frames, mask_VT = made(generator, 3, 4)[0].requires_grad_(), mask_of([4, 2, 0], 4)
    words, weights = padded(*made(generator, 2, 3), frames[0].detach())
    words.requires_grad_()
    weighted_max_sim(words, weights, frames, mask_VT).sum().backward()
    assert (words.grad[:, :3] != 0).any()
    assert (words.grad[:, 3:] == 0).all()
    assert (frames.grad[mask_VT] != 0).any()
    assert (frames.grad[~mask_VT] == 0).all()


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 2, 1]])
def test_max_sim_has_the_gradient_of_the_plain_formula(lengths):
    generator = torch.Generator().manual_seed(5)
    words, weights, frames = *made(generator, 4, 6), made(generator, 3, 5)[0]
    leaves, mask_VT = [tensor.double().requires_grad_() for tensor in (words, weights, frames)], mask_of(lengths, 5)
    sims_QWVT = torch.einsum("qwd,vtd->qwvt", leaves[0], leaves[2]).masked_fill(~mask_VT, -torch.inf)
    plain = torch.autograd.grad((sims_QWVT.amax(3) * leaves[1][..., None]).sum(1).square().sum(), leaves)
    found = torch.autograd.grad(weighted_max_sim(*leaves, mask_VT).square().sum(), leaves)
    torch.testing.assert_close(found, plain)


def test_max_sim_stays_near_when_it_runs_under_autocast_in_bfloat16():
    generator = torch.Generator().manual_seed(7)
    (words, weights), frames = made(generator, 6, 9, 64), made(generator, 5, 12, 64)[0]
    mask_VT = mask_of([12, 3, 0, 7, 12], 12)
    with torch.autocast("cpu", torch.bfloat16):
        found = weighted_max_sim(words, weights, frames, mask_VT)
    assert (found.float() - weighted_max_sim(words, weights, frames, mask_VT)).abs().max() < 1e-2


# the helper fails on a planted bug

def test_assert_is_max_sim_fails_when_the_similarity_is_transposed():
    with pytest.raises(AssertionError, match="texts as rows"):
        assert_is_max_sim(lambda *sides: weighted_max_sim(*sides).T)


def test_assert_is_max_sim_fails_when_texts_and_videos_change_places():
    with pytest.raises(AssertionError, match="texts as rows"):
        assert_is_max_sim(lambda texts, text_weights, videos, video_mask: weighted_max_sim(
            videos, video_mask / video_mask.sum(1, keepdim=True), texts, text_weights > 0))


def test_assert_is_max_sim_fails_when_a_padding_frame_is_not_masked():
    with pytest.raises(AssertionError):
        assert_is_max_sim(lambda texts, text_weights, videos, video_mask: weighted_max_sim(
            texts, text_weights, videos, torch.ones_like(video_mask)))


def test_assert_is_max_sim_fails_when_a_padding_word_counts():
    with pytest.raises(AssertionError):
        assert_is_max_sim(lambda texts, text_weights, *video: weighted_max_sim(texts, text_weights + 0.01, *video))


def test_assert_is_max_sim_fails_when_frames_must_be_found_too():
    """The interaction in both directions, which HCMI had before: a video is worse for what the text does not say."""
    def both(texts, text_weights, videos, video_mask):
        sims_QWVT = torch.einsum("qwd,vtd->qwvt", texts, videos).masked_fill((text_weights <= 0)[..., None, None], -1)
        frames_QV = (sims_QWVT.amax(1) * video_mask).sum(2) / video_mask.sum(1)
        return (weighted_max_sim(texts, text_weights, videos, video_mask) + frames_QV) / 2

    with pytest.raises(AssertionError):
        assert_is_max_sim(both)
