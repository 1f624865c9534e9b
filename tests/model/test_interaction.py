"""Similarities against values worked out by hand, slow loops, and unchanged by padding and order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import mask_of
from torch import Tensor

from hcmi.model.interaction import cosine, token_interaction


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


def sides_by_loops(texts, text_weights, videos, video_weights) -> Tensor:
    """Both sides [2, Q, V] word by word and frame by frame; tokens of weight 0 are ignored."""
    scores = []
    for words, word_weights in zip(texts.tolist(), text_weights.tolist(), strict=True):
        row = []
        for frames, frame_weights in zip(videos.tolist(), video_weights.tolist(), strict=True):
            real_words = [(word, weight) for word, weight in zip(words, word_weights, strict=True) if weight > 0]
            real_frames = [(frame, weight) for frame, weight in zip(frames, frame_weights, strict=True) if weight > 0]
            shown = sum(weight * max(dot(word, frame) for frame, _ in real_frames) for word, weight in real_words)
            told = sum(weight * max(dot(word, frame) for word, _ in real_words) for frame, weight in real_frames)
            row.append((shown, told))
        scores.append(row)
    return torch.tensor(scores).permute(2, 0, 1)


def assert_is_interaction(score, seed: int = 0) -> None:
    """`score` gives both sides of the weighted token interaction, texts as rows, padding ignored."""
    generator = torch.Generator().manual_seed(seed)
    for num_texts in (4, 3):        # as many texts as videos too: then no shape distinguishes rows from columns
        texts, videos = made(generator, num_texts, 6), made(generator, 3, 5)
        oracle = sides_by_loops(*texts, *videos)
        found = torch.stack(score(*padded(*texts, videos[0][0]), *padded(*videos, texts[0][0])))
        assert found.shape == oracle.shape, f"need texts as rows {tuple(oracle.shape)}, got {tuple(found.shape)}"
        assert (found - oracle).abs().max() < 1e-5


def test_cosine_is_the_product_of_unit_vectors_when_worked_by_hand():
    texts_QD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    videos_VD = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
    expected = torch.tensor([[0.0, 0.8], [0.8, 0.96], [-1.0, -0.6]])
    torch.testing.assert_close(cosine(texts_QD, videos_VD), expected)
    torch.testing.assert_close(cosine(texts_QD[1:], videos_VD), expected[1:])       # square, and not symmetric


def test_interaction_takes_the_best_matches_when_worked_by_hand():
    words_QWD = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    frames_VTD = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]]])
    # cos: word 1: 0.6 1 -1 -> 1; word 2: 0.8 0 0 -> 0.8; frames: 0.8, 1, 0
    shown, told = token_interaction(words_QWD, torch.tensor([[0.25, 0.75]]), frames_VTD,
                                    torch.tensor([[0.5, 0.25, 0.25]]))
    assert shown.tolist() == [[pytest.approx(0.25 * 1 + 0.75 * 0.8, abs=1e-6)]]
    assert told.tolist() == [[pytest.approx(0.5 * 0.8 + 0.25 * 1 + 0.25 * 0, abs=1e-6)]]


def test_interaction_is_filip_when_weights_are_uniform():
    generator = torch.Generator().manual_seed(1)
    words_QWD, frames_VTD = made(generator, 3, 4)[0], made(generator, 2, 6)[0]
    sims_QWVT = torch.einsum("qwd,vtd->qwvt", words_QWD, frames_VTD)
    shown, told = token_interaction(words_QWD, torch.full((3, 4), 1 / 4), frames_VTD, torch.full((2, 6), 1 / 6))
    torch.testing.assert_close(shown, sims_QWVT.amax(3).mean(1))
    torch.testing.assert_close(told, sims_QWVT.amax(1).mean(2))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
def test_interaction_equals_loops_when_tokens_are_random(seed):
    assert_is_interaction(token_interaction, seed)


def test_sides_change_places_when_texts_and_videos_do():
    generator = torch.Generator().manual_seed(8)
    texts, videos = padded(*made(generator, 3, 4), torch.ones(2, 5)), padded(*made(generator, 2, 6), torch.ones(1, 5))
    shown, told = token_interaction(*texts, *videos)
    shown_of_videos, told_of_videos = token_interaction(*videos, *texts)
    torch.testing.assert_close(shown_of_videos.T, told)
    torch.testing.assert_close(told_of_videos.T, shown)


def test_interaction_is_permuted_alike_when_rows_and_tokens_are_permuted():
    generator = torch.Generator().manual_seed(2)
    (words, word_weights), frames = made(generator, 4, 6), made(generator, 3, 5)[0]
    frame_weights = mask_of([5, 2, 4], 5) / torch.tensor([[5.0], [2.0], [4.0]])
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    inner_words, inner_frames = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    before = torch.stack(token_interaction(words, word_weights, frames, frame_weights))
    after = token_interaction(words[rows][:, inner_words], word_weights[rows][:, inner_words],
                              frames[columns][:, inner_frames], frame_weights[columns][:, inner_frames])
    torch.testing.assert_close(torch.stack(after), before[:, rows][:, :, columns])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_shown_is_never_lower_when_a_video_shows_more(seed, more):
    generator = torch.Generator().manual_seed(seed)
    (words, word_weights), frames = made(generator, 4, 6), made(generator, 3, 5)[0]
    longer = torch.cat([frames, made(generator, 3, more)[0]], 1)
    before, after = (token_interaction(words, word_weights, tokens, torch.ones(tokens.shape[:2]))[0]
                     for tokens in (frames, longer))
    assert (after >= before - 1e-6).all()


def test_tokens_score_minus_1_when_the_other_side_is_nothing_but_padding():
    generator = torch.Generator().manual_seed(3)
    (words, word_weights), (frames, frame_weights) = made(generator, 2, 3), made(generator, 2, 4)
    needed = torch.stack(token_interaction(words, word_weights, frames, frame_weights))
    word_weights[1], frame_weights[1] = 0, 0
    shown, told = token_interaction(words, word_weights, frames, frame_weights)
    torch.testing.assert_close(shown, torch.tensor([[needed[0, 0, 0], -1.0], [0.0, 0.0]]))
    torch.testing.assert_close(told, torch.tensor([[needed[1, 0, 0], 0.0], [-1.0, 0.0]]))


def test_interaction_gives_padding_no_gradient_when_backpropagated():
    generator = torch.Generator().manual_seed(4)
    frames, mask_VT = made(generator, 3, 4)[0].requires_grad_(), mask_of([4, 2, 0], 4)
    words, weights = padded(*made(generator, 2, 3), frames[0].detach())
    words.requires_grad_()
    torch.stack(token_interaction(words, weights, frames, mask_VT / 4)).sum().backward()
    assert (words.grad[:, :3] != 0).any()
    assert (words.grad[:, 3:] == 0).all()
    assert (frames.grad[mask_VT] != 0).any()
    assert (frames.grad[~mask_VT] == 0).all()


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 2, 1]])
def test_interaction_has_the_gradient_of_the_plain_formula(lengths):
    generator = torch.Generator().manual_seed(5)
    words, weights, frames = *made(generator, 4, 6), made(generator, 3, 5)[0]
    mask_VT = mask_of(lengths, 5)
    frame_weights = torch.full((3, 5), 0.3)
    leaves = [tensor.double().requires_grad_() for tensor in (words, weights, frames, frame_weights)]
    sims_QWVT = torch.einsum("qwd,vtd->qwvt", leaves[0], leaves[2])
    shown = (sims_QWVT.masked_fill(~mask_VT, -torch.inf).amax(3) * leaves[1][..., None]).sum(1)
    told = (sims_QWVT.amax(1) * leaves[3] * mask_VT).sum(2)
    plain = torch.autograd.grad((shown.square() + told.sin()).sum(), leaves)
    shown, told = token_interaction(*leaves[:3], leaves[3] * mask_VT)
    torch.testing.assert_close(torch.autograd.grad((shown.square() + told.sin()).sum(), leaves), plain)


def test_interaction_stays_near_when_it_runs_under_autocast_in_bfloat16():
    generator = torch.Generator().manual_seed(7)
    (words, weights), frames = made(generator, 6, 9, 64), made(generator, 5, 12, 64)[0]
    sides = words, weights, frames, mask_of([12, 3, 0, 7, 12], 12) / 12
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.stack(token_interaction(*sides))
    assert (found.float() - torch.stack(token_interaction(*sides))).abs().max() < 1e-2


# the helper fails on a planted bug

def test_assert_is_interaction_fails_when_the_similarity_is_transposed():
    with pytest.raises(AssertionError, match="texts as rows"):
        assert_is_interaction(lambda *sides: [side.T for side in token_interaction(*sides)])


def test_assert_is_interaction_fails_when_texts_and_videos_change_places():
    with pytest.raises(AssertionError, match="texts as rows"):
        assert_is_interaction(lambda texts, text_weights, *video: token_interaction(*video, texts, text_weights))


def test_assert_is_interaction_fails_when_the_sides_change_places():
    with pytest.raises(AssertionError):
        assert_is_interaction(lambda *sides: token_interaction(*sides)[::-1])


@pytest.mark.parametrize("side", [1, 3])
def test_assert_is_interaction_fails_when_a_pad_token_is_not_masked(side):
    def unmasked(*sides):
        changed = list(sides)
        changed[side] = sides[side].clamp(min=1e-9)      # as if padding were a token
        return token_interaction(*changed)

    with pytest.raises(AssertionError):
        assert_is_interaction(unmasked)
