"""R@1 of a batch without captions, estimated from how strange its clips are to the model.

A clip is strange when the vectors of its frames or parts lie far from all those of known clips, or when its frames
differ from each other as those of no known clip do: much more, much less, or at other times. How far is usual depends
on what a clip shows, so this is predicted from the vector of the whole clip and subtracted: another topic alone is not
strange. How R@1 falls with strangeness is learned from the tested clips and from copies of them that are damaged in
several ways (logistic regression).

It cannot see what looks like a usual clip but is not what people will describe: a turned picture, colours exchanged. It
underestimates falls more often than not, so its interval is wide at the lower end.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict

from hcmi.drift.label_free_recall import COVERAGE, QUANTILE, Estimate
from hcmi.drift.profile import MIN_CLIPS, unit
from hcmi.types import VideoTokens

FLOOR = 5e-4                # of 1 - cosine: what rounding to float16 leaves of equal vectors [ours]
FRAMES_EACH = 6             # of a clip's frames that are looked up; all of them tell no more [ours]
NEAREST = 1e-3              # distance of two variations that are equal [ours]
BLOCK = 512                 # vectors looked up at a time: bounds the memory
PLACES = 12                 # at which the frames of a clip are compared with their mean [ours]
ALPHA = 3.0                 # of the ridge regression; with 10 or 30, fewer unknown shapes are found [ours]
FOLDS = 10
LEAST_FALL = 5.0            # points, of damage that may say how much falls are underestimated [ours]


def strangeness(videos: VideoTokens, known: VideoTokens) -> np.ndarray:
    """[V, L] log of the distance to what is known: of frames and, where a head has them, of parts, the mean over their
    vectors; and of how the frames of a clip differ from each other.
    """
    step = max(1, videos.frames_BTD.shape[1] // FRAMES_EACH)
    levels = [(videos.frames_BTD[:, ::step], videos.frame_weights_BT[:, ::step], known.frames_BTD,
               known.frame_weights_BT), (videos.clips_BCD, videos.clip_weights_BC, known.clips_BCD,
                                         known.clip_weights_BC)]
    found = [_distance(*level) for level in levels if level[0].shape[1]]
    nearest_V = torch.cdist(variation(videos), variation(known)).amin(1)
    return np.stack([*found, nearest_V.clamp_min(NEAREST).log().numpy().astype(np.float64)], axis=1)


def variation(videos: VideoTokens) -> torch.Tensor:
    """[V, PLACES] log of one minus the cosine of frames to their mean, at places spread evenly over each clip."""
    last_V1 = (videos.frame_weights_BT > 0).sum(1, keepdim=True) - 1
    rows_VP = (torch.linspace(0, 1, PLACES) * last_V1).round().long().clamp_min(0)
    frames_VPD = videos.frames_BTD.gather(1, rows_VP[..., None].expand(-1, -1, videos.frames_BTD.shape[-1]))
    mean_V1D = torch.nn.functional.normalize(frames_VPD.mean(1, keepdim=True), dim=-1)
    return (1 - (frames_VPD * mean_V1D).sum(-1)).clamp_min(FLOOR).log()


def _distance(tokens_BND: torch.Tensor, weights_BN: torch.Tensor, known_GND: torch.Tensor,
              known_weights_GN: torch.Tensor) -> np.ndarray:
    """[B] the mean over valid tokens of the log of one minus the cosine to the nearest of the known ones."""
    bank_ND = known_GND[known_weights_GN > 0]
    nearest = torch.cat([(block @ bank_ND.T).amax(1) for block in tokens_BND.flatten(0, 1).split(BLOCK)])
    far_BN = (1 + FLOOR - nearest.view(weights_BN.shape)).clamp_min(FLOOR).log()
    valid_BN = weights_BN > 0
    return ((far_BN * valid_BN).sum(1) / valid_BN.sum(1).clamp_min(1)).numpy().astype(np.float64)


@dataclass(frozen=True)
class Clips:
    """Clips as the estimate sees them, and whether each is found with its caption (`hits_V`, where that is known)."""

    strange_VL: np.ndarray
    vectors_VD: np.ndarray
    groups_V: np.ndarray
    hits_V: np.ndarray

    @classmethod
    def of(cls, videos: VideoTokens, known: VideoTokens, groups_V: np.ndarray | None = None,
           hits_V: np.ndarray | None = None) -> "Clips":
        count = len(videos)
        return cls(strangeness(videos, known), unit(videos.video_BD.numpy()),
                   np.arange(count) if groups_V is None else groups_V, np.zeros(count) if hits_V is None else hits_V)


class RecallFromClips:
    """The estimate, fitted on tested clips and damaged copies of them.

    `damaged`: kind of damage -> the copies. `nested`: whether to learn, by leaving out one kind of damage after the
    other, how much the estimate may fall short.
    """

    def __init__(self, tested: Clips, damaged: dict[str, Clips], nested: bool = True):
        self._tested, self._damaged = tested, damaged
        self._expected = Ridge(ALPHA).fit(tested.vectors_VD, tested.strange_VL)
        folds = GroupKFold(min(FOLDS, len(np.unique(tested.groups_V))))
        unseen_VL = cross_val_predict(Ridge(ALPHA), tested.vectors_VD, tested.strange_VL, groups=tested.groups_V,
                                      cv=folds)
        beyond_VL = tested.strange_VL - unseen_VL.reshape(tested.strange_VL.shape)
        self._spread_L = beyond_VL.std(0).clip(1e-9)
        known_V = self._together(beyond_VL)
        rows = np.concatenate([known_V, *(self._excess(clips) for clips in damaged.values())])
        self._found = LogisticRegression().fit(rows[:, None], _hits(tested, damaged))
        self._known_V = self._chance(known_V)
        self._likeness = likeness(self._known_V, tested.groups_V)
        self.reference = 100 * float(tested.hits_V.mean())
        self.factor = max([1.0, *map(self._underestimated, damaged)]) if nested else 1.0

    def without(self, kind: str, nested: bool = True) -> "RecallFromClips":
        """The estimate that knows nothing of one kind of damage."""
        return RecallFromClips(self._tested, {name: clips for name, clips in self._damaged.items() if name != kind},
                               nested)

    def estimate(self, clips: Clips) -> Estimate:
        """R@1 of a batch. The upper end of its interval is what chance gives in as many unchanged clips. The lower end
        also allows the fall to be larger, by as much as it was for the damage that the estimate underestimated most.
        """
        chance_V = self._chance(self._excess(clips))
        change = float(chance_V.mean() - self._known_V.mean())
        known = self._error(self._known_V.var(), self._tested.groups_V)
        above, below = (QUANTILE * float(np.hypot(known, self._error(variance, clips.groups_V)))
                        for variance in (self._known_V.var(), chance_V.var()))
        low = min(change, self.factor * change) - below
        recall, lowest, highest = (float(np.clip(self.reference + 100 * end, 0, 100))
                                   for end in (change, low, change + above))
        return Estimate(recall, lowest, highest, COVERAGE)

    def _excess(self, clips: Clips) -> np.ndarray:
        expected_VL = self._expected.predict(clips.vectors_VD).reshape(clips.strange_VL.shape)
        return self._together(clips.strange_VL - expected_VL)

    def _together(self, beyond_VL: np.ndarray) -> np.ndarray:
        """[V] one figure from how far the levels are beyond what is usual.

        One level that is far out is enough, whatever the damage in the fit did to it; a level that is less strange than
        usual does not make up for it.
        """
        return np.log1p(((beyond_VL / self._spread_L).clip(0)**2).sum(1))

    def _chance(self, excess_V: np.ndarray) -> np.ndarray:
        return self._found.predict_proba(excess_V[:, None])[:, 1]

    def _error(self, variance: float, groups_V: np.ndarray) -> float:
        """The standard error of a mean over clips of which those of a group are alike."""
        sizes = np.unique(groups_V, return_counts=True)[1]
        return float(np.sqrt(variance * (sizes * (1 + (sizes - 1) * self._likeness)).sum()) / len(groups_V))

    def _underestimated(self, kind: str) -> float:
        """True fall of R@1 over the one that is estimated without knowing this kind of damage."""
        clips = self._damaged[kind]
        fall = self.reference - 100 * float(clips.hits_V.mean())
        others = self.without(kind, nested=False)
        if fall < LEAST_FALL or not others._damaged:
            return 1.0
        return fall / max(self.reference - others.estimate(clips).recall, 1.0)


def can_fit(tested: Clips, damaged: dict[str, Clips]) -> bool:
    """Whether there are enough clips, and whatever kind is left out, some that are found and some that are not."""
    return (len(np.unique(tested.groups_V)) >= MIN_CLIPS and len(damaged) > 1
            and all(len(np.unique(_hits(tested, {name: damaged[name] for name in damaged if name != kind}))) == 2
                    for kind in damaged))


def _hits(tested: Clips, damaged: dict[str, Clips]) -> np.ndarray:
    return np.concatenate([tested.hits_V, *(clips.hits_V for clips in damaged.values())]) > 0.5


def likeness(values_V: np.ndarray, groups_V: np.ndarray) -> float:
    """How alike the clips of a group are: the correlation of two of them, 0 to 1."""
    apart_V = values_V - values_V.mean()
    places_V = np.unique(groups_V, return_inverse=True)[1]
    pairs = (np.bincount(places_V)**2).sum() - len(values_V)
    together = (np.bincount(places_V, apart_V)**2).sum() - (apart_V**2).sum()
    return float(np.clip(together / max(pairs * values_V.var(), 1e-12), 0, 1))
