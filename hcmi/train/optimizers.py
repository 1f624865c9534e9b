"""Which optimiser updates which weights, and the learning rate over a run."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from hcmi.config import TrainConfig
from hcmi.model import HcmiModel

LOWEST_FACTOR = 1e-3        # of the peak learning rate: the first and the last step still learn something


def make_optimizers(model: HcmiModel, config: TrainConfig) -> list[Optimizer]:
    """Muon for the matrices of new layers and AdamW for everything else; or AdamW for everything.

    Towers have their own learning rate; 0 freezes them. Vectors and scalars, logit scales included, have no weight
    decay. Pretrained towers stay with AdamW, which they were trained with. Muon's steps are scaled to the size of
    AdamW's, so that both use the same learning rate.
    Source: Jordan et al. 2024; Liu et al. 2025 (arXiv 2502.16982) for the scale.
    """
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}     # by optimiser, learning rate and decay
    for name, weight in model.named_parameters():
        in_tower = name.startswith("towers.")
        rate = config.backbone_lr if in_tower else config.lr
        is_new = not in_tower or model.config.backbone == "scratch"
        kind = config.optimizer if is_new and name in matrices else "adamw"
        decay = config.weight_decay if weight.dim() > 1 else 0.0
        weight.requires_grad_(rate > 0)
        if rate > 0:
            groups.setdefault((kind, rate, decay), []).append(weight)

    def groups_of(optimizer: str) -> list[dict]:
        return [{"params": weights, "lr": rate, "peak_lr": rate, "weight_decay": decay}
                for (kind, rate, decay), weights in groups.items() if kind == optimizer]

    optimizers: list[Optimizer] = [torch.optim.AdamW(groups_of("adamw"), betas=(0.9, 0.98), fused=True)]
    if groups_of("muon"):
        optimizers.append(torch.optim.Muon(groups_of("muon"), adjust_lr_fn="match_rms_adamw"))
    return optimizers


def set_learning_rate(optimizers: Sequence[Optimizer], done: float, warmup: float) -> None:
    """Linear warm-up, then cosine to zero. `done` and `warmup` are shares of all steps, from 0 to 1."""
    factor = done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak_lr"] * max(factor, LOWEST_FACTOR)
