"""The figures of one split from its scores: raw, after post-processing, and with shared captions counted as right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hcmi.evaluate.metrics import RECALL_AT, Ranks, by_item, ranks, summary
from hcmi.evaluate.postprocess import (
    DEPLOYABLE,
    SCALES,
    choose_scale,
    dsl,
    qb_norm,
    sinkhorn,
    sinkhorn_single,
)

SEED = 0        # of the bootstrap: the same in all runs that are compared


@dataclass(frozen=True)
class SplitMetrics:
    """Metrics of a split, which knows the clip of each caption.

    Scores are [Q, V] for text to video and [V, Q] for video to text. Only clips that have a caption are queries of
    video to text.
    """

    caption_video: NDArray      # [Q] each caption's row in V
    num_videos: int
    samples: int                # of the bootstrap

    @property
    def captioned(self) -> NDArray:
        """Rows of the videos that have a caption."""
        return np.unique(self.caption_video)

    def t2v_ranks(self, sims_QV: NDArray) -> Ranks:
        return ranks(sims_QV, self.caption_video)

    def v2t_ranks(self, sims_VQ: NDArray) -> Ranks:
        captions = by_item(self.caption_video, self.num_videos)
        rows = self.captioned
        chosen_VQ = sims_VQ if len(rows) == self.num_videos else sims_VQ[rows]
        return ranks(chosen_VQ, [captions[row] for row in rows])

    def v2t_ranks_by_clip(self, sims_VQ: NDArray) -> Ranks:
        """Each clip ranked among the captioned clips by its best caption, as CLIP4Clip has it.

        `v2t_ranks` ranks the best of its captions among all captions, of which other clips have many. R@1 is the same
        where no scores tie: captions of another clip that tie with it count one by one there, and once here.
        """
        order = np.argsort(self.caption_video, kind="stable")
        starts = np.searchsorted(self.caption_video[order], self.captioned)
        best_CC = np.stack([np.maximum.reduceat(sims_VQ[row][order], starts) for row in self.captioned])
        return ranks(best_CC, np.arange(len(best_CC)))

    def t2v_summary(self, found: Ranks) -> dict:
        """Figures of text to video; captions of one clip are drawn together for the interval."""
        return summary(found, np.random.default_rng(SEED), self.samples, groups=self.caption_video)

    def v2t_summary(self, found: Ranks) -> dict:
        return summary(found, np.random.default_rng(SEED), self.samples)

    def both(self, sims_QV: NDArray) -> dict:
        """Figures of both directions."""
        return {"t2v": self.t2v_summary(self.t2v_ranks(sims_QV)), "v2t": self.v2t_summary(self.v2t_ranks(sims_QV.T))}


def chance(split: SplitMetrics) -> dict[str, dict[str, float]]:
    """Direction -> R@K in per cent of a ranking that knows nothing: all scores are equal."""
    equal_QV = np.zeros((len(split.caption_video), split.num_videos), np.int8)
    return {direction: {f"R@{k}": round(float(100 * found.hits_at(k).mean()), 4) for k in RECALL_AT}
            for direction, found in (("t2v", split.t2v_ranks(equal_QV)), ("v2t", split.v2t_ranks(equal_QV.T)))}


def post_processed(split: SplitMetrics, sims_QV: NDArray, bank_NV: NDArray | None,
                   chosen: dict[str, dict[str, float]] | None = None) -> dict:
    """Method -> figures. The methods with a bank of captions give text to video only: there is no bank of videos.

    `chosen`: method -> direction -> scale, from `choose_scales` on another split; without it, the scales of `SCALES`.
    """
    figures: dict[str, dict] = {}
    for name, directions in _methods(sims_QV, bank_NV).items():
        scales = chosen[name] if chosen else dict.fromkeys(directions, SCALES[name])
        entry = {"deployable": DEPLOYABLE[name], "scale": scales, "scale_from": "validation" if chosen else "default"}
        for direction, at_scale in directions.items():
            scores_QV = at_scale(scales[direction])
            entry[direction] = (split.t2v_summary(split.t2v_ranks(scores_QV)) if direction == "t2v" else
                                split.v2t_summary(split.v2t_ranks(scores_QV.T)))
        figures[name] = entry
    return figures


def choose_scales(caption_video: NDArray, sims_QV: NDArray, bank_NV: NDArray | None) -> dict[str, dict[str, float]]:
    """Method -> direction -> scale, chosen by the scores of the validation split."""
    return {name: {direction: choose_scale(at_scale, caption_video, direction, SCALES[name])
                   for direction, at_scale in directions.items()}
            for name, directions in _methods(sims_QV, bank_NV).items()}


def _methods(sims_QV: NDArray, bank_NV: NDArray | None) -> dict[str, dict[str, Callable[[float], NDArray]]]:
    """Method -> direction -> the scores [Q, V] that it gives at a scale."""
    methods: dict[str, dict[str, Callable[[float], NDArray]]] = {}
    if bank_NV is not None:
        methods["qb_norm"] = {"t2v": lambda scale: qb_norm(sims_QV, bank_NV, scale)}
        methods["sinkhorn_single"] = {"t2v": lambda scale: sinkhorn_single(sims_QV, bank_NV, scale)}
    methods["dsl"] = {"t2v": lambda scale: dsl(sims_QV, scale), "v2t": lambda scale: dsl(sims_QV.T, scale).T}
    methods["sinkhorn"] = dict.fromkeys(("t2v", "v2t"), lambda scale: sinkhorn(sims_QV, scale))
    return methods


def shared_captions(split: SplitMetrics, captions: Sequence[str], sims_QV: NDArray) -> dict | None:
    """Raw figures in which every clip with the same caption is a right answer, and every caption of such a clip.

    `raw` follows the published protocols, where a caption belongs to one clip: other clips with the same words (apart
    from capitals and spaces) count as wrong. `captions` is the number of captions that several clips have. None when
    there is no such caption.
    """
    _, wording_Q = np.unique([" ".join(caption.casefold().split()) for caption in captions], return_inverse=True)
    captions_of = by_item(wording_Q, wording_Q.max() + 1)       # wording -> captions with these words
    videos_of = [np.unique(split.caption_video[rows]) for rows in captions_of]
    num_shared = sum(len(rows) for rows, videos in zip(captions_of, videos_of, strict=True) if len(videos) > 1)
    if not num_shared:
        return None
    own = by_item(split.caption_video, split.num_videos)
    t2v = ranks(sims_QV, [videos_of[wording] for wording in wording_Q])
    v2t = ranks(sims_QV.T[split.captioned],
                [np.concatenate([captions_of[wording] for wording in np.unique(wording_Q[own[video]])])
                 for video in split.captioned])
    return {"captions": num_shared, "t2v": split.t2v_summary(t2v), "v2t": split.v2t_summary(v2t)}
