"""From shards to tokens to scores: what evaluate, export, search, drift and validation share."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hcmi.data.loader import EvalBatch, ShardReader, eval_batches
from hcmi.model.retriever import HcmiModel
from hcmi.model.tiles import tiled_similarities
from hcmi.progress import track
from hcmi.types import LEVELS, TextTokens, VideoTokens

Tokens = TypeVar("Tokens", VideoTokens, TextTokens)


@dataclass(frozen=True)
class EncodedSplit:
    """All clips of a split with all their captions, encoded; row i of `videos` is clip i of the shard reader."""

    video_ids: list[str]
    videos: VideoTokens
    captions: list[str]
    caption_video: np.ndarray       # [Q] row of each caption's video
    texts: TextTokens

    def __post_init__(self) -> None:
        assert len(self.video_ids) == len(self.videos), f"{len(self.video_ids)} ids, {self.videos}"
        assert len(self.captions) == len(self.texts) == len(self.caption_video), f"{len(self.captions)} captions"


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
    return _join(parts)


@torch.inference_mode()
def encode_texts(model: HcmiModel, texts: list[str], batch_size: int = 256) -> TextTokens:
    """Tokens of all texts in order, float32 on the CPU, padded to the longest (weights 0)."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(texts), batch_size):
        ids_BW, mask_BW = model.processor.texts(texts[start:start + batch_size])
        parts.append(model.encode_texts(ids_BW.to(device), mask_BW.to(device)).to("cpu"))
    return _join(parts)


def encode_split(model: HcmiModel, reader: ShardReader, batch_size: int) -> EncodedSplit:
    """Every clip of the reader once, in order, and every caption."""
    videos = encode_videos(model, eval_batches(reader, batch_size, model.config.num_frames), len(reader))
    captions = [caption for clip in reader.clips for caption in clip["captions"]]
    caption_video = np.repeat(np.arange(len(reader)), [len(clip["captions"]) for clip in reader.clips])
    return EncodedSplit([clip["video_id"] for clip in reader.clips], videos, captions, caption_video,
                        encode_texts(model, captions))


@torch.inference_mode()
def score(model: HcmiModel, texts: TextTokens, videos: VideoTokens, tile: int = 256) -> dict[str, Tensor]:
    """Level -> float32 [Q, V], in bounded memory; a head with levels of its own kind in tiles of `tile` texts."""
    device = next(model.parameters()).device
    on_device = videos.to(device)
    if set(model.head.levels) <= set(LEVELS):
        return tiled_similarities(texts.to(device), on_device, model.head.levels)
    parts = [model.similarities(texts[start:start + tile].to(device), on_device)
             for start in range(0, len(texts), tile)]
    return {level: torch.cat([part[level].float().cpu() for part in parts]) for level in parts[0]}


def _join(parts: list[Tokens]) -> Tokens:
    """Concatenate batches; token sets of unequal length are padded with zero vectors of weight 0."""
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
