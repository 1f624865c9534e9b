"""Post-processing of scores after the model. Pure numpy, with float64 inside.

A `deployable` method answers one query at a time with a bank of training captions, so a search engine can use it. The
other methods use all test queries at once: they give an upper bound for papers, which no single user's query can reach.
Scores are means of the levels' similarities, about in [-1, 1]; the scales below are meant for such scores.

What validation chooses, scales and level weights, starts from a default. Another choice is taken only where the
validation split has at least `FEWEST_CLIPS` captioned clips and is clearly better with it.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hcmi.evaluate.metrics import by_item, ranks

Tried = TypeVar("Tried")
DEPLOYABLE = {"qb_norm": True, "sinkhorn_single": True, "dsl": False, "sinkhorn": False}
# Inverse temperatures for such scores, taken where validation does not choose another. Measured on CLIP's MSR-VTT 1k-A
# matrix and on Scenes: Sinkhorn is best at 70 to 150, the methods with a bank at 20 to 50, so that one scale for all
# costs 2 points of R@1 or more. The logit scale of a model is no better. It depends on how long the model was trained:
# on Scenes it is 24 for each level, which costs Sinkhorn on one level 2 to 6 points.
SCALES = {"qb_norm": 20.0,              # QB-Norm's published value
          "sinkhorn_single": 50.0,      # [ours]
          "dsl": 100.0,                 # CLIP's logit scale, which CAMoE and later work use
          "sinkhorn": 100.0}            # [ours] as DSL's
SCALES_TRIED = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)     # [ours]
SINKHORN_STEPS = 10     # [ours]
WEIGHT_STEP = 0.5       # level weights are multiples of it [ours]
# By how much a choice must beat the default on validation, and on how many clips [ours]. Measured for level weights,
# which were chosen on a few clips and tried on 500 others. Where equal weights are best, one standard error and 50
# clips led to worse ones in 40 to 70 of 100 draws; two errors led there in none (Scenes) or 5 (MSR-VTT with noise).
# Where noise spoils one or two levels, two errors and 50 clips gave 60 to 99 % of the possible gain in R@1. With 20
# clips the weights were sometimes worse than equal ones, by up to 9 points.
STANDARD_ERRORS = 2.0
FEWEST_CLIPS = 50


def qb_norm(sims_QV: NDArray, bank_NV: NDArray, scale: float = SCALES["qb_norm"]) -> NDArray:
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


def sinkhorn_single(sims_QV: NDArray, bank_NV: NDArray, scale: float = SCALES["sinkhorn_single"],
                    steps: int = SINKHORN_STEPS) -> NDArray:
    """Sinkhorn for one query at a time: each video's potential, computed on the bank, is added to the query's scores.

    Scores can be compared within a row only.
    Source: after Yakovlev et al., SIGIR 2023, who add the query to the bank. Ours does not, so that the potentials are
    computed once.
    """
    _, video_V = _potentials(scale * np.asarray(bank_NV, np.float64), steps)
    return np.asarray(sims_QV, np.float64) + video_V[None] / scale


def dsl(sims_QV: NDArray, scale: float = SCALES["dsl"]) -> NDArray:
    """Dual softmax: the scores times each video's softmax over all queries. Transpose them for video to text.

    Source: CAMoE, arXiv 2109.04290.
    """
    sims_QV = np.asarray(sims_QV, np.float64)
    return sims_QV * np.exp(scale * sims_QV - _log_sum_exp(scale * sims_QV, 0)[None])


def sinkhorn(sims_QV: NDArray, scale: float = SCALES["sinkhorn"], steps: int = SINKHORN_STEPS) -> NDArray:
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


def choose_scale(at_scale: Callable[[float], NDArray], caption_video: Sequence[int] | NDArray, direction: str,
                 default: float) -> float:
    """The scale that does best on validation, of `SCALES_TRIED`, if it is clearly better than `default`.

    `at_scale`: scale -> scores [Q, V] of the validation split. `direction`: `t2v` or `v2t`.
    Source: ours.
    """
    tried = (default, *SCALES_TRIED)
    return _best_or_default(tried, [_reciprocal_ranks(at_scale(scale), caption_video)[direction] for scale in tried])


def choose_level_weights(levels_val: dict[str, NDArray], caption_video: Sequence[int] | NDArray) -> dict[str, float]:
    """The weights of the levels that do best on validation, if they are clearly better than equal weights.

    They sum to the number of levels. With fewer than `FEWEST_CLIPS` captioned clips, they are equal.

    `levels_val`: level -> scores [Q, V] of the validation split (arrays or CPU tensors). `caption_video`: row in V of
    each caption. All multiples of 1/2 are tried. They are compared by the reciprocal rank in both directions, which
    varies less than R@1 on a few hundred clips.
    Source: ours.
    """
    names = list(levels_val)
    if len(np.unique(caption_video)) < FEWEST_CLIPS:
        return dict.fromkeys(names, 1.0)
    sims_LQV = np.stack([np.asarray(levels_val[name], np.float32) for name in names])
    whole = round(len(names) / WEIGHT_STEP)
    tried = [tuple(WEIGHT_STEP * step for step in steps) for steps in product(range(whole + 1), repeat=len(names))
             if sum(steps) == whole]
    tried.sort(key=lambda weights: sum((weight - 1) ** 2 for weight in weights))
    scores = []
    for weights in tried:
        combined_QV = np.tensordot(np.array(weights, np.float32), sims_LQV, 1)
        scores.append(np.sum(list(_reciprocal_ranks(combined_QV, caption_video).values()), axis=0))
    return dict(zip(names, _best_or_default(tried, scores), strict=True))


def _reciprocal_ranks(sims_QV: NDArray, caption_video: Sequence[int] | NDArray) -> dict[str, NDArray]:
    """Direction -> one figure for each captioned video. For text to video, it is the mean over the video's captions."""
    caption_video = np.asarray(caption_video)
    captions, videos = by_item(caption_video, sims_QV.shape[1]), np.unique(caption_video)
    own = [captions[video] for video in videos]
    by_caption = 1 / ranks(sims_QV, caption_video).expected
    return {"t2v": np.array([by_caption[rows].mean() for rows in own]),
            "v2t": 1 / ranks(sims_QV.T[videos], own).expected}


def _best_or_default(tried: Sequence[Tried], scores: Sequence[NDArray]) -> Tried:
    """The choice with the best mean score. The first one, unless the best is better by `STANDARD_ERRORS`."""
    best = max(range(len(tried)), key=lambda place: scores[place].mean())
    gained = scores[best] - scores[0]       # paired over clips
    return tried[best] if gained.mean() > STANDARD_ERRORS * gained.std() / np.sqrt(len(gained)) else tried[0]
