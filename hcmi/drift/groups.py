"""Which clips of a set hang together: cut from one file, or near copies of each other. Pure.

A batch of neighbours differs from a random sample of the past more than a batch of as many unrelated clips does, even
when nothing has changed. What hangs together is therefore moved together in the random splits.
"""

from collections.abc import Sequence

import numpy as np

from hcmi.drift.profile import unit

CHANCE = 1 / 1000           # share of pairs of unrelated clips that are taken for near copies [ours]
# Larger groups are cut, since a batch of one group could not be judged: to a twentieth of the set, but not below 10
# clips or a quarter of a small set. With groups of 2, a tenth of batches of 36 clips alarmed at a rate of 1 %. [ours]
LARGEST, LARGEST_OF_FEW, SHARE_OF_FEW = 0.05, 10, 0.25


def independent(groups_V: np.ndarray) -> float:
    """How many independent clips these are worth, if clips of one group are all alike.

    Source: Kish's effective sample size, Survey sampling, 1965. Misses of 200 clips of Scenes vary 2.07 times as much
    between batches as those of independent clips; this gives 2.09.
    """
    sizes = np.unique(groups_V, return_counts=True)[1]
    return float(sizes.sum() ** 2 / max((sizes**2).sum(), 1))


def near_limit(known_VD: np.ndarray, others_GD: np.ndarray, chance: float = CHANCE) -> float:
    """The cosine that all but `chance` of the pairs of unrelated clips stay under."""
    sims_VG = unit(known_VD) @ unit(others_GD).T
    return float(np.quantile(sims_VG, 1 - chance))


def group_rows(rows_VD: np.ndarray, sources: Sequence[str], limit: float) -> np.ndarray:
    """[V] a group number for each clip.

    In order, each clip joins the group of the earlier clip that is cut from the same file or else is most similar to
    it, when that similarity is above `limit` and the group is not full.
    """
    sims_VV = unit(rows_VD) @ unit(rows_VD).T
    few = min(LARGEST_OF_FEW, int(SHARE_OF_FEW * len(rows_VD)))
    size = max(2, few, int(LARGEST * len(rows_VD)))
    labels, has_room_V = np.empty(len(rows_VD), int), np.ones(len(rows_VD), bool)
    counts: list[int] = []
    last_of: dict[str, int] = {}
    for row, source in enumerate(sources):
        near = last_of.get(source, -1)
        if near < 0 and row:
            best = int(np.where(has_room_V[:row], sims_VV[row, :row], -2).argmax())
            near = best if sims_VV[row, best] > limit else -1
        if near < 0 or not has_room_V[near]:
            labels[row] = len(counts)
            counts.append(0)
        else:
            labels[row] = labels[near]
        counts[labels[row]] += 1
        if counts[labels[row]] >= size:
            has_room_V[:row + 1][labels[:row + 1] == labels[row]] = False
        last_of[source] = row
    return labels
