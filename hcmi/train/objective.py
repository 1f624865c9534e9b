"""What training minimises: the contrastive loss of each level, and the terms that HCMI adds to it."""

import torch
from torch import Tensor

from hcmi.config import TrainConfig
from hcmi.model import HcmiModel
from hcmi.train.loss import contrastive, margin


def total_loss(model: HcmiModel, levels: dict[str, Tensor], sentence_QD: Tensor, config: TrainConfig,
               positives_BB: Tensor | None, denoise: str) -> tuple[Tensor, dict[str, float]]:
    """The loss to minimise, and the value of each of its terms for the log.

    `levels` are similarities [Q, B] with Q = N * B texts, N captions of each clip; `sentence_QD` are the texts'
    sentence vectors; `positives_BB` are the pairs that denoising counts as the same. The loss on the sum of the levels
    is there because search ranks by that sum [ours]. The sum alone trains the sentences' lengths, which are weights in
    it; video-sentence by itself is the plain cosine. The sum and the margin are HCMI's own; the other heads are trained
    with the plain loss.
    Source: the levels are those of the paper; the rest is ours (docs/method.md).
    """
    summed = levels
    if model.head.hcmi_training:
        lengths_Q1 = sentence_QD.norm(dim=1, keepdim=True).clamp(min=1e-6)
        levels = levels | {"video_sentence": levels["video_sentence"] / lengths_Q1}
    weights = {level: weight for level, weight in loss_weights(model, config).items() if level in levels}
    scales = {level: model.head.logit_scale(level) for level in weights}
    terms = {level: weight * contrastive(levels[level], scales[level], positives_BB, denoise)
             for level, weight in weights.items()}
    if model.head.hcmi_training and config.loss.sum_weight > 0:
        sum_QB = torch.stack([summed[level] for level in weights]).sum(0)
        mean_scale = torch.stack(list(scales.values())).mean()
        terms["sum"] = config.loss.sum_weight * contrastive(sum_QB, mean_scale, positives_BB, denoise)
    if model.head.hcmi_training and config.loss.margin_weight > 0:
        terms["margin"] = config.loss.margin_weight * margin(levels["video_sentence"], config.loss.margin, positives_BB)
    total = torch.stack(list(terms.values())).sum()
    figures = {"loss": float(total.detach())} | {f"loss_{name}": float(term.detach()) for name, term in terms.items()}
    return total, figures


def loss_weights(model: HcmiModel, config: TrainConfig) -> dict[str, float]:
    """Level -> its weight in the loss, for the levels that are trained. Every level of the other heads counts 1."""
    weights = config.loss.level_weights.model_dump() if model.head.hcmi_training else {}
    return {level: weights.get(level, 1.0) for level in model.head.levels if weights.get(level, 1.0) > 0}


def group_size(model: HcmiModel, config: TrainConfig, epoch: int) -> int:
    """How many clips that are hard to tell apart share a batch; 1 means random batches.

    Such groups are part of HCMI's marginal sample enhancement, which begins after the warm-up epochs.
    """
    after_warmup = epoch >= config.loss.warmup_epochs
    return config.loss.marginal_group if after_warmup and model.head.hcmi_training else 1
