"""Which clips of a set hang together: cut from one file, or near copies of each other. Pure.

A batch of neighbours differs from a random sample of the past more than a batch of as many unrelated clips does, even
when nothing has changed. What hangs together is therefore moved together in the random splits.
"""

from collections.abc import Sequence

import numpy as np

from hcmi.drift.profile import unit

CHANCE = 1 / 1000           # share of pairs of unrelated clips that are taken for near copies [ours]
LARGEST = 0.05              # of the set; larger groups are cut, since a batch of one group could not be judged [ours]


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
    size = max(2, int(LARGEST * len(rows_VD)))
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
