"""Tiled similarities against the training version and a slow oracle; padding, types and memory."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmi.model import similarity_blocks, tiled_similarities
from hcmi.model.heads import build_head
from hcmi.types import LEVELS, TextTokens, VideoTokens


def unit(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def weights(rows: int, count: int, generator: torch.Generator, pad: bool) -> torch.Tensor:
    logits = torch.randn(rows, count, generator=generator)
    if pad:
        lengths = torch.randint(1, count + 1, (rows, 1), generator=generator)
        logits = logits.masked_fill(torch.arange(count) >= lengths, -torch.inf)
    return logits.softmax(1)


def made(num_texts=70, num_videos=150, frames=5, words=7, dim=16, pad=True, seed=0) -> tuple[TextTokens, VideoTokens]:
    g = torch.Generator().manual_seed(seed)
    coverage_Q1 = 2 * torch.rand(num_texts, 1, generator=g)
    texts = TextTokens(coverage_Q1 * unit(num_texts, dim, generator=g), unit(num_texts, words, dim, generator=g),
                       unit(num_texts, 3, dim, generator=g), weights(num_texts, words, g, pad),
                       weights(num_texts, 3, g, False))
    videos = VideoTokens(unit(num_videos, dim, generator=g), unit(num_videos, frames, dim, generator=g),
                         unit(num_videos, 2, dim, generator=g), weights(num_videos, frames, g, pad),
                         weights(num_videos, 2, g, False))
    return texts, videos


def in_full(texts: TextTokens, videos: VideoTokens) -> dict[str, torch.Tensor]:
    """As the head computes it, all pairs at once."""
    return build_head("hcmi", dim=4, heads=1, temporal_layers=0, num_frames=1, num_clips=1,
                      num_phrases=1).similarities(texts, videos)


def slow_interaction(words_WD, word_weights_W, frames_TD, frame_weights_T, told_share: float) -> float:
    words = [(word, float(weight)) for word, weight in zip(words_WD, word_weights_W, strict=True) if weight > 0]
    frames = [(frame, float(weight)) for frame, weight in zip(frames_TD, frame_weights_T, strict=True) if weight > 0]
    shown = sum(weight * max(float(word @ frame) for frame, _ in frames) for word, weight in words)
    told = sum(weight * max(float(word @ frame) for word, _ in words) for frame, weight in frames)
    return (1 - told_share) * shown + told_share * told


def assert_close(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for level in found:
        assert (found[level] - expected[level]).abs().max() < tolerance, level


def test_tiled_similarities_match_the_oracle_when_sets_are_padded():
    texts, videos = made(4, 5)
    found = tiled_similarities(texts, videos)["frame_word"]
    for q in range(4):
        for v in range(5):
            expected = slow_interaction(texts.words_BWD[q], texts.word_weights_BW[q], videos.frames_BTD[v],
                                        videos.frame_weights_BT[v], float(texts.sentence_BD[q].norm()) / 4)
            assert float(found[q, v]) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 200), st.tuples(st.integers(1, 6), st.integers(1, 9)), st.booleans())
def test_tiled_similarities_match_training_when_sizes_do_not_fill_tiles(num_texts, num_videos, lengths, pad):
    texts, videos = made(num_texts, num_videos, *lengths, pad=pad, seed=num_texts)
    assert_close(tiled_similarities(texts, videos), in_full(texts, videos))


def test_tiled_similarities_match_training_when_a_caption_or_a_clip_is_padding_alone():
    texts, videos = made()
    texts.word_weights_BW[3] = 0
    videos.frame_weights_BT[5] = 0
    assert_close(tiled_similarities(texts, videos), in_full(texts, videos))


def test_tiled_similarities_do_not_see_what_stands_in_padding():
    texts, videos = made()
    before = tiled_similarities(texts, videos)
    texts.words_BWD[texts.word_weights_BW == 0] = 100.0
    videos.frames_BTD[videos.frame_weights_BT == 0] = torch.nan
    for level, sims_QV in tiled_similarities(texts, videos).items():
        assert torch.equal(sims_QV, before[level])


def test_assert_close_fails_when_padding_enters_the_maximum():
    texts, videos = made()
    planted = replace(videos, frame_weights_BT=videos.frame_weights_BT + 1e-12)
    with pytest.raises(AssertionError, match="frame_word"):
        assert_close(tiled_similarities(texts, planted), in_full(texts, videos))


def test_similarity_blocks_cover_every_pair_once_when_blocks_are_small():
    texts, videos = made()
    expected, seen = in_full(texts, videos), torch.zeros(len(texts), len(videos))
    for queries, chosen, scores in similarity_blocks(texts, videos, block=32):
        seen[queries, chosen] += 1
        assert_close(scores, {level: sims_QV[queries, chosen] for level, sims_QV in expected.items()})
    assert (seen == 1).all()


@pytest.mark.parametrize("tokens_type", [torch.float16, torch.bfloat16])
def test_tiled_similarities_stay_near_when_products_run_in_bfloat16(tokens_type):
    texts, videos = made(dim=64)
    found = tiled_similarities(texts.to(tokens_type), videos.to(tokens_type), dtype=torch.bfloat16)
    assert_close(found, in_full(texts, videos), 1e-2)
    assert all(sims_QV.dtype == torch.float32 for sims_QV in found.values())


def test_tiled_similarities_give_only_the_levels_asked_for():
    texts, videos = made()
    assert list(tiled_similarities(texts, videos, ("frame_word",))) == ["frame_word"]
    assert tuple(tiled_similarities(texts, videos)) == LEVELS


@pytest.mark.gpu
def test_tiled_similarities_match_training_when_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    texts, videos = made(dim=64)
    assert_close(tiled_similarities(texts.to("cuda"), videos.to("cuda")), in_full(texts, videos), 1e-4)


def test_tiled_similarities_give_the_same_bits_and_leave_torch_alone_when_threads_share_the_work():
    texts, videos = made()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.inference_mode():
            tiled_similarities(texts, videos)
        torch.set_num_threads(1)
        alone = tiled_similarities(texts, videos)
        torch.set_num_threads(3)
        shared = tiled_similarities(texts, videos)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(alone[level], shared[level]) for level in ("frame_word", "clip_phrase"))
