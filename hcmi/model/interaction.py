"""Similarities between token sets (docs/method.md).

Vectors have length 1, except that the length of a sentence is its weight. Weights of tokens sum to 1, and are 0 on
padding.
"""

import torch
from torch import Tensor

from hcmi.model.fused import fused_max_sim, has_kernels_for


def cosine(texts_QD: Tensor, videos_VD: Tensor) -> Tensor:
    """[Q, V] for unit vectors; the length of a text's vector multiplies its row."""
    return texts_QD @ videos_VD.T


def weighted_max_sim(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_mask_VT: Tensor) -> Tensor:
    """S = sum_w u_w max_t cos(w, t), in [-1, 1], shape [Q, V]: each word's best frame, and nothing for other frames.

    A word has no match in a video of nothing but padding, which scores -1. A text of nothing but padding scores 0.
    Source: late interaction (MaxSim) of ColBERT (arXiv 2004.12832) with the learned token weights of DRL (arXiv
    2203.07111). [ours]
    """
    if has_kernels_for(texts_QWD, videos_VTD):
        return fused_max_sim(texts_QWD, text_weights_QW, videos_VTD, video_mask_VT)
    num_texts, num_words, dim = texts_QWD.shape
    num_videos, num_frames, _ = videos_VTD.shape
    padded = not bool(video_mask_VT.all())
    if padded:      # padding repeats a valid frame, which changes no maximum
        first_VD = videos_VTD[torch.arange(num_videos, device=videos_VTD.device), video_mask_VT.int().argmax(1)]
        videos_VTD = torch.where(video_mask_VT[..., None], videos_VTD, first_VD[:, None])
    sims_QWVT = (texts_QWD.reshape(-1, dim) @ videos_VTD.reshape(-1, dim).T).view(num_texts, num_words, num_videos,
                                                                                num_frames)
    best_QWV = sims_QWVT.max(3).values      # on a CPU, the backward pass of `amax` takes twice as long
    if padded:
        best_QWV = best_QWV.masked_fill(~video_mask_VT.any(1), -1)
    return torch.einsum("qwv,qw->qv", best_QWV, text_weights_QW.to(best_QWV.dtype))


def padded_token_interaction(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor,
                             num_words: int, num_frames: int) -> Tensor:
    """S = 1/2 [sum_w u_w max_t cos(w, t) + sum_t v_t max_w cos(w, t)], shape [Q, V]: DRL's weighted token interaction.

    Padding takes part in the maxima and scores 0. DRL pads every text to `num_words` and every video to `num_frames`,
    so a maximum over a shorter one is at least 0.
    The result depends on these lengths and not on how far the tensors are padded.
    Source: DRL (arXiv 2203.07111) and its public code.
    """
    text_mask_QW, video_mask_VT = text_weights_QW > 0, video_weights_VT > 0
    sims_QWVT = torch.einsum("qwd,vtd->qwvt", texts_QWD, videos_VTD)
    lowest_Q, lowest_V = (torch.where(mask_BN.sum(1) < length, 0.0, -torch.inf).to(sims_QWVT.dtype)
                          for mask_BN, length in ((text_mask_QW, num_words), (video_mask_VT, num_frames)))
    per_word_QWV = sims_QWVT.masked_fill(~video_mask_VT, -torch.inf).amax(3).maximum(lowest_V)
    per_frame_QVT = sims_QWVT.masked_fill(~text_mask_QW[:, :, None, None], -torch.inf).amax(1).maximum(
        lowest_Q[:, None, None])
    words_QV = torch.einsum("qwv,qw->qv", per_word_QWV, text_weights_QW.to(sims_QWVT.dtype))
    frames_QV = torch.einsum("qvt,vt->qv", per_frame_QVT, video_weights_VT.to(sims_QWVT.dtype))
    return (words_QV + frames_QV) / 2
