"""One training step: the loss over the global batch, its gradient, and the update of the weights.

A plain step keeps the activations of the whole batch for the backward pass. With micro-batches, only tokens and scores
are kept: the backward pass computes each micro-batch once more, and has the activations of one at a time. The loss is
that of the whole batch in both cases (gradient caching, docs/decisions/0017).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from hcmi.config import TrainConfig
from hcmi.errors import ModelError
from hcmi.model import HcmiModel, bucketed_similarities, concatenate
from hcmi.shards import TrainBatch
from hcmi.train.denoising import clip_views, denoising_figures, same_clips
from hcmi.train.objective import total_loss
from hcmi.train.ranks import ALONE, Ranks
from hcmi.train.state import StepResult
from hcmi.types import VideoTokens

TEXT_BUCKETS = 3        # parts of about equal length, so that little is computed for padding
Function = Callable[..., Any]


class LossError(ModelError):
    """The loss is not a finite number; `rows` are the clips of the batch."""

    def __init__(self, loss: float, rows: list[int]):
        super().__init__(f"training: need a finite loss, got {loss}. {LOWER}")
        self.loss, self.rows = loss, rows


LOWER = "Lower train.lr or train.backbone_lr, or set train.precision to float32."


def training_step(model: HcmiModel, optimizers: Sequence[Optimizer], batch: TrainBatch, config: TrainConfig,
                  denoise: str, precision: str, meaning_N: Tensor | None = None, micro_batch: int = 0,
                  ranks: Ranks = ALONE) -> StepResult:
    """Forward, backward, update. Each video is encoded once for all captions of its clip.

    `batch` is this rank's part of the global batch. `meaning_N`: equal numbers for training clips that truly show the
    same, where that is known. Denoising is measured by it. `micro_batch`: how many clips are encoded at a time; 0: all.
    Raises: LossError when the loss is not a finite number; the weights have not changed then.
    """
    total, result = batch_loss(model, batch, config, denoise, precision, meaning_N, micro_batch, ranks)
    if not math.isfinite(result.figures["loss"]):
        raise LossError(result.figures["loss"], result.rows)
    model.zero_grad(set_to_none=True)
    (total / ranks.size).backward()
    ranks.sum_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    return result


def batch_loss(model: HcmiModel, batch: TrainBatch, config: TrainConfig, denoise: str, precision: str,
               meaning_N: Tensor | None = None, micro_batch: int = 0, ranks: Ranks = ALONE
               ) -> tuple[Tensor, StepResult]:
    """The loss of the global batch, with gradients, and what the step is to be remembered by."""
    device = next(model.parameters()).device
    clips, captions_each = len(batch.rows), len(batch.captions)
    rows = ranks.gather(torch.tensor(batch.rows)).tolist()
    meaning_B = None if meaning_N is None else meaning_N[batch.rows]
    ids_QW, word_mask_QW = (tensor.to(device) for tensor in model.processor.texts(list(chain(*batch.captions))))
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bfloat16")
    call, buckets = _called, TEXT_BUCKETS
    if micro_batch:
        call, buckets = partial(_computed_twice, autocast), max(TEXT_BUCKETS, math.ceil(clips / micro_batch))
    with nullcontext() if micro_batch else autocast():
        own, features_BTD, mask_BT = _embed(model, batch, micro_batch or clips, device, call)
        videos = ranks.gather_videos(own)
        levels, sentence_QD = bucketed_similarities(model, ids_QW, word_mask_QW, videos, buckets, call)
    with autocast():
        views = [] if denoise == "off" else clip_views(model, config.loss.denoise_by, features_BTD, mask_BT,
                                                       sentence_QD.detach().split(clips), meaning_B)
    views = [(ranks.gather(one), ranks.gather(other)) for one, other in views]
    levels = {level: ranks.gather_texts(sims_QV, captions_each) for level, sims_QV in levels.items()}
    positives_BB = same_clips(views) if views else None
    total, terms = total_loss(model, levels, ranks.gather_texts(sentence_QD, captions_each), config, positives_BB,
                              denoise)
    figures = {name: float(term) for name, term in terms.items()}
    if positives_BB is not None:
        figures |= denoising_figures(positives_BB.cpu(), None if meaning_N is None else meaning_N[rows])
    # one copy from the device instead of three
    vectors_KBD = torch.stack([videos.video_BD, *(views[0] if views else ())]).detach().float().cpu()
    return total, StepResult(rows, figures, vectors_KBD[0], vectors_KBD[1:] if views else None)


def _embed(model: HcmiModel, batch: TrainBatch, part: int, device: torch.device, call: Function
           ) -> tuple[VideoTokens, Tensor, Tensor]:
    """Tokens of the batch's videos, `part` of them at a time; the towers' features without gradients; and the mask."""
    def embed(frames_BTHXC: Tensor, mask_BT: Tensor) -> tuple[VideoTokens, Tensor]:
        features_BTD = model.frame_features(model.processor.frames(frames_BTHXC.to(device, non_blocking=True)))
        return model.head.video(features_BTD, mask_BT), features_BTD.detach()

    mask_BT = batch.frame_mask_BT.to(device)
    parts = [call(embed, *some) for some in zip(batch.frames_KBTHXC[0].split(part), mask_BT.split(part), strict=True)]
    if len(parts) == 1:
        return *parts[0], mask_BT
    return concatenate([videos for videos, _ in parts]), torch.cat([features for _, features in parts]), mask_BT


def _called(function: Function, *inputs: Tensor) -> Any:
    return function(*inputs)


def _computed_twice(autocast: Function, function: Function, *inputs: Tensor) -> Any:
    """The function's result; its activations are computed again by the backward pass.

    Each call has an autocast context of its own. Calls in one context share the weights in bfloat16, and the gradients
    of all calls would be summed in bfloat16.
    """
    def run(*inputs: Tensor) -> Any:
        with autocast():
            return function(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)
