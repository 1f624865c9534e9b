"""From frames and texts to tokens and scores, for training, evaluation, export, search and drift alike."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hcmi.ahead import on_device
from hcmi.errors import ModelError
from hcmi.model.families import check_frames_alone
from hcmi.model.modeling import HcmiModel
from hcmi.model.patches import multiply_patches
from hcmi.model.tiles import tiled_similarities
from hcmi.progress import track
from hcmi.runtime import pick_precision, send
from hcmi.types import EvalBatch, TextTokens, VideoTokens

Tokens = TypeVar("Tokens", VideoTokens, TextTokens)


def encode_precision(device: torch.device) -> str:
    """What towers compute in when videos are encoded: bfloat16 on a GPU that multiplies it natively, else float32."""
    return pick_precision("auto", device) if device.type == "cuda" else "float32"


@torch.inference_mode()
def encode_features(model: HcmiModel, frames_BTHXC: Tensor | np.ndarray) -> Tensor:
    """The towers' features [B, T, D], float32 on the model's device, of uint8 frames of the model's size.

    On a GPU the towers compute in `encode_precision`.
    """
    device = model.device
    if device.type == "cuda":
        multiply_patches(model)
    pixels = model.processor.frames(send(torch.as_tensor(frames_BTHXC), device))
    in_bfloat16 = model.dtype == torch.float32 and encode_precision(device) == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
        return model.frame_features(pixels).float()


@torch.inference_mode()
def encode_frames(model: HcmiModel, frames_BTHXC: Tensor | np.ndarray, frame_mask_BT: Tensor | None = None
                  ) -> VideoTokens:
    """Tokens of clips from their frames, as `encode_features` takes them; without a mask all frames count."""
    features_BTD = encode_features(model, frames_BTHXC)
    if frame_mask_BT is None:
        frame_mask_BT = torch.ones(features_BTD.shape[:2], dtype=torch.bool)
    return model.head.video(features_BTD, send(frame_mask_BT, model.device))


@torch.inference_mode()
def encode_batches(model: HcmiModel, batches: Iterable[tuple[Any, Tensor, Tensor]]
                   ) -> Iterator[tuple[Any, VideoTokens]]:
    """For each batch, which is anything, frames and mask: the thing, and tokens in float32 on the CPU; in order.

    On a GPU three batches are under way: one is copied there, one is computed, and the tokens of one are copied back.
    Raises: ModelError when tokens are not finite.
    """
    if model.frames_together:
        check_frames_alone(model.towers.config, "model")
    device = model.device
    before: tuple[Any, VideoTokens, torch.cuda.Event] | None = None
    for thing, frames_BTHXC, mask_BT in on_device(batches, device):
        tokens = encode_frames(model, frames_BTHXC, mask_BT).to("cpu", non_blocking=True)
        if device.type != "cuda":
            yield thing, _finite(tokens)
            continue
        copied = torch.cuda.current_stream(device).record_event()
        if before is not None:
            before[2].synchronize()
            yield before[0], _finite(before[1])
        before = thing, tokens, copied
    if before is not None:
        before[2].synchronize()
        yield before[0], _finite(before[1])


class NotFiniteError(ModelError):
    """A model gives vectors that are not finite."""


def check_finite(vectors: Tensor) -> Tensor:
    """`vectors`, on the CPU.

    Raises: NotFiniteError when one is not finite: it would be like nothing, and found by nothing.
    """
    if not bool(vectors.isfinite().all()):
        raise NotFiniteError("model: need finite vectors of videos and texts, got NaN or infinity. Its weights are "
                             "broken: copy them again, or choose another model.")
    return vectors


def _finite(tokens: Tokens) -> Tokens:
    for field in fields(tokens):
        check_finite(getattr(tokens, field.name))
    return tokens


def encode_videos(model: HcmiModel, batches: Iterable[EvalBatch], total: int | None = None) -> VideoTokens:
    """Tokens of all videos in order, float32 on the CPU. `total` is the number of videos, for the progress bar."""
    parts = []
    given = ((batch.rows, batch.frames_BTHXC, batch.frame_mask_BT) for batch in batches)
    with track(description="encode videos", total=total, unit="clip") as bar:
        for rows, tokens in encode_batches(model, given):
            parts.append(tokens)
            bar.update(len(rows))
    return concatenate(parts)


@torch.inference_mode()
def encode_texts(model: HcmiModel, texts: list[str], batch_size: int = 256) -> TextTokens:
    """Tokens of all texts in order, float32 on the CPU, padded to the longest (weights 0).

    Raises: ModelError when they are not finite.
    """
    device = model.device
    parts = []
    for start in range(0, len(texts), batch_size):
        ids_BW, mask_BW = model.processor.texts(texts[start:start + batch_size])
        parts.append(_finite(model.encode_texts(ids_BW.to(device), mask_BW.to(device)).to("cpu")))
    return concatenate(parts)


@torch.inference_mode()
def score(model: HcmiModel, texts: TextTokens, videos: VideoTokens, part: int = 128) -> dict[str, Tensor]:
    """Level -> float32 [Q, V] on the CPU, equal to `model.similarities`, in bounded memory.

    A head that `tiles` does not know is asked for `part` texts and `part` videos at a time.
    """
    device = model.device
    if model.head.scored_in_tiles:
        return tiled_similarities(texts.to(device), videos.to(device), model.head.levels)
    found = {level: torch.empty(len(texts), len(videos)) for level in model.head.levels}
    for video_start in range(0, len(videos), part):
        chosen = slice(video_start, video_start + part)
        some_videos = videos[chosen].to(device)
        for text_start in range(0, len(texts), part):
            queries = slice(text_start, text_start + part)
            for level, sims_QV in model.similarities(texts[queries].to(device), some_videos).items():
                found[level][queries, chosen] = sims_QV.float().cpu()
    return found


def bucketed_similarities(model: HcmiModel, ids_QW: Tensor, mask_QW: Tensor, videos: VideoTokens, num_buckets: int = 3,
                          call: Callable[..., Any] = lambda function, *inputs: function(*inputs),
                          encode: Callable[[Tensor, Tensor], TextTokens] | None = None
                          ) -> tuple[dict[str, Tensor], Tensor]:
    """`training_similarities` [Q, V] of the head, and the texts' sentence vectors [Q, D], both with gradients.

    The texts are encoded in `num_buckets` groups of about equal length. Each group is cut to its own longest text, so
    little is computed for padding. The results equal those of all texts at once. Masks have valid tokens first. Ids and
    masks are on the CPU, and results where the videos are: to cut a group on a GPU, one would wait for its length.
    `call(function, *inputs)` gives the function's result, and may let the backward pass compute it again.
    `encode` takes the place of `model.encode_texts`.
    """
    def encode_and_score(ids_BW: Tensor, mask_BW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        texts = (encode or model.encode_texts)(ids_BW, mask_BW)
        return texts.sentence_BD, model.head.training_similarities(texts, videos)

    device = videos.video_BD.device
    lengths_Q = mask_QW.sum(1)
    order_Q = lengths_Q.argsort(stable=True)
    sentences: list[Tensor] = []
    levels: dict[str, list[Tensor]] = defaultdict(list)
    for rows in order_Q.tensor_split(min(num_buckets, len(order_Q))):
        longest = max(int(lengths_Q[rows[-1]]), 1)
        ids_BW, mask_BW = (send(tensor[rows, :longest], device) for tensor in (ids_QW, mask_QW))
        sentence_BD, found = call(encode_and_score, ids_BW, mask_BW)
        sentences.append(sentence_BD)
        for level, sims_QV in found.items():
            levels[level].append(sims_QV)
    back_Q = send(order_Q.argsort(), device)
    return {level: torch.cat(parts)[back_Q] for level, parts in levels.items()}, torch.cat(sentences)[back_Q]


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
