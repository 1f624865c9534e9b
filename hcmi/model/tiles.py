"""The three levels' similarities for inference, in bounded memory and at nearly the speed of the matrix product itself.

The results equal those of `interaction`. The full token tensor [Q, W, V, T] is never allocated. Blocks of queries and
videos are cut into tiles that stay in cache. Tokens are laid out token-major ([W, Q, D]), so that both maxima run over
outer dimensions of a tile, where they are plain vector maxima. Each CPU thread multiplies its own tiles: threads that
share every small product wait for each other at each of them, which made a busy machine three times slower.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hcmi.model.fused import fused_token_interaction, has_kernels_for
from hcmi.model.interaction import TOLD_SHARE
from hcmi.types import LEVELS, TextTokens, VideoTokens

BLOCK = 1024                                            # queries and videos laid out at a time
TILES = {"cpu": (32, 128), "cuda": (256, 256)}          # queries, videos multiplied at a time: 6 MB of scores on a CPU


@dataclass(frozen=True)
class _Tile:
    """Token sets of about equal length, token-major. Padding repeats a valid token, which changes no maximum."""

    tokens_NBD: Tensor
    weights_NB: Tensor      # float32
    rows_B: Tensor          # of the block
    empty_B: Tensor         # bool: token sets without a valid token
    told_B: Tensor          # of texts: the share of the frames' side in their scores, float32


def similarity_blocks(texts: TextTokens, videos: VideoTokens, levels: Sequence[str] = LEVELS,
                      dtype: torch.dtype = torch.float32, block: int = BLOCK,
                      ) -> Iterator[tuple[slice, slice, dict[str, Tensor]]]:
    """Yield (queries, videos, level -> float32 [q, v]) until all pairs are covered. The videos change fastest.

    Tokens may be memory-mapped and of any float type. Products are computed in `dtype` on the tokens' device, sums in
    float32. With float32 the results agree with `interaction` to 1e-5, with bfloat16 to about 2e-3, except for
    `video_sentence`, which is always float32. Working memory does not grow with the number of queries or videos.
    """
    with _workers(texts.sentence_BD.device) as pool:
        for query_start in range(0, len(texts), block):
            queries = slice(query_start, min(query_start + block, len(texts)))
            text_sides = _sides(texts[queries], levels, dtype)
            for video_start in range(0, len(videos), block):
                chosen = slice(video_start, min(video_start + block, len(videos)))
                video_sides = _sides(videos[chosen], levels, dtype)
                yield queries, chosen, {level: _score(text_sides[level], video_sides[level], pool) for level in levels}


def tiled_similarities(texts: TextTokens, videos: VideoTokens, levels: Sequence[str] = LEVELS,
                       dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Level -> float32 [Q, V] on the CPU, for galleries whose scores fit in memory."""
    found = {level: torch.empty(len(texts), len(videos)) for level in levels}
    for queries, chosen, scores in similarity_blocks(texts, videos, levels, dtype):
        for level, sims_QV in scores.items():
            found[level][queries, chosen] = sims_QV.cpu()
    return found


@contextmanager
def _workers(device: torch.device) -> Iterator[ThreadPoolExecutor | None]:
    """As many threads as torch may use, each of which computes on its own; None for a single thread or a GPU."""
    count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        yield None
        return
    with ThreadPoolExecutor(count, "tiles", torch.set_num_threads, (1,)) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(count)    # otherwise threads started after this inherit the workers' 1


@dataclass(frozen=True)
class _TokenSets:
    """Tokens and weights for `fused`, which needs no layout of its own; `told_B` as in `_Tile`."""

    tokens_BND: Tensor
    weights_BN: Tensor
    told_B: Tensor


_Side = list[_Tile] | _TokenSets | Tensor


def _sides(tokens: TextTokens | VideoTokens, levels: Sequence[str], dtype: torch.dtype) -> dict[str, _Side]:
    """The tokens that each level needs from texts or videos, laid out once per block."""
    if isinstance(tokens, TextTokens):
        fine, coarse = (tokens.words_BWD, tokens.word_weights_BW), (tokens.phrases_BPD, tokens.phrase_weights_BP)
        whole_BD, number, told_B = tokens.sentence_BD, 0, TOLD_SHARE * tokens.sentence_BD.float().norm(dim=1)
    else:
        fine, coarse = (tokens.frames_BTD, tokens.frame_weights_BT), (tokens.clips_BCD, tokens.clip_weights_BC)
        whole_BD, number, told_B = tokens.video_BD, 1, torch.zeros(len(tokens), device=tokens.video_BD.device)
    size = TILES.get(whole_BD.device.type, TILES["cpu"])[number]
    return {level: whole_BD.float() if level == "video_sentence"
            else _lay_out(*(fine if level == "frame_word" else coarse), told_B, size, dtype) for level in levels}


@torch.no_grad()
def _lay_out(tokens_BND: Tensor, weights_BN: Tensor, told_B: Tensor, size: int, dtype: torch.dtype,
             ) -> list[_Tile] | _TokenSets:
    """Tiles of `size` token sets, shortest first, each as long as its longest set: padding costs almost nothing."""
    if has_kernels_for(tokens_BND, tokens_BND):
        return _TokenSets(tokens_BND.to(dtype), weights_BN, told_B)
    valid_BN = weights_BN > 0
    places_N = torch.arange(1, valid_BN.shape[1] + 1, device=valid_BN.device)
    lengths_B = (valid_BN * places_N).amax(1)
    tiles = []
    for rows_B in lengths_B.argsort(stable=True).split(size):
        longest = max(int(lengths_B[rows_B].max()), 1)
        tile_BND, mask_BN = tokens_BND[rows_B, :longest].to(dtype), valid_BN[rows_B, :longest]
        if not bool(mask_BN.all()):
            first_BD = tile_BND[torch.arange(len(rows_B), device=rows_B.device), mask_BN.int().argmax(1)]
            tile_BND = torch.where(mask_BN[..., None], tile_BND, first_BD[:, None])
        tiles.append(_Tile(tile_BND.transpose(0, 1).contiguous(), weights_BN[rows_B, :longest].float().T.contiguous(),
                           rows_B, ~mask_BN.any(1), told_B[rows_B]))
    return tiles


@torch.no_grad()
def _score(texts: _Side, videos: _Side, pool: ThreadPoolExecutor | None) -> Tensor:
    """One block of one level, [q, v]."""
    if isinstance(texts, Tensor):
        assert isinstance(videos, Tensor), "both sides of a level have the same form"
        return texts @ videos.T
    if isinstance(texts, _TokenSets):
        assert isinstance(videos, _TokenSets), "both sides of a level have the same form"
        shown_QV, told_QV = fused_token_interaction(texts.tokens_BND, texts.weights_BN, videos.tokens_BND,
                                                    videos.weights_BN)
        return shown_QV.lerp(told_QV, texts.told_B[:, None])
    assert isinstance(videos, list), "both sides of a level have the same form"
    sims_QV = torch.empty(sum(len(t.rows_B) for t in texts), sum(len(v.rows_B) for v in videos),
                          device=texts[0].tokens_NBD.device)
    list((pool.map if pool else map)(lambda text: _fill(sims_QV, text, videos), texts))
    return sims_QV


@torch.inference_mode()     # a thread does not inherit its caller's mode; in this mode it may write to any tensor
def _fill(sims_QV: Tensor, text: _Tile, videos: list[_Tile]) -> None:
    """Write the scores of one tile of texts against all tiles of videos into `sims_QV`."""
    buffer = text.tokens_NBD.new_empty(text.weights_NB.numel() * max(video.weights_NB.numel() for video in videos))
    for video in videos:
        sims_QV[text.rows_B[:, None], video.rows_B] = _interact(text, video, buffer)


def _interact(text: _Tile, video: _Tile, buffer: Tensor) -> Tensor:
    """Both sides of the interaction of one tile, mixed, float32 [q, v]; `buffer` holds all token scores."""
    num_words, num_texts, dim = text.tokens_NBD.shape
    num_frames, num_videos, _ = video.tokens_NBD.shape
    flat = buffer[:num_words * num_texts * num_frames * num_videos].view(num_words * num_texts, -1)
    torch.mm(text.tokens_NBD.view(-1, dim), video.tokens_NBD.view(-1, dim).T, out=flat)
    sims_WQTV = flat.view(num_words, num_texts, num_frames, num_videos)
    shown_QV = sims_WQTV.amax(2).float().mul_(text.weights_NB[:, :, None]).sum(0)
    told_QV = sims_WQTV.amax(0).float().mul_(video.weights_NB).sum(1)
    # as in training: tokens score -1 where the other side has nothing but padding
    shown_QV[:, video.empty_B] = -text.weights_NB.sum(0)[:, None]
    told_QV[text.empty_B] = -video.weights_NB.sum(0)
    return shown_QV.lerp_(told_QV, text.told_B[:, None])
