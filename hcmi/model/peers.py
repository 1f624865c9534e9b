"""Layers of the peers, as the public code of each computes them. Initial values are ours (docs/method.md)."""

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from hcmi.model.aggregate import FeedForward, SelfAttention, frame_positions, masked_softmax, zero_init

NORM_EPS = 1e-12            # of the peers' layer norms
XCLIP_TEMPERATURE = 0.01    # of the attention over the similarity matrix


class ResidualTransformer(nn.Module):
    """X + T(X + P) over frames: T are CLIP's pre-norm blocks with QuickGELU, P are learned positions.

    Residual branches start at zero and positions as HCMI's do, so that the untrained layer gives 2 X + P [ours]. From
    smaller positions the order of frames is learned later.
    Source: CLIP4Clip (arXiv 2104.08860), seqTransf; X-CLIP and DRL use the same layer.
    """

    def __init__(self, dim: int, heads: int, layers: int, length: int):
        super().__init__()
        self.positions_TD = nn.Parameter(torch.randn(length, dim) * 0.5)
        self.layers = nn.ModuleList(
            nn.ModuleList((SelfAttention(dim, heads, NORM_EPS), FeedForward(dim, QuickGELUActivation(), NORM_EPS)))
            for _ in range(layers))

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor, position_T: Tensor | None = None) -> Tensor:
        """`position_T`: as for `frame_positions`. Without layers the frames pass unchanged."""
        if not self.layers:
            return frames_BTD
        hidden_BTD = frames_BTD + frame_positions(self.positions_TD, frames_BTD.shape[1], position_T)
        for layer in self.layers:
            mix, feed_forward = layer.children()
            hidden_BTD = feed_forward(mix(hidden_BTD, mask_BT))
        return frames_BTD + hidden_BTD


class ReluTokenWeights(nn.Module):
    """Weight of each token in DRL's interaction: masked softmax of Linear - ReLU - Linear. It starts uniform [ours].

    Source: DRL (arXiv 2203.07111), the two-layer form that its experiments use.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), zero_init(nn.Linear(dim, 1)))

    def forward(self, tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
        return masked_softmax(self.layers(tokens_BND)[..., 0], mask_BN)


class SimilarityAttention(nn.Module):
    """Weighted sum over the last dimension of similarities: sum_n s_n (softmax(s / 0.01) M)_n, with a learned matrix M.

    M starts as the identity. More than `size` similarities are summed as if M went on as the identity, and padding gets
    no weight [ours].
    Source: X-CLIP (arXiv 2207.07285).
    """

    def __init__(self, size: int):
        super().__init__()
        self.matrix_NN = nn.Parameter(torch.eye(size))

    def forward(self, sims: Tensor, mask: Tensor) -> Tensor:
        """[..., N] and a mask that fits it -> [...]. Nothing but padding gives 0."""
        length, size = sims.shape[-1], len(self.matrix_NN)
        matrix_NN = self.matrix_NN[:length, :length]
        if length > size:
            matrix_NN = torch.block_diag(matrix_NN, torch.eye(length - size).to(matrix_NN))
        weights = (sims / XCLIP_TEMPERATURE).masked_fill(~mask, -1e9).softmax(-1) @ matrix_NN
        return (weights * mask * sims).sum(-1)
