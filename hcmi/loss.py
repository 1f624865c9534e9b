"""The training loss (method sections 4 to 6): pure functions of similarity matrices.

Matrices have texts as rows and videos as columns; pair i is on the diagonal. `positives_BB[i, j]`: video j counts as
the same as video i (adaptive label denoising); its diagonal is always true.
"""

import torch
from torch import Tensor

ROUNDING = 1e-6         # equal items must count as the same whatever their places in the batch


def contrastive(sims_BB: Tensor, scale: Tensor, positives_BB: Tensor | None = None, mode: str = "off") -> Tensor:
    """Symmetric InfoNCE of one level, with extra positives (`positive`) or with them left out (`mask`).

        L_v2t = -(1/B) sum_i (1/|P_i|) sum_{j in P_i} log softmax_j(scale * S[j, i])

    Source: paper, method section 4. `mask` is [ours].
    """
    logits_VQ = scale * sims_BB.T
    targets_VQ = torch.eye(len(sims_BB), dtype=torch.bool, device=sims_BB.device)
    if positives_BB is not None and mode == "positive":
        targets_VQ = positives_BB
    elif positives_BB is not None and mode == "mask":
        logits_VQ = logits_VQ.masked_fill(positives_BB & ~targets_VQ, -1e9)
    v2t = _mean_log_likelihood(logits_VQ, targets_VQ)
    if positives_BB is not None and mode == "mask":
        eye = torch.eye(len(sims_BB), dtype=torch.bool, device=sims_BB.device)
        t2v = _mean_log_likelihood((scale * sims_BB).masked_fill(positives_BB.T & ~eye, -1e9), eye)
    else:
        t2v = _mean_log_likelihood(logits_VQ.T, targets_VQ.T)
    return -(t2v + v2t) / 2


def _mean_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    log_probabilities = logits.float().log_softmax(1)
    return (log_probabilities.masked_fill(~targets, 0).sum(1) / targets.sum(1).clamp(min=1)).mean()


def same_meaning(view1_BD: Tensor, view2_BD: Tensor) -> Tensor:
    """Adaptive label denoising: which items of a batch count as the same, bool [B, B], diagonal true.

        1/4 sum_{k,l} cos(V_i^k, V_j^l) >= cos(V_i^1, V_i^2)

    The threshold is the anchor's own agreement between its two views, so the matrix need not be symmetric. No gradient.
    Source: the paper's authors, method section 5.
    """
    views = [torch.nn.functional.normalize(view.detach().float(), dim=-1) for view in (view1_BD, view2_BD)]
    cosines_KBB = torch.stack([a @ b.T for a in views for b in views])
    own_B = cosines_KBB[1].diagonal()
    same_BB = cosines_KBB.mean(0) >= own_B[:, None] - ROUNDING
    return same_BB | torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device)


def margin(sims_BB: Tensor, theta: float, positives_BB: Tensor | None = None) -> Tensor:
    """Marginal sample enhancement: hinge on the hardest negative of each text and of each video, mean over the batch.

        1/2 ([S(V_i, T_j) - S(V_i, T_i) + theta]_+ + [S(T_i, V_k) - S(T_i, V_i) + theta]_+)

    Pairs that denoising calls positive are never mined. A batch of one has no negatives: 0.
    Source: the paper's authors, method section 6; theta is [ours].
    """
    own_B = sims_BB.diagonal()
    same_BB = torch.eye(len(sims_BB), dtype=torch.bool, device=sims_BB.device)
    same_VQ = same_BB if positives_BB is None else positives_BB
    hardest_text_B = sims_BB.T.masked_fill(same_VQ, -torch.inf).amax(1)
    hardest_video_B = sims_BB.masked_fill(same_VQ.T, -torch.inf).amax(1)
    return ((hardest_text_B - own_B + theta).relu() + (hardest_video_B - own_B + theta).relu()).mean() / 2
