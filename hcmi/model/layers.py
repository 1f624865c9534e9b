"""What towers and heads share: attention, and learned positions."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "hcmi_sdpa"     # the name under which `transformers` finds `attention`


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False,
              scale: float | None = None) -> Tensor:
    """Scaled dot-product attention over [N, heads, length, E]; on a CPU always in float32.

    Measured with torch 2.13: the backward pass of bfloat16 attention on a CPU takes 5 times as long as float32's, and
    was half of a whole training step.
    """
    if queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal, scale=scale)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(queries.float(), keys.float(), values.float(),
                                               None if mask is None else mask.float(), is_causal=causal, scale=scale)
    return mixed.to(queries.dtype)


def _tower_attention(module, queries, keys, values, mask, scaling=None, is_causal=None, **_) -> tuple[Tensor, None]:
    """`attention` with the arguments that `transformers` passes."""
    causal = module.is_causal if is_causal is None else is_causal
    return attention(queries, keys, values, mask, bool(causal) and mask is None, scaling).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _tower_attention)


def stretch_positions(positions_LD: Tensor, length: int) -> Tensor:
    """Learned positions for at least `length` tokens: linearly interpolated when there are too few. [ours]"""
    if length <= len(positions_LD):
        return positions_LD
    return F.interpolate(positions_LD.T[None], size=length, mode="linear", align_corners=True)[0].T
