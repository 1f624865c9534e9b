"""How well search works on a batch, and how well when nobody has said which clip answers which query.

Pure: matrices in, numbers out. R@1 is always that of texts whose own clip stands among one fixed gallery of other
clips, the same for batch and reference. Ranked among its own clips, a batch had to be compared with random draws of the
reference, from which most near copies of a clip have fallen out: unchanged batches seemed 5 points worse.

The sign used without labels: a search that works answers a text about the batch with a clip of the batch; one that
fails answers with any clip, be it of the gallery. The share of texts that a clip of the batch answers needs no labels.
What it says of R@1 is learned on the reference, whose labels are known, by damaging its scores more and more (ours; the
idea of regressing accuracy on degraded sets is Deng and Zheng's, "Are labels always necessary for classifier accuracy
evaluation?", CVPR 2021).

What it cannot see: clips that look exactly like another clip's caption (say, red and blue exchanged).
"""

from dataclasses import dataclass

import numpy as np

NUM_TRIALS = 400            # damaged draws of the reference
NUM_NEIGHBOURS = 40         # of them, those with a share of answers most like the batch's
MAX_PULL = 5.0              # in standard deviations of the scores; chance level is reached before
MAX_RANK = 32               # of the pull: real damage pulls many clips the same way


@dataclass(frozen=True)
class Scores:
    """Of N texts: with the clips of their own sample, text i belonging to clip i, and with the G clips of a gallery."""

    clips_NN: np.ndarray
    gallery_NG: np.ndarray

    def __post_init__(self) -> None:
        assert len(self.clips_NN) == self.clips_NN.shape[1] == len(self.gallery_NG), \
            f"clips {self.clips_NN.shape}, gallery {self.gallery_NG.shape}"

    def __len__(self) -> int:
        return len(self.clips_NN)

    def __getitem__(self, rows: np.ndarray) -> "Scores":
        return Scores(self.clips_NN[np.ix_(rows, rows)], self.gallery_NG[rows])


@dataclass(frozen=True)
class Estimate:
    """R@1 in per cent, text to video, and the interval that holds it at rate `coverage`."""

    recall: float
    low: float
    high: float
    coverage: float


def recall_at_1(scores: Scores) -> float:
    """Per cent of the texts that rank their own clip before the gallery; a tie with k others counts 1 / (k + 1)."""
    own_N1 = np.diagonal(scores.clips_NN)[:, None]
    better_N = (scores.gallery_NG > own_N1).sum(1)
    return float(100 * ((better_N == 0) / (1 + (scores.gallery_NG == own_N1).sum(1))).mean())


def answered_by_sample(scores: Scores) -> float:
    """Per cent of the texts whose best answer is a clip of the sample, whichever, and none of the gallery."""
    return float(100 * (scores.clips_NN.max(1) > scores.gallery_NG.max(1)).mean())


def pulled(scores: Scores, amount: float, rank: int, generator: np.random.Generator) -> Scores:
    """Scores of a model that understands less: some clips attract every text, groups of clips groups of texts.

    `amount` in standard deviations of the scores; a small `rank` makes large groups.
    """
    all_NM = np.concatenate([scores.clips_NN, scores.gallery_NG], 1)
    size, count = all_NM.shape
    texts_NR, clips_RM = (generator.standard_normal(shape, np.float32) for shape in ((size, rank), (rank, count)))
    pull_M = generator.standard_normal(count, np.float32)
    all_NM = all_NM + np.float32(amount * all_NM.std()) * (texts_NR @ clips_RM / np.float32(rank**0.5) + pull_M / 2)
    return Scores(all_NM[:, :size], all_NM[:, size:])


def faded(scores: Scores, amount: float) -> Scores:
    """Scores of clips that show less of what tells them apart, nothing at `amount` 1; the gallery stays."""
    return Scores((1 - amount) * scores.clips_NN + amount * scores.clips_NN.mean(), scores.gallery_NG)


def estimate_recall(batch: Scores, reference: Scores, generator: np.random.Generator,
                    coverage: float = 0.9) -> Estimate:
    """Label-free R@1 of a batch: which of its clips belongs to which text does not matter.

    `reference` has the same gallery and at least as many texts: draws as large as the batch are taken from it, because
    more clips answer more texts by chance. The interval is taken from the damaged draws that most resemble the batch.
    """
    size = len(batch)
    assert size <= len(reference), f"need a batch of at most {len(reference)} clips, got {size}"
    trials = np.empty((NUM_TRIALS, 2))
    for trial in range(NUM_TRIALS):
        draw = reference[generator.choice(len(reference), size, replace=False)]
        amount = max(0.0, generator.uniform(-0.15, 1.0))        # an eighth of the draws stay whole
        rank = round(MAX_RANK ** generator.random())
        worse = faded(draw, amount) if trial % 2 else pulled(draw, MAX_PULL * amount, rank, generator)
        trials[trial] = answered_by_sample(worse), recall_at_1(worse)
    nearest = np.argsort(np.abs(trials[:, 0] - answered_by_sample(batch)), kind="stable")[:NUM_NEIGHBOURS]
    low, recall, high = np.quantile(trials[nearest, 1], [(1 - coverage) / 2, 0.5, (1 + coverage) / 2])
    return Estimate(float(recall), float(low), float(high), coverage)
