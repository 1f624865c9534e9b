"""From frames and texts to tokens and scores, for evaluation, export, search, drift and validation alike."""

from collections.abc import Iterable
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from hcmi.model.modeling import HcmiModel
from hcmi.model.tiles import tiled_similarities
from hcmi.progress import track
from hcmi.types import LEVELS, EvalBatch, TextTokens, VideoTokens

Tokens = TypeVar("Tokens", VideoTokens, TextTokens)


@torch.inference_mode()
def encode_videos(model: HcmiModel, batches: Iterable[EvalBatch], total: int | None = None) -> VideoTokens:
    """Tokens of all videos in order, float32 on the CPU. `total` is the number of videos, for the progress bar."""
    device = next(model.parameters()).device
    parts = []
    with track(description="encode videos", total=total, unit="clip") as bar:
        for batch in batches:
            pixels = model.processor.frames(torch.as_tensor(batch.frames_BTHXC).to(device))
            mask_BT = torch.as_tensor(batch.frame_mask_BT).to(device)
            parts.append(model.encode_videos(pixels, mask_BT).to("cpu"))
            bar.update(len(parts[-1]))
    return concatenate(parts)


@torch.inference_mode()
def encode_texts(model: HcmiModel, texts: list[str], batch_size: int = 256) -> TextTokens:
    """Tokens of all texts in order, float32 on the CPU, padded to the longest (weights 0)."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(texts), batch_size):
        ids_BW, mask_BW = model.processor.texts(texts[start:start + batch_size])
        parts.append(model.encode_texts(ids_BW.to(device), mask_BW.to(device)).to("cpu"))
    return concatenate(parts)


@torch.inference_mode()
def score(model: HcmiModel, texts: TextTokens, videos: VideoTokens, tile: int = 256) -> dict[str, Tensor]:
    """Level -> float32 [Q, V] on the CPU, in bounded memory.

    A head with levels of another kind than HCMI's is scored in tiles of `tile` texts.
    """
    device = next(model.parameters()).device
    on_device = videos.to(device)
    if set(model.head.levels) <= set(LEVELS):
        return tiled_similarities(texts.to(device), on_device, model.head.levels)
    parts = [model.similarities(texts[start:start + tile].to(device), on_device)
             for start in range(0, len(texts), tile)]
    return {level: torch.cat([part[level].float().cpu() for part in parts]) for level in parts[0]}


def concatenate(parts: list[Tokens]) -> Tokens:
    """One batch of all. Token sets of unequal length are padded with zero vectors of weight 0."""
    assert parts, "need at least one batch"
    columns = []
    for field in fields(parts[0]):
        columns.append(torch.cat(_same_length([getattr(part, field.name) for part in parts])))
    return type(parts[0])(*columns)


def _same_length(tensors: list[Tensor]) -> list[Tensor]:
    lengths = [tensor.shape[1] for tensor in tensors]
    if min(lengths) == max(lengths):
        return tensors
    trailing = (0, 0) * (tensors[0].dim() - 2)
    return [torch.nn.functional.pad(tensor, (*trailing, 0, max(lengths) - length))
            for tensor, length in zip(tensors, lengths, strict=True)]
