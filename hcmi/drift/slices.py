"""Where search loses in a batch: its parts, by tag and by what clips show, that are found less than the rest. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from hcmi.drift.causes import words_of
from hcmi.drift.profile import MIN_CLIPS
from hcmi.evaluate import difference_of_rates
from hcmi.wording import plural

LEAST_GAP = 5.0             # points of R@1 that the whole interval lies below the rest: many parts are looked at [ours]
CLUSTER_SIZE, MOST_CLUSTERS = 25, 8         # clips in the mean; clusters [ours]
MOST_SLICES, NAMING_WORDS = 5, 3
NEW_WORDS = "captions with words that no training caption has"


@dataclass(frozen=True)
class Slice:
    """A part of a batch with its R@1 in per cent, and that of the rest."""

    name: str
    captions: int
    recall: float
    rest: float

    @property
    def sentence(self) -> str:
        """`num_events = 4: R@1 is 62 % of 34 captions, and 95 % of the others.`"""
        return (f"{self.name}: R@1 is {self.recall:.0f} % of {plural(self.captions, 'caption')}, and {self.rest:.0f} % "
                "of the others.")


def weak_slices(hits_N: np.ndarray, captions: Sequence[str], tags: Sequence[dict[str, str]],
                vectors_ND: np.ndarray, marked: dict[str, np.ndarray]) -> list[Slice]:
    """The tags and clusters whose R@1 is lower than that of the rest by more than chance, lowest first.

    One row for each caption: whether it finds its clip, the clip's tags, and its vector. `marked`: name -> bool
    [N], further parts. A cluster is named by the words that its captions have more often than the others.
    """
    parts = marked | {f"{key} = {value}": np.array([tag.get(key) == value for tag in tags])
                      for key, value in sorted({pair for tag in tags for pair in tag.items()})}
    rounded_ND = vectors_ND.round(4)        # clips that show the same have one vector, and cannot be divided
    count = min(len(hits_N) // CLUSTER_SIZE, MOST_CLUSTERS, len(np.unique(rounded_ND, axis=0)))
    if count >= 2:
        places_N = KMeans(count, n_init=4, random_state=0).fit_predict(rounded_ND)
        clusters = [places_N == place for place in range(count)]
        parts |= {f"clips with {_words(captions, inside_N)}": inside_N for inside_N in clusters
                  if 0 < inside_N.sum() < len(inside_N)}
    found = []
    for name, inside_N in parts.items():
        size, others = int(inside_N.sum()), int((~inside_N).sum())
        if min(size, others) < MIN_CLIPS:
            continue
        inside, outside = float(hits_N[inside_N].sum()), float(hits_N[~inside_N].sum())
        recall, rest = 100 * inside / size, 100 * outside / others
        highest = 100 * difference_of_rates(outside, others, inside, size)[1]
        if highest <= -LEAST_GAP:
            found.append(Slice(name, size, recall, rest))
    return sorted(found, key=lambda some: some.recall)[:MOST_SLICES]


def _words(captions: Sequence[str], inside_N: np.ndarray) -> str:
    """The words whose share of captions inside is most above that outside."""
    words = [set(words_of(caption)) for caption in captions]
    counts: dict[str, float] = {}
    within, without = 1 / int(inside_N.sum()), -1 / int((~inside_N).sum())
    for is_inside, some in zip(inside_N.tolist(), words, strict=True):
        for word in some:
            counts[word] = counts.get(word, 0.0) + (within if is_inside else without)
    return ", ".join(sorted(counts, key=lambda word: (-counts[word], word))[:NAMING_WORDS])
