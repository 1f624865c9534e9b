"""What training minimises: the contrastive loss of each level, and the terms that HCMI adds to it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hcmi.config import LossConfig, TrainConfig
from hcmi.model import GAIN, HcmiModel
from hcmi.train.loss import balance, contrastive, margin


def total_loss(model: HcmiModel, levels: dict[str, Tensor], sentence_QD: Tensor, config: TrainConfig,
               positives_BB: Tensor | None, denoise: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise, and each of its terms for the log: scalars on the model's device, without a gradient.

    `levels` are the head's `training_similarities` [Q, B] with Q = N * B texts, N captions of each clip; `sentence_QD`
    are the texts' sentence vectors, whose length is the coverage; `positives_BB` are the pairs that denoising counts as
    the same. The losses on the sum of the levels, `sum` and `balance`, are there because search ranks by that sum
    [ours]. They and the margin are HCMI's own; the other heads are trained with the plain loss.
    Source: the levels are those of the paper; the rest is ours (docs/method.md).
    """
    weights = {level: weight for level, weight in loss_weights(model, config).items() if level in levels}
    scales = {level: model.head.logit_scale(level) for level in weights}
    terms = {level: weight * contrastive(levels[level], scales[level], positives_BB, denoise)
             for level, weight in weights.items()}
    if model.head.hcmi_training and max(config.loss.sum_weight, config.loss.balance_weight) > 0:
        terms |= _terms_of_the_sum(levels, sentence_QD, scales, config.loss, positives_BB, denoise)
    if model.head.hcmi_training and config.loss.margin_weight > 0:
        terms["margin"] = config.loss.margin_weight * margin(levels["video_sentence"], config.loss.margin, positives_BB)
    total = torch.stack(list(terms.values())).sum()
    return total, {"loss": total.detach()} | {f"loss_{name}": term.detach() for name, term in terms.items()}


def _terms_of_the_sum(levels: dict[str, Tensor], sentence_QD: Tensor, scales: dict[str, Tensor], config: LossConfig,
                      positives_BB: Tensor | None, denoise: str) -> dict[str, Tensor]:
    """The weighted terms on the sum of the levels that have a scale, at the mean of these scales."""
    by_text_QB, by_video_QB = ranking_sums(levels, sentence_QD, scales)
    mean_scale = torch.stack(list(scales.values())).mean()
    terms = {}
    if config.sum_weight > 0:
        terms["sum"] = config.sum_weight * contrastive(by_text_QB, mean_scale, positives_BB, denoise, by_video_QB)
    if config.balance_weight > 0:
        terms["balance"] = config.balance_weight * balance(by_text_QB, mean_scale, positives_BB)
    return terms


def ranking_sums(levels: dict[str, Tensor], sentence_QD: Tensor, names: Iterable[str]) -> tuple[Tensor, Tensor]:
    """The sum [Q, B] of the levels `names` as search ranks by it, with a gradient for the coverage and without one.

    The first is for the losses in which a text ranks the videos: half of the contrastive one, and the balance. In the
    other half the coverage could only make texts comparable: texts of parts, whose frames' side is low for every video,
    would get more of it and not less.
    """
    coverage_Q1 = sentence_QD.norm(dim=1, keepdim=True)
    fixed_Q1 = coverage_Q1.detach()
    sum_QB = torch.stack([levels[level] * (fixed_Q1 if level == "video_sentence" else 1) for level in names]).sum(0)
    gain_QB = torch.stack([levels[level + GAIN] for level in names]).sum(0)
    return sum_QB + (coverage_Q1 - fixed_Q1) * gain_QB, sum_QB


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
