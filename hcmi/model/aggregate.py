"""From fine tokens to coarse ones: frames -> clips -> video, words -> phrases -> sentence (docs/method.md).

Every residual branch ends in a layer that starts at zero, so that the untrained branches do not change the features of
pretrained towers.
"""

import torch
from torch import Tensor, nn

from hcmi.model.layers import attention, stretch_positions

AGGREGATIONS = ("assign", "queries")
PADDING_LOGIT = -1e4    # finite: a row of nothing but padding must not give NaN
UNIFORM_SHARE = 0.2     # [ours] share of the initial assignment that is spread over all tokens; time decides the rest


class SelfAttention(nn.Module):
    """X + MHSA(LN(X)) with padding masked. The residual branch starts at zero."""

    def __init__(self, dim: int, heads: int, norm_eps: float = 1e-5):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = zero_init(nn.Linear(dim, dim))

    def forward(self, tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
        batch, length, dim = tokens_BND.shape
        heads_3BHNE = self.qkv(self.norm(tokens_BND)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads_3BHNE
        bias_B11N = torch.where(mask_BN, 0.0, -1e4)[:, None, None].to(tokens_BND.dtype)
        mixed_BHNE = attention(queries, keys, values, mask=bias_B11N)
        return tokens_BND + self.out(mixed_BHNE.transpose(1, 2).reshape(batch, length, dim))


class FeedForward(nn.Module):
    """X + W2 f(W1 LN(X)), where f is the tanh form of GELU by default. The residual branch starts at zero."""

    def __init__(self, dim: int, activation: nn.Module | None = None, norm_eps: float = 1e-5):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim, norm_eps), nn.Linear(dim, 4 * dim),
                                    activation or nn.GELU(approximate="tanh"), zero_init(nn.Linear(4 * dim, dim)))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND + self.layers(tokens_BND)


class NeighbourMix(nn.Module):
    """X + W [LN(X_t-1), LN(X_t), LN(X_t+1)]: each frame with the ones before and after it. It starts at zero. [ours]

    Motion is the difference of neighbouring frames. Attention has to find the neighbours by their learned positions
    first, which takes training that small sets do not give. The first and the last frame are their own neighbours.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = zero_init(nn.Linear(3 * dim, dim))

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Masks are left-aligned: valid frames first."""
        normed_BTD = self.norm(frames_BTD)
        before_BTD = torch.cat([normed_BTD[:, :1], normed_BTD[:, :-1]], 1)
        has_next_BT1 = torch.cat([mask_BT[:, 1:], torch.zeros_like(mask_BT[:, :1])], 1)[..., None]
        after_BTD = torch.where(has_next_BT1, torch.cat([normed_BTD[:, 1:], normed_BTD[:, -1:]], 1), normed_BTD)
        return frames_BTD + self.mix(torch.cat([before_BTD, normed_BTD, after_BTD], -1))


class TemporalTransformer(nn.Module):
    """Blocks of `NeighbourMix`, self-attention and feed-forward over frames with learned positions.

    Positions enter the branches but not the residual stream: with zero branches the frames pass unchanged.
    """

    def __init__(self, dim: int, heads: int, layers: int, length: int):
        super().__init__()
        self.positions_TD = nn.Parameter(torch.randn(length, dim) * 0.5)
        self.layers = nn.ModuleList(nn.ModuleList((NeighbourMix(dim), SelfAttention(dim, heads), FeedForward(dim)))
                                    for _ in range(layers))

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor, position_T: Tensor | None = None) -> Tensor:
        """`position_T`: as for `frame_positions`."""
        if not self.layers:
            return frames_BTD
        positions_TD = frame_positions(self.positions_TD, frames_BTD.shape[1], position_T)
        hidden_BTD = frames_BTD + positions_TD
        for layer in self.layers:
            mix, attend, feed_forward = layer.children()
            hidden_BTD = feed_forward(attend(mix(hidden_BTD, mask_BT), mask_BT))
        return hidden_BTD - positions_TD


def frame_positions(learned_TD: Tensor, num_frames: int, position_T: Tensor | None = None) -> Tensor:
    """The learned position of each of `num_frames` frames.

    `position_T`: index of each frame among the clip's frames, for when some frames are left out. Fewer frames than the
    model was trained with use the first positions. For more, positions are interpolated.
    """
    if position_T is not None:
        return learned_TD[position_T]
    return stretch_positions(learned_TD, num_frames)[:num_frames]


class Aggregation(nn.Module):
    """One aggregation layer, which turns N tokens into `slots` tokens.

        X' = X + MHSA(LN(X));  A = softmax over members of logits(X');  Y = A^T X';  Y = Y + FFN(LN(Y))

    `kind` says where the logits come from [ours]:

    - `assign`: log prior + g(X'), where g is a 2-layer MLP that starts at zero. The prior gives slot c the c-th equal
      part of the time, mixed with a uniform share. Its rows have equal sums, so the mean over slots starts as exactly
      the mean over tokens, and the slots differ from the first step on. Without a prior all slots start equal, and
      only chance makes them different.
    - `queries`: learned queries attend to the tokens. Keys start at zero, so every slot starts as the mean.
    """

    def __init__(self, dim: int, heads: int, slots: int, kind: str = "assign"):
        super().__init__()
        assert kind in AGGREGATIONS, f"need an aggregation of {AGGREGATIONS}, got {kind!r}"
        self.slots, self.kind = slots, kind
        self.attention = SelfAttention(dim, heads)
        if kind == "assign":
            self.assign = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(approximate="tanh"),
                                        zero_init(nn.Linear(dim, slots)))
        else:
            self.queries_SD = nn.Parameter(torch.randn(slots, dim))
            self.keys = nn.Sequential(nn.LayerNorm(dim), zero_init(nn.Linear(dim, dim)))
        self.feed_forward = FeedForward(dim)

    def forward(self, tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
        tokens_BND = self.attention(tokens_BND, mask_BN)
        if self.kind == "assign":
            logits_BNS = self.assign(tokens_BND).float() + time_prior(mask_BN, self.slots).log()
        else:
            logits_BNS = (self.keys(tokens_BND) @ self.queries_SD.T).float() * tokens_BND.shape[-1] ** -0.5
            logits_BNS = logits_BNS.masked_fill(~mask_BN[..., None], PADDING_LOGIT)
        assignment_BNS = logits_BNS.softmax(1).to(tokens_BND.dtype)
        return self.feed_forward(assignment_BNS.transpose(1, 2) @ tokens_BND)


def time_prior(mask_BN: Tensor, slots: int) -> Tensor:
    """Share of each token in each slot, [B, N, S]. Columns sum to 1 over valid tokens, rows to S / valid tokens.

    Slot c has the time from c/S to (c+1)/S of the valid tokens; a token on a border is shared. Padding gets 1e-9. Masks
    are left-aligned: valid tokens first.
    """
    valid_B11 = mask_BN.sum(1).clamp(min=1)[:, None, None].float()
    start_1N1 = torch.arange(mask_BN.shape[1], device=mask_BN.device)[None, :, None].float()
    slot_11S = torch.arange(slots, device=mask_BN.device)[None, None, :].float() * (valid_B11 / slots)
    overlap_BNS = torch.minimum(start_1N1 + 1, slot_11S + valid_B11 / slots) - torch.maximum(start_1N1, slot_11S)
    by_time_BNS = overlap_BNS.clamp(min=0) * slots / valid_B11
    prior_BNS = (1 - UNIFORM_SHARE) * by_time_BNS + UNIFORM_SHARE / valid_B11
    return torch.where(mask_BN[..., None], prior_BNS, 1e-9)


class TokenWeights(nn.Module):
    """Weight of each token in an interaction: masked softmax of a small MLP. It starts uniform. [ours, after DRL]"""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(approximate="tanh"),
                                    zero_init(nn.Linear(dim // 2, 1)))

    def forward(self, tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
        return masked_softmax(self.layers(tokens_BND)[..., 0], mask_BN)


def masked_softmax(logits_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Softmax over valid tokens in float32. Padding gets exactly 0; a row of nothing but padding gets 0, not NaN."""
    weights_BN = logits_BN.float().masked_fill(~mask_BN, -1e9).softmax(1)
    return weights_BN * mask_BN


def masked_mean(tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean over valid tokens, [B, D]. A row of nothing but padding gives 0."""
    weights_BN = mask_BN.to(tokens_BND.dtype)
    return (tokens_BND * weights_BN[..., None]).sum(1) / weights_BN.sum(1, keepdim=True).clamp(min=1)


def zero_init(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
