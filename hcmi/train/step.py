"""One training step: the loss over the global batch, its gradient, and the update of the weights.

A plain step keeps the activations of the whole batch for the backward pass. With micro-batches, only tokens and scores
are kept: the backward pass computes each micro-batch once more, and has the activations of one at a time. The loss is
that of the whole batch in both cases (gradient caching, docs/decisions/0017).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from hcmi.config import TrainConfig
from hcmi.model import HcmiModel, bucketed_similarities, concatenate
from hcmi.ranks import ALONE, Ranks
from hcmi.runtime import send, tf32
from hcmi.shards import TrainBatch
from hcmi.train.denoising import clip_views, same_clips
from hcmi.train.objective import loss_weights, total_loss
from hcmi.train.parts import Parts
from hcmi.train.readback import check_finite
from hcmi.train.state import StepResult
from hcmi.types import VideoTokens

TEXT_BUCKETS = 3        # parts of about equal length, so that little is computed for padding
Function = Callable[..., Any]


def training_step(model: HcmiModel, optimizers: Sequence[Optimizer], batch: TrainBatch, config: TrainConfig,
                  denoise: str, precision: str, meaning_N: Tensor | None = None, micro_batch: int = 0,
                  ranks: Ranks = ALONE, parts: Parts | None = None) -> StepResult:
    """Forward, backward, update. Each video is encoded once for all captions of its clip.

    `batch` is this rank's part of the global batch. `meaning_N`: equal numbers for training clips that truly show the
    same, where that is known. Denoising is measured by it. `micro_batch`: how many clips are encoded at a time; 0: all.
    `parts`: the model's own, if it is to compute with others than its plain ones.
    Nothing is read back from a GPU, and a loss or gradient that is not finite is found when the result is read.
    Raises: DivergedError for such a one on a CPU; the weights have not changed then.
    """
    with tf32(precision == "bfloat16"):
        total, result = batch_loss(model, batch, config, denoise, precision, meaning_N, micro_batch, ranks, parts)
        model.zero_grad(set_to_none=True)
        (total / ranks.size).backward()
        ranks.sum_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        result = replace(result, figures=result.figures | {"gradient_norm": norm})
        if total.device.type == "cpu":
            check_finite(result)
        for optimizer in optimizers:
            optimizer.step()
    group = optimizers[0].param_groups[0]
    share = group["lr"] / group["peak_lr"]
    return replace(result, rates={"lr": share * config.lr, "backbone_lr": share * config.backbone_lr})


def batch_loss(model: HcmiModel, batch: TrainBatch, config: TrainConfig, denoise: str, precision: str,
               meaning_N: Tensor | None = None, micro_batch: int = 0, ranks: Ranks = ALONE, parts: Parts | None = None
               ) -> tuple[Tensor, StepResult]:
    """The loss of the global batch, with gradients, and what the step is to be remembered by."""
    parts = parts or Parts.of(model)
    device = model.device
    clips, captions_each = len(batch.rows), len(batch.captions)
    rows = ranks.gather(torch.tensor(batch.rows)).tolist()
    meaning_B = None if meaning_N is None else meaning_N[batch.rows]
    ids_QW, word_mask_QW = model.processor.texts(list(chain(*batch.captions)))
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bfloat16")
    call, buckets = _called, TEXT_BUCKETS
    if micro_batch:
        call, buckets = partial(_computed_twice, autocast), max(TEXT_BUCKETS, math.ceil(clips / micro_batch))
    with nullcontext() if micro_batch else autocast():
        own, features_BTD, mask_BT = _embed(parts, batch, micro_batch or clips, device, call)
        videos = ranks.gather_videos(own)
        levels, sentence_QD = bucketed_similarities(model, ids_QW, word_mask_QW, videos, buckets, call, parts.texts)
    with autocast():
        views = [] if denoise == "off" else clip_views(model, config.loss.denoise_by, features_BTD, mask_BT,
                                                       sentence_QD.detach().split(clips), meaning_B)
    views = [(ranks.gather(one), ranks.gather(other)) for one, other in views]
    levels = {level: ranks.gather_texts(sims_QV, captions_each) for level, sims_QV in levels.items()}
    positives_BB = same_clips(views) if views else None
    total, terms = total_loss(model, levels, ranks.gather_texts(sentence_QD, captions_each), config, positives_BB,
                              denoise)
    scales = {f"logit_scale_{level}": model.head.logit_scale(level).detach() for level in loss_weights(model, config)}
    return total, StepResult(rows, terms | scales, videos.video_BD.detach().float(),
                             torch.stack(views[0]).detach().float() if views else None, positives_BB,
                             None if meaning_N is None else meaning_N[rows])


def _embed(parts: Parts, batch: TrainBatch, part: int, device: torch.device, call: Function
           ) -> tuple[VideoTokens, Tensor, Tensor]:
    """Tokens of the batch's videos, `part` of them at a time; the towers' features without gradients; and the mask."""
    def embed(frames_BTHXC: Tensor, mask_BT: Tensor) -> tuple[VideoTokens, Tensor]:
        return parts.videos(send(frames_BTHXC, device), mask_BT)

    mask_BT = send(batch.frame_mask_BT, device)
    found = [call(embed, *some) for some in zip(batch.frames_BTHXC.split(part), mask_BT.split(part), strict=True)]
    if len(found) == 1:
        return *found[0], mask_BT
    return concatenate([videos for videos, _ in found]), torch.cat([features for _, features in found]), mask_BT


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
