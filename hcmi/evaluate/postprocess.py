"""Post-processing of scores after the model. Pure numpy, with float64 inside.

A `deployable` method answers one query at a time with a bank of training captions, so a search engine can use it. The
other methods use all test queries at once: they give an upper bound for papers, which no single user's query can reach.
Scores are mean cosines, in [-1, 1]; the scales below are meant for such scores.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hcmi.evaluate.metrics import by_item, ranks

DEPLOYABLE = {"qb_norm": True, "sinkhorn_single": True, "dsl": False, "sinkhorn": False}
QB_SCALE = 20.0         # inverse temperature; QB-Norm's published value
DSL_SCALE = 100.0       # CLIP's logit scale, which CAMoE and later work use
SINKHORN_SCALE = 20.0   # [ours] as QB-Norm's
SINKHORN_STEPS = 10     # [ours]
WEIGHT_STEP = 0.5       # level weights are multiples of it [ours]


def qb_norm(sims_QV: NDArray, bank_NV: NDArray, scale: float = QB_SCALE) -> NDArray:
    """Query-bank normalisation by dynamic inverted softmax. Each row depends on its query and the bank only.

    If a query's best video is also the best of some query of the bank, the scores of the query are divided (in logs) by
    what the bank gives each video. Other queries keep their scores. Returned scores can be compared within a row only.
    Source: Bogolin et al., arXiv 2112.12777.
    """
    sims_QV, bank_NV = np.asarray(sims_QV, np.float64), np.asarray(bank_NV, np.float64)
    popular = np.zeros(sims_QV.shape[1], bool)
    popular[bank_NV.argmax(1)] = True
    normalised_QV = sims_QV - _log_sum_exp(scale * bank_NV, 0)[None] / scale
    return np.where(popular[sims_QV.argmax(1)][:, None], normalised_QV, sims_QV)


def sinkhorn_single(sims_QV: NDArray, bank_NV: NDArray, scale: float = SINKHORN_SCALE,
                    steps: int = SINKHORN_STEPS) -> NDArray:
    """Sinkhorn for one query at a time: each video's potential, computed on the bank, is added to the query's scores.

    Scores can be compared within a row only.
    Source: after Yakovlev et al., SIGIR 2023, who add the query to the bank. Ours does not, so that the potentials are
    computed once.
    """
    _, video_V = _potentials(scale * np.asarray(bank_NV, np.float64), steps)
    return np.asarray(sims_QV, np.float64) + video_V[None] / scale


def dsl(sims_QV: NDArray, scale: float = DSL_SCALE) -> NDArray:
    """Dual softmax: the scores times each video's softmax over all queries. Transpose them for video to text.

    Source: CAMoE, arXiv 2109.04290.
    """
    sims_QV = np.asarray(sims_QV, np.float64)
    return sims_QV * np.exp(scale * sims_QV - _log_sum_exp(scale * sims_QV, 0)[None])


def sinkhorn(sims_QV: NDArray, scale: float = SINKHORN_SCALE, steps: int = SINKHORN_STEPS) -> NDArray:
    """Log of the transport plan between all queries and all videos after `steps` rounds. Its columns are exact.

    Every query has mass 1/Q and every video 1/V.
    Source: Cuturi 2013.
    """
    logits_QV = scale * np.asarray(sims_QV, np.float64)
    query_Q, video_V = _potentials(logits_QV, steps)
    return logits_QV + query_Q[:, None] + video_V[None]


def _potentials(logits_QV: NDArray, steps: int) -> tuple[NDArray, NDArray]:
    num_queries, num_videos = logits_QV.shape
    video_V = np.zeros(num_videos)
    query_Q = np.zeros(num_queries)
    for _ in range(steps):
        query_Q = -np.log(num_queries) - _log_sum_exp(logits_QV + video_V[None], 1)
        video_V = -np.log(num_videos) - _log_sum_exp(logits_QV + query_Q[:, None], 0)
    return query_Q, video_V


def _log_sum_exp(values: NDArray, axis: int) -> NDArray:
    peak = values.max(axis, keepdims=True)
    return np.log(np.exp(values - peak).sum(axis)) + peak.squeeze(axis)


def choose_level_weights(levels_val: dict[str, NDArray], caption_video: Sequence[int] | NDArray) -> dict[str, float]:
    """The weights of the levels that do best on the validation split. They sum to the number of levels.

    `levels_val`: level -> scores [Q, V] of the validation split (arrays or CPU tensors). `caption_video`: row in V of
    each caption. All multiples of 1/2 are tried. They are compared by the reciprocal rank in both directions, which
    varies less than R@1 on a few hundred clips. Of the weights within one standard error of the best (paired over
    videos), those nearest to equal weights are taken: on 300 Scenes clips, the best weights did worse on other clips
    than equal weights.
    """
    names = list(levels_val)
    sims_LQV = np.stack([np.asarray(levels_val[name], np.float32) for name in names])
    caption_video = np.asarray(caption_video)
    captions = by_item(caption_video, sims_LQV.shape[2])
    videos = np.unique(caption_video)
    whole = round(len(names) / WEIGHT_STEP)
    tried = [tuple(WEIGHT_STEP * step for step in steps) for steps in product(range(whole + 1), repeat=len(names))
             if sum(steps) == whole]
    tried.sort(key=lambda weights: sum((weight - 1) ** 2 for weight in weights))
    scores = []
    for weights in tried:
        combined_QV = np.tensordot(np.array(weights, np.float32), sims_LQV, 1)
        by_caption = 1 / ranks(combined_QV, caption_video).expected
        by_video = 1 / ranks(combined_QV.T[videos], [captions[video] for video in videos]).expected
        scores.append(by_video + np.array([by_caption[captions[video]].mean() for video in videos]))
    best = max(scores, key=np.mean)
    for weights, score in zip(tried, scores, strict=True):
        lost = best - score
        if lost.mean() <= lost.std() / np.sqrt(len(videos)):
            return dict(zip(names, weights, strict=True))
    raise AssertionError("the best is within one standard error of itself")
