"""Similarities between token sets (docs/method.md).

Vectors have length 1, except that the length of a sentence is its weight. Weights of tokens sum to 1, and are 0 on
padding.
"""

import torch
from torch import Tensor

from hcmi.model.fused import fused_token_interaction, has_kernels_for

# How much of a fine level `told` is per unit of coverage: at the largest coverage, 2, both sides count alike. [ours]
TOLD_SHARE = 0.25


def cosine(texts_QD: Tensor, videos_VD: Tensor) -> Tensor:
    """[Q, V] for unit vectors; the length of a text's vector multiplies its row."""
    return texts_QD @ videos_VD.T


def token_interaction(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor,
                      ) -> tuple[Tensor, Tensor]:
    """Both sides of the weighted token interaction, in [-1, 1], shape [Q, V] each.

        shown = sum_w u_w max_t cos(w, t)       how far the video shows the text: each word's best frame
        told = sum_t v_t max_w cos(w, t)        how far the text tells the video: each frame's best word

    A word has no match in a video of nothing but padding, nor a frame in a text of nothing but padding: such matches
    score -1. The side of the empty token set itself is 0.
    Source: DRL (arXiv 2203.07111), whose score is the mean of both sides. `shown` alone is the late interaction
    (MaxSim) of ColBERT (arXiv 2004.12832) with learned weights.
    """
    if has_kernels_for(texts_QWD, videos_VTD):
        return fused_token_interaction(texts_QWD, text_weights_QW, videos_VTD, video_weights_VT)
    texts_QWD, no_word_Q = _fill_padding(texts_QWD, text_weights_QW > 0)
    videos_VTD, no_frame_V = _fill_padding(videos_VTD, video_weights_VT > 0)
    num_texts, num_words, dim = texts_QWD.shape
    num_videos, num_frames, _ = videos_VTD.shape
    sims_QWVT = (texts_QWD.reshape(-1, dim) @ videos_VTD.reshape(-1, dim).T).view(num_texts, num_words, num_videos,
                                                                                num_frames)
    # on a CPU, the backward pass of `amax` takes twice as long as that of `max`
    per_word_QWV = sims_QWVT.max(3).values.masked_fill(no_frame_V, -1)
    per_frame_QVT = sims_QWVT.max(1).values.masked_fill(no_word_Q[:, None, None], -1)
    return (torch.einsum("qwv,qw->qv", per_word_QWV, text_weights_QW.to(sims_QWVT.dtype)),
            torch.einsum("qvt,vt->qv", per_frame_QVT, video_weights_VT.to(sims_QWVT.dtype)))


def _fill_padding(tokens_BND: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens whose padding repeats a valid token, which changes no maximum, and which rows have no valid token."""
    if bool(mask_BN.all()):
        return tokens_BND, torch.zeros(len(mask_BN), dtype=torch.bool, device=mask_BN.device)
    first_BD = tokens_BND[torch.arange(len(mask_BN), device=mask_BN.device), mask_BN.int().argmax(1)]
    return torch.where(mask_BN[..., None], tokens_BND, first_BD[:, None]), ~mask_BN.any(1)


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
