"""The GPU's kernels against slow loops and the plain formula's gradients; padding, ties, sizes that fill no tile.

`test_fused` runs this file: compiled on a GPU, or in a process of its own in which Triton interprets the kernels.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hcmi.model import fused, kernels
from hcmi.model.interaction import token_interaction
from hcmi.model.tiles import tiled_similarities
from hcmi.types import TextTokens, VideoTokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}
DIMS = st.sampled_from((1, 7, 20)) if DEVICE == "cuda" else st.integers(1, 20)     # each is compiled
SIZES = [(1, 1, 1, 1, 1), (3, 5, 4, 3, 7), (2, 13, 3, 6, 33), (2, 4, 9, 9, 16)]      # Q, W, V, T, D


@pytest.fixture(autouse=True, scope="module")
def fast_interpreter():
    """Reductions by a function of ours are taken by numpy, not number by number: 20 times faster."""
    if DEVICE == "cuda":
        yield
        return
    import numpy as np
    from triton.runtime.interpreter import ReduceOps

    def apply(self, values, before=ReduceOps.apply_impl):
        if self.combine_fn is kernels._larger:
            return self.min_max(values[0], val_reduce_op=np.max)
        return before(self, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReduceOps, "apply_impl", apply)
        yield


def side(generator: torch.Generator, sets: int, tokens: int, dim: int, shortest: int = 0) -> tuple[Tensor, Tensor]:
    """Unit tokens and weights. Some weights at the end are 0, and in longer sets one in the middle."""
    vectors = torch.nn.functional.normalize(torch.randn(sets, tokens, dim, generator=generator), dim=-1)
    lengths = torch.randint(shortest, tokens + 1, (sets, 1), generator=generator)
    weights = (torch.rand(sets, tokens, generator=generator) + 0.1) * (torch.arange(tokens) < lengths)
    if tokens > 4:
        weights[:, 1] = 0
    return vectors.to(DEVICE), weights.to(DEVICE)


def sides(sizes: tuple[int, ...], seed: int = 0, shortest: int = 0, dtype=torch.float32) -> list[Tensor]:
    num_texts, words, num_videos, frames, dim = sizes
    generator = torch.Generator().manual_seed(seed)
    texts, videos = side(generator, num_texts, words, dim, shortest), side(generator, num_videos, frames, dim, shortest)
    return [texts[0].to(dtype), texts[1], videos[0].to(dtype), videos[1]]


def one_side_by_loops(tokens, weights, others, other_weights) -> list[list[float]]:
    """Sum over tokens of weight times the best cosine with the other side's tokens, -1 where it has none."""
    return [[sum(weight * max([sum(x * y for x, y in zip(token, other, strict=True))
                               for other, other_weight in zip(other_set, other_set_weights, strict=True)
                               if other_weight > 0], default=-1.0)
                 for token, weight in zip(token_set, set_weights, strict=True) if weight > 0)
             for other_set, other_set_weights in zip(others, other_weights, strict=True)]
            for token_set, set_weights in zip(tokens, weights, strict=True)]


def by_loops(*of_both: Tensor) -> tuple[Tensor, Tensor]:
    texts, text_weights, videos, video_weights = (tensor.double().tolist() for tensor in of_both)
    return (torch.tensor(one_side_by_loops(texts, text_weights, videos, video_weights), device=DEVICE),
            torch.tensor(one_side_by_loops(videos, video_weights, texts, text_weights), device=DEVICE).reshape(
                len(videos), len(texts)).T)


def plain(texts_QWD, text_weights_QW, videos_VTD, video_weights_VT) -> tuple[Tensor, Tensor]:
    """Both sides by the whole token tensor. The weight of padding gets no gradient."""
    word_QW, frame_VT = text_weights_QW > 0, video_weights_VT > 0
    sims_QWVT = torch.einsum("qwd,vtd->qwvt", texts_QWD, videos_VTD)
    best_QWV = sims_QWVT.masked_fill(~frame_VT, -torch.inf).max(3).values
    best_QVT = sims_QWVT.masked_fill(~word_QW[:, :, None, None], -torch.inf).max(1).values
    return tuple(torch.einsum(equation, best.masked_fill(best == -torch.inf, -1), torch.where(mask, weights, 0))
                 for equation, best, mask, weights in (("qwv,qw->qv", best_QWV, word_QW, text_weights_QW),
                                                       ("qvt,vt->qv", best_QVT, frame_VT, video_weights_VT)))


def assert_is_interaction(function, sizes=(3, 5, 4, 6, 7), seed=0, dtype=torch.float32) -> None:
    """`function` gives both sides as the loops do."""
    of_both = sides(sizes, seed, dtype=dtype)
    for found, oracle in zip(function(*of_both), by_loops(*of_both), strict=True):
        assert (found.dtype, found.shape) == (torch.float32, oracle.shape)
        assert (found - oracle).abs().max() < TOLERANCE[dtype]


def gradients(function, of_both: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in of_both]
    words_QV, frames_QV = function(*leaves)
    factors_2QV = torch.randn(2, *words_QV.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return torch.autograd.grad((words_QV * factors_2QV[0] + frames_QV * factors_2QV[1]).sum(), leaves)


def assert_has_the_plain_gradients(function, sizes=(3, 5, 4, 6, 7), seed=0) -> None:
    """In float32, against the plain formula in double precision."""
    of_both = sides(sizes, seed)
    for found, expected in zip(gradients(function, of_both, torch.float32), gradients(plain, of_both, torch.float64),
                               strict=True):
        assert (found - expected).abs().max() < 1e-5


def test_both_sides_are_right_when_worked_by_hand():
    words_QWD = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], device=DEVICE)
    frames_VTD = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]]], device=DEVICE).repeat(2, 1, 1)
    weights_VT = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.0, 0.5]], device=DEVICE)
    words_QV, frames_QV = fused.fused_token_interaction(words_QWD, torch.tensor([[0.25, 0.75]], device=DEVICE),
                                                        frames_VTD, weights_VT)
    assert words_QV.tolist()[0] == pytest.approx([0.25 * 1 + 0.75 * 0.8, 0.25 * 0.6 + 0.75 * 0.8])
    assert frames_QV.tolist()[0] == pytest.approx([0.5 * 0.8 + 0.3 * 1 + 0.2 * 0, 0.5 * 0.8 + 0.5 * 0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES)
def test_interaction_equals_loops_when_sizes_are_odd(sizes, dtype):
    assert_is_interaction(fused.fused_token_interaction, sizes, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES)
def test_words_side_alone_equals_loops_when_sizes_are_odd(sizes, dtype):
    of_both = sides(sizes, 1, dtype=dtype)
    found = fused.fused_max_sim(*of_both)
    assert found.dtype == torch.float32
    assert (found - by_loops(*of_both)[0]).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_plain_formula_when_sizes_fill_several_tiles(dtype):
    of_both = sides((9, 20, 18, 12, 40), 12, dtype=dtype)
    exact = [tensor.double() for tensor in of_both]
    for found, expected in zip(fused.fused_token_interaction(*of_both), plain(*exact), strict=True):
        assert (found - expected).abs().max() < 1e-5
    for found, expected in zip(gradients(fused.fused_token_interaction, of_both, dtype),
                               gradients(plain, exact, torch.float64), strict=True):
        assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 1e-2) * expected.abs().max()


@settings(deadline=None, max_examples=10)
@given(st.tuples(*[st.integers(1, 7)] * 4, DIMS), st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_the_plain_formula_when_sizes_are_random(sizes, seed):
    of_both = sides(sizes, seed)
    for found, expected in zip(fused.fused_token_interaction(*of_both), plain(*of_both), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_has_the_plain_gradients(fused.fused_token_interaction, sizes, seed)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**31))
def test_interaction_is_permuted_alike_when_sets_and_tokens_are_permuted(seed):
    texts, text_weights, videos, video_weights = sides((4, 5, 3, 6, 8), seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns, words, frames = (torch.randperm(count, generator=generator).to(DEVICE) for count in (4, 3, 5, 6))
    before = fused.fused_token_interaction(texts, text_weights, videos, video_weights)
    after = fused.fused_token_interaction(texts[rows][:, words], text_weights[rows][:, words],
                                          videos[columns][:, frames], video_weights[columns][:, frames])
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old[rows][:, columns], atol=1e-6, rtol=0)


def test_padding_changes_nothing_when_it_would_match_best_or_holds_nan():
    texts, text_weights, videos, video_weights = sides((3, 5, 4, 6, 8), 2, shortest=3)
    expected = fused.fused_token_interaction(texts, text_weights, videos, video_weights)
    for bait in (10.0, torch.nan):
        found = fused.fused_token_interaction(torch.where(text_weights[..., None] > 0, texts, bait), text_weights,
                                              torch.where(video_weights[..., None] > 0, videos, bait), video_weights)
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_a_set_of_nothing_but_padding_matches_nothing_and_scores_0_on_its_own_side():
    texts, text_weights, videos, video_weights = sides((2, 3, 2, 4, 5), 3, shortest=2)
    text_weights[1] = video_weights[1] = 0
    words_QV, frames_QV = fused.fused_token_interaction(texts, text_weights, videos, video_weights)
    assert words_QV[0, 1] == pytest.approx(-float(text_weights[0].sum()))
    assert frames_QV[1, 0] == pytest.approx(-float(video_weights[0].sum()))
    assert words_QV[1].tolist() == frames_QV[:, 1].tolist() == [0, 0]
    assert (fused.fused_max_sim(texts, text_weights, videos, video_weights) == words_QV).all()


def test_score_is_nan_when_a_token_is_nan():
    """A maximum of the hardware would pass over it, and a model that has diverged would seem well."""
    texts, text_weights, videos, video_weights = sides((2, 4, 2, 4, 5), 4, shortest=4)
    videos[1, 2, 0] = torch.nan
    for side_QV in fused.fused_token_interaction(texts, text_weights, videos, video_weights):
        assert side_QV.isnan().tolist() == [[False, True]] * 2


@pytest.mark.parametrize("sizes", [(2, 0, 3, 4, 5), (2, 3, 3, 0, 5), (0, 3, 2, 4, 5), (2, 3, 0, 4, 5)])
def test_interaction_has_its_shape_when_tokens_or_sets_are_missing(sizes):
    of_both = [tensor.requires_grad_() for tensor in sides(sizes)]
    found = fused.fused_token_interaction(*of_both)
    for side_QV, oracle in zip(found, by_loops(*of_both), strict=True):
        assert side_QV.shape == (sizes[0], sizes[2])
        torch.testing.assert_close(side_QV, oracle.reshape(side_QV.shape).float())
    sum(side_QV.sum() for side_QV in found).backward()
    assert all((tensor.grad == 0).all() for tensor in (of_both[0], of_both[2]))


@pytest.mark.parametrize("sizes", SIZES[1:])
def test_gradients_are_those_of_the_plain_formula(sizes):
    assert_has_the_plain_gradients(fused.fused_token_interaction, sizes)


def test_gradients_of_the_words_side_are_those_of_the_plain_formula_when_it_is_alone():
    of_both = sides((3, 5, 4, 6, 7), 5)
    results = []
    for function, dtype in ((fused.fused_max_sim, torch.float32), (lambda *x: plain(*x)[0], torch.float64)):
        leaves = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in of_both]
        results.append(torch.autograd.grad(function(*leaves).square().sum(), leaves[:3]))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() < 1e-5


def test_gradients_are_summed_over_parts_when_the_workspace_is_small(monkeypatch):
    monkeypatch.setattr(fused, "WORKSPACE", 2 * 5 * 4 * 6 * 4)      # two of three texts
    assert_has_the_plain_gradients(fused.fused_token_interaction)
    monkeypatch.setattr(fused, "WORKSPACE", 1)
    assert_has_the_plain_gradients(fused.fused_token_interaction)


def test_gradients_are_the_same_when_padding_holds_nan():
    of_both = sides((3, 5, 4, 6, 8), 2, shortest=3)
    bait = [torch.where(of_both[at + 1][..., None] > 0, of_both[at], torch.nan) for at in (0, 2)]
    expected = gradients(fused.fused_token_interaction, of_both, torch.float32)
    found = gradients(fused.fused_token_interaction, [bait[0], of_both[1], bait[1], of_both[3]], torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_near_when_tokens_are_half_and_the_loss_is_small(dtype):
    of_both = [tensor.to(dtype).float() for tensor in sides((3, 5, 4, 6, 16), 6)]
    results = []
    for function in (fused.fused_token_interaction, plain):
        types = [torch.float64] * 4 if function is plain else [dtype, torch.float32] * 2
        leaves = [tensor.to(of_tensor, copy=True).requires_grad_()
                  for tensor, of_tensor in zip(of_both, types, strict=True)]
        results.append(torch.autograd.grad(sum(side_QV.sum() for side_QV in function(*leaves)) * 1e-4, leaves))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() < 1e-2 * expected.abs().max()


def test_first_of_equal_tokens_gets_the_gradient():
    texts, text_weights, videos, video_weights = sides((2, 1, 2, 1, 5), 7, shortest=1)
    texts, videos = (tokens.repeat(1, 3, 1).requires_grad_() for tokens in (texts, videos))
    text_weights, video_weights = text_weights.repeat(1, 3), video_weights.repeat(1, 3)
    words_QV, frames_QV = fused.fused_token_interaction(texts, text_weights, videos, video_weights)
    (of_videos,) = torch.autograd.grad(words_QV.sum(), videos, retain_graph=True)
    (of_texts,) = torch.autograd.grad(frames_QV.sum(), texts)
    for found in (of_videos, of_texts):
        assert (found[:, 0] != 0).any()
        assert (found[:, 1:] == 0).all()
    text_weights[:, 0] = video_weights[:, 0] = 0        # then the first that is not padding
    words_QV, frames_QV = fused.fused_token_interaction(texts, text_weights, videos, video_weights)
    (of_videos,) = torch.autograd.grad(words_QV.sum(), videos)
    assert (of_videos[:, [0, 2]] == 0).all()
    assert (of_videos[:, 1] != 0).any()


def test_results_repeat_bit_by_bit_when_computed_again():
    of_both = sides((5, 6, 40, 5, 9), 8)
    for first, second in zip(gradients(fused.fused_token_interaction, of_both, torch.float32),
                             gradients(fused.fused_token_interaction, of_both, torch.float32), strict=True):
        assert torch.equal(first, second)


def test_interaction_is_the_same_when_no_tile_holds_a_set(monkeypatch):
    monkeypatch.setattr(fused, "MAX_WORDS", 3)
    assert_is_interaction(fused.fused_token_interaction)
    assert_has_the_plain_gradients(fused.fused_token_interaction)


def test_gradients_are_right_when_places_need_two_bytes():
    assert_has_the_plain_gradients(fused.fused_token_interaction, (1, 2, 2, 260, 3))


def test_interaction_is_the_same_when_tokens_lie_apart_in_memory():
    texts, text_weights, videos, video_weights = sides((3, 5, 4, 6, 8), 9)
    expected = fused.fused_token_interaction(texts, text_weights, videos, video_weights)
    found = fused.fused_token_interaction(texts.transpose(0, 1).contiguous().transpose(0, 1), text_weights.T.clone().T,
                                          videos.transpose(1, 2).contiguous().transpose(1, 2), video_weights)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_gradients_are_the_same_when_tokens_lie_apart_in_memory():
    of_both = sides((3, 5, 4, 6, 8), 9)
    apart = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in of_both]
    for found, expected in zip(*(gradients_of_leaves(leaves) for leaves in (apart, of_both)), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def gradients_of_leaves(leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Of tensors as they lie in memory."""
    leaves = [tensor.detach().requires_grad_() for tensor in leaves]
    return torch.autograd.grad(sum(side_QV.sum() for side_QV in fused.fused_token_interaction(*leaves)), leaves)


def test_interaction_multiplies_in_bfloat16_and_gives_float32_gradients_when_under_autocast():
    of_both = sides((3, 5, 4, 6, 8), 10)
    rounded = [tensor.bfloat16().float() if tensor.dim() == 3 else tensor for tensor in of_both]
    of_both[0].requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        found = fused.fused_token_interaction(*of_both)
    found[0].sum().backward()
    assert of_both[0].grad.dtype == torch.float32
    for side_QV, oracle in zip(found, by_loops(*rounded), strict=True):
        assert (side_QV - oracle).abs().max() < 1e-5


# who uses it

def test_training_and_evaluation_go_through_the_kernels_when_they_can(monkeypatch):
    words, word_weights, frames, frame_weights = (tensor.cpu() for tensor in sides((5, 6, 4, 3, 8), 11))
    texts = TextTokens(words[:, 0], words, words[:, :2], word_weights, word_weights[:, :2])
    videos = VideoTokens(frames[:, 0], frames, frames[:, :2], frame_weights, frame_weights[:, :2])
    given = words, word_weights, frames, frame_weights
    expected = token_interaction(*given), tiled_similarities(texts, videos)
    calls = []

    def counted(*args):
        calls.append(1)
        return fused.fused_token_interaction(*args)

    for module in ("interaction", "tiles"):
        monkeypatch.setattr(f"hcmi.model.{module}.has_kernels_for", lambda *_: True)
        monkeypatch.setattr(f"hcmi.model.{module}.fused_token_interaction", counted)
    there = [tensor.to(DEVICE) for tensor in given]
    both = tuple(side_QV.cpu() for side_QV in token_interaction(*there))
    found = (both, tiled_similarities(texts.to(DEVICE), videos.to(DEVICE)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(calls) == 3


# the helpers fail on planted bugs

def test_assert_is_interaction_fails_when_padding_takes_part():
    with pytest.raises(AssertionError):
        assert_is_interaction(lambda texts, text_weights, videos, video_weights: fused.fused_token_interaction(
            texts, text_weights, videos, video_weights + 1e-9))


def test_assert_is_interaction_fails_when_weights_are_swapped():
    def swapped(texts, text_weights, videos, video_weights):
        return fused.fused_token_interaction(texts, text_weights.flip(1), videos, video_weights)

    with pytest.raises(AssertionError):
        assert_is_interaction(swapped)


def test_assert_is_interaction_fails_when_the_sides_are_swapped():
    with pytest.raises(AssertionError):
        assert_is_interaction(lambda *of_both: fused.fused_token_interaction(*of_both)[::-1])


def test_assert_has_the_plain_gradients_fails_when_a_gradient_goes_to_the_wrong_token(monkeypatch):
    forward = fused._forward

    def next_token(*args):
        words_QV, frames_QV, kept = forward(*args)
        return words_QV, frames_QV, (kept[0] + 1, *kept[1:])

    monkeypatch.setattr(fused, "_forward", next_token)
    with pytest.raises(AssertionError):
        assert_has_the_plain_gradients(fused.fused_token_interaction)
