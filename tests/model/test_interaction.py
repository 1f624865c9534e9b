"""Similarities against values worked out by hand, slow loops, and unchanged by padding and order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hcmi.model.interaction import cosine, weighted_token_interaction


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


def interaction_by_loops(texts, text_weights, videos, video_weights) -> list[list[float]]:
    """S(q, v) word by word and frame by frame, in double precision; tokens of weight 0 are ignored."""
    scores = []
    for words, word_weights in zip(texts.tolist(), text_weights.tolist(), strict=True):
        row = []
        for frames, frame_weights in zip(videos.tolist(), video_weights.tolist(), strict=True):
            real_words = [(word, weight) for word, weight in zip(words, word_weights, strict=True) if weight > 0]
            real_frames = [(frame, weight) for frame, weight in zip(frames, frame_weights, strict=True) if weight > 0]
            total = 0.0
            for word, weight in real_words:
                total += weight * max(dot(word, frame) for frame, _ in real_frames)
            for frame, weight in real_frames:
                total += weight * max(dot(word, frame) for word, _ in real_words)
            row.append(total / 2)
        scores.append(row)
    return scores


def assert_is_interaction(score, seed: int = 0) -> None:
    """`score` is the weighted token interaction, texts as rows, padding ignored."""
    generator = torch.Generator().manual_seed(seed)
    for num_texts in (4, 3):        # as many texts as videos too: then no shape distinguishes rows from columns
        texts, videos = made(generator, num_texts, 6), made(generator, 3, 5)
        oracle = torch.tensor(interaction_by_loops(*texts, *videos))
        found = score(*padded(*texts, videos[0][0]), *padded(*videos, texts[0][0]))
        assert found.shape == oracle.shape, f"need texts as rows {tuple(oracle.shape)}, got {tuple(found.shape)}"
        assert (found - oracle).abs().max() < 1e-5


def test_cosine_is_the_product_of_unit_vectors_when_worked_by_hand():
    texts_QD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    videos_VD = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
    expected = torch.tensor([[0.0, 0.8], [0.8, 0.96], [-1.0, -0.6]])
    torch.testing.assert_close(cosine(texts_QD, videos_VD), expected)
    torch.testing.assert_close(cosine(texts_QD[1:], videos_VD), expected[1:])       # square, and not symmetric


def test_interaction_takes_best_matches_when_worked_by_hand():
    words_QWD = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    frames_VTD = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]]])
    # cos: word 1: 0.6 1 -1 -> 1; word 2: 0.8 0 0 -> 0.8; frames: 0.8, 1, 0
    found = weighted_token_interaction(words_QWD, torch.tensor([[0.25, 0.75]]), frames_VTD,
                                       torch.tensor([[0.5, 0.25, 0.25]]))
    expected = ((0.25 * 1 + 0.75 * 0.8) + (0.5 * 0.8 + 0.25 * 1 + 0.25 * 0)) / 2
    assert found.tolist() == [[pytest.approx(expected, abs=1e-6)]]


def test_interaction_is_filip_when_weights_are_uniform():
    generator = torch.Generator().manual_seed(1)
    words_QWD, frames_VTD = made(generator, 3, 4)[0], made(generator, 2, 6)[0]
    sims_QWVT = torch.einsum("qwd,vtd->qwvt", words_QWD, frames_VTD)
    filip_QV = (sims_QWVT.amax(3).mean(1) + sims_QWVT.amax(1).mean(2)) / 2
    found = weighted_token_interaction(words_QWD, torch.full((3, 4), 1 / 4), frames_VTD, torch.full((2, 6), 1 / 6))
    torch.testing.assert_close(found, filip_QV)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
def test_interaction_equals_loops_when_tokens_are_random(seed):
    assert_is_interaction(weighted_token_interaction, seed)


def test_interaction_is_permuted_alike_when_rows_and_tokens_are_permuted():
    generator = torch.Generator().manual_seed(2)
    (words, word_weights), (frames, frame_weights) = made(generator, 4, 6), made(generator, 3, 5)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    inner_words, inner_frames = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    before = weighted_token_interaction(words, word_weights, frames, frame_weights)
    after = weighted_token_interaction(words[rows][:, inner_words], word_weights[rows][:, inner_words],
                                       frames[columns][:, inner_frames], frame_weights[columns][:, inner_frames])
    torch.testing.assert_close(after, before[rows][:, columns])


def test_interaction_stays_between_bounds_when_a_side_is_padding_alone():
    generator = torch.Generator().manual_seed(3)
    words, frames, frame_weights = made(generator, 1, 3)[0], *made(generator, 2, 4)
    found = weighted_token_interaction(words, torch.zeros(1, 3), frames, frame_weights)
    torch.testing.assert_close(found, torch.tensor([[-0.5, -0.5]]))     # words (weight 0) and frames (-1 each), halved


def test_interaction_gives_padding_no_gradient_when_backpropagated():
    generator = torch.Generator().manual_seed(4)
    frames, frame_weights = made(generator, 2, 4)
    words, weights = padded(*made(generator, 2, 3), frames[0])
    words.requires_grad_()
    weighted_token_interaction(words, weights, frames, frame_weights).sum().backward()
    assert (words.grad[:, :3] != 0).any()
    assert (words.grad[:, 3:] == 0).all()


# the helper fails on a planted bug

def test_assert_is_interaction_fails_when_the_similarity_is_transposed():
    with pytest.raises(AssertionError, match="texts as rows"):
        assert_is_interaction(lambda *sides: weighted_token_interaction(*sides).T)


def test_assert_is_interaction_fails_when_texts_and_videos_change_places():
    with pytest.raises(AssertionError, match="texts as rows"):
        assert_is_interaction(lambda texts, text_weights, videos, video_weights: weighted_token_interaction(
            videos, video_weights, texts, text_weights))


@pytest.mark.parametrize("side", [1, 3])
def test_assert_is_interaction_fails_when_a_pad_token_is_not_masked(side):
    def unmasked(*sides):
        changed = list(sides)
        changed[side] = sides[side].clamp(min=1e-9)      # as if padding were a token
        return weighted_token_interaction(*changed)

    with pytest.raises(AssertionError):
        assert_is_interaction(unmasked)


def test_assert_is_interaction_fails_when_one_direction_is_left_out():
    def one_way(texts, text_weights, videos, video_weights):
        best_QWV = torch.einsum("qwd,vtd->qwvt", texts, videos).amax(3)
        return torch.einsum("qwv,qw->qv", best_QWV, text_weights)

    with pytest.raises(AssertionError):
        assert_is_interaction(one_way)
