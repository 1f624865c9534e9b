"""The training losses (docs/method.md): pure functions of similarity matrices.

Matrices [N * B, B] have texts as rows and videos as columns. The first B rows are one caption of each clip, the next B
rows another caption of each, and so on; N is the number of captions per clip. `positives_BB[i, j]`: video j counts as
the same as video i (adaptive label denoising). Its diagonal is always true.
"""

import torch
from torch import Tensor

ROUNDING = 1e-6         # so that equal items count as the same wherever they are in the batch


def contrastive(sims_QB: Tensor, scale: Tensor, positives_BB: Tensor | None = None, mode: str = "off",
                by_video_QB: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of one level. Extra positives are targets (`positive`), left out (`mask`), or ignored (`off`).

    `by_video_QB`: similarities for the half in which each video ranks the texts, if it has others than the other half.

        L_v2t = -(1/B) sum_i (1/|P_i|) sum_{j in P_i} log softmax_j(scale * S[j, i])

    P_i are the captions of clip i, and with `positive` also those of the clips that count as the same.
    Source: the paper. `mask` and several captions per clip are [ours].
    """
    own_QB, same_QB = _own_and_same(sims_QB, positives_BB)
    targets_QB = same_QB if mode == "positive" else own_QB
    logits_QB, by_video_QB = (scale * sims for sims in (sims_QB, sims_QB if by_video_QB is None else by_video_QB))
    if mode == "mask":
        logits_QB, by_video_QB = (logits.masked_fill(same_QB & ~own_QB, -1e9) for logits in (logits_QB, by_video_QB))
    return -(_mean_log_likelihood(logits_QB, targets_QB) + _mean_log_likelihood(by_video_QB.T, targets_QB.T)) / 2


def _own_and_same(sims_QB: Tensor, positives_BB: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each text's own video, and the videos that count as the same as that one: bool [N * B, B] each."""
    num_texts, num_videos = sims_QB.shape
    own_BB = torch.eye(num_videos, dtype=torch.bool, device=sims_QB.device)
    same_BB = own_BB if positives_BB is None else positives_BB.T
    return own_BB.repeat(num_texts // num_videos, 1), same_BB.repeat(num_texts // num_videos, 1)


def _mean_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    log_probabilities = logits.float().log_softmax(1)
    return (log_probabilities.masked_fill(~targets, 0).sum(1) / targets.sum(1).clamp(min=1)).mean()


def same_meaning(view1_BD: Tensor, view2_BD: Tensor) -> Tensor:
    """Adaptive label denoising: which items of a batch count as the same, bool [B, B], diagonal true.

        1/4 sum_{k,l} cos(V_i^k, V_j^l) >= cos(V_i^1, V_i^2)

    The threshold is the agreement between the anchor's two views, so the matrix need not be symmetric. There is no
    gradient.
    Source: the paper's authors (docs/method.md).
    """
    views = [torch.nn.functional.normalize(view.detach().float(), dim=-1) for view in (view1_BD, view2_BD)]
    cosines_KBB = torch.stack([a @ b.T for a in views for b in views])
    own_B = cosines_KBB[1].diagonal()
    same_BB = cosines_KBB.mean(0) >= own_B[:, None] - ROUNDING
    return same_BB | torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device)


def margin(sims_QB: Tensor, theta: float, positives_BB: Tensor | None = None) -> Tensor:
    """Marginal sample enhancement: hinge on the hardest negative of each text and of its video, averaged over texts.

        1/2 ([S(V_i, T_j) - S(V_i, T_i) + theta]_+ + [S(T_i, V_k) - S(T_i, V_i) + theta]_+)

    Pairs that denoising counts as positive are never negatives. A batch of one clip has no negatives and gives 0.
    Source: the paper's authors (docs/method.md); theta is [ours].
    """
    _, same_QB = _own_and_same(sims_QB, positives_BB)
    own_Q = sims_QB.unflatten(0, (-1, sims_QB.shape[1])).diagonal(dim1=1, dim2=2).flatten()   # a mask waits for a GPU
    wrong_QB = sims_QB.masked_fill(same_QB, -torch.inf)
    hardest_video_Q, hardest_text_B = wrong_QB.amax(1), wrong_QB.amax(0)
    hardest_text_Q = hardest_text_B.repeat(len(own_Q) // len(hardest_text_B))
    return ((hardest_text_Q - own_Q + theta).relu() + (hardest_video_Q - own_Q + theta).relu()).mean() / 2


def balance(sims_QB: Tensor, scale: Tensor, positives_BB: Tensor | None = None) -> Tensor:
    """Of two videos that are hard to tell apart, neither scores higher than the other for the captions of both. [ours]

        m_ik = max_n S_n[i, i] - S_n[i, k],    sum_k p_ik (scale (m_ik - m_ki))^2, averaged over i

    S_n[i, k] is the similarity of caption n of clip i and video k. m_ik is by how much video i is ahead of video k for
    the caption of i that tells them apart best; a caption that is true of both tells nothing. A video that scores
    higher for both clips' captions is ahead by more for its own, and by less behind for the other's. p_ik, softmax over
    k of -scale (m_ik + m_ki) / 2, counts the videos that are easily confused with i. It has no gradient, and `scale`
    gets none. Pairs that denoising counts as positive do not count. A batch of one clip gives 0.
    Videos that win whatever is asked are called hubs (Radovanovic et al. 2010).
    """
    sims_NBB, scale = sims_QB.float().unflatten(0, (-1, sims_QB.shape[1])), scale.detach()
    ahead_BB = (sims_NBB.diagonal(dim1=1, dim2=2)[:, :, None] - sims_NBB).amax(0)
    _, same_BB = _own_and_same(ahead_BB, positives_BB)
    same_BB = same_BB | same_BB.T
    nearness_BB = (-scale * (ahead_BB + ahead_BB.T).detach() / 2).masked_fill(same_BB, -1e9)
    shares_BB = nearness_BB.softmax(1).masked_fill(same_BB, 0)
    return (shares_BB * (scale * (ahead_BB - ahead_BB.T)) ** 2).sum(1).mean()
