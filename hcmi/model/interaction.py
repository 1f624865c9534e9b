"""Similarities between token sets (docs/method.md). Tokens have length 1; weights sum to 1, and are 0 on padding."""

import torch
from torch import Tensor


def cosine(texts_QD: Tensor, videos_VD: Tensor) -> Tensor:
    """[Q, V] for unit vectors."""
    return texts_QD @ videos_VD.T


def weighted_token_interaction(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor,
                               video_weights_VT: Tensor) -> Tensor:
    """S = 1/2 [sum_w u_w max_t cos(w, t) + sum_t v_t max_w cos(w, t)], in [-1, 1], shape [Q, V].

    Uniform weights give FILIP's rule. A token set of nothing but padding scores as if nothing matched: -1 on its side.
    Source: DRL (arXiv 2203.07111), used for frame-word and clip-phrase. [ours]
    """
    num_texts, num_words, dim = texts_QWD.shape
    num_videos, num_frames, _ = videos_VTD.shape
    sims_QWVT = (texts_QWD.reshape(-1, dim) @ videos_VTD.reshape(-1, dim).T).view(num_texts, num_words, num_videos,
                                                                                num_frames)
    # Adding a bias to padding needs one large tensor instead of two. A cosine is at least -1, so clamping removes it.
    if not bool((video_weights_VT > 0).all()):
        sims_QWVT = sims_QWVT + torch.where(video_weights_VT > 0, 0.0, -4.0).to(sims_QWVT.dtype)
    if not bool((text_weights_QW > 0).all()):
        sims_QWVT = sims_QWVT + torch.where(text_weights_QW > 0, 0.0, -4.0).to(sims_QWVT.dtype)[:, :, None, None]
    per_word_QWV = sims_QWVT.max(3).values.clamp(min=-1)
    per_frame_QVT = sims_QWVT.max(1).values.clamp(min=-1)
    words_QV = torch.einsum("qwv,qw->qv", per_word_QWV, text_weights_QW.to(sims_QWVT.dtype))
    frames_QV = torch.einsum("qvt,vt->qv", per_frame_QVT, video_weights_VT.to(sims_QWVT.dtype))
    return (words_QV + frames_QV) / 2


def padded_token_interaction(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor,
                             num_words: int, num_frames: int) -> Tensor:
    """`weighted_token_interaction` as DRL computes it, where padding takes part in the maxima and scores 0.

    DRL pads every text to `num_words` and every video to `num_frames`, so a maximum over a shorter one is at least 0.
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
