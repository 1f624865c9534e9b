"""R@1 of search on a batch, measured with captions, and estimated without knowing which clip belongs to which text.

Pure: matrices in, numbers out. R@1 is that of texts whose clip competes with one fixed gallery of other clips, the same
for the batch and the reference. When a batch was ranked among its own clips instead, it had to be compared with random
draws of the reference, which contain few near copies of a clip: unchanged batches seemed 5 points worse.

The estimate uses this: a search that works answers a text about the batch with a clip of the batch; a search that fails
answers with any clip, also one of the gallery. The share of texts that a clip of the batch answers needs no labels. How
it relates to R@1 is learned on the reference, whose labels are known, by damaging its scores to various degrees (ours;
regressing accuracy on degraded sets is from Deng and Zheng, "Are labels always necessary for classifier accuracy
evaluation?", CVPR 2021).

The estimate does not notice clips that look exactly like another clip's caption (for example, red and blue exchanged).
"""

from dataclasses import dataclass

import numpy as np

NUM_TRIALS = 400            # damaged random draws of the reference
NUM_NEIGHBOURS = 40         # the trials whose share of answered texts is nearest to the batch's
MAX_DISTORTION = 5.0        # in standard deviations of the scores; R@1 is at chance level below this
MAX_RANK = 32               # of the distortion: real damage distorts the scores of many clips in the same way


@dataclass(frozen=True)
class Scores:
    """Scores of N texts with the N clips of their sample (text i belongs to clip i) and the G clips of a gallery."""

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
    """R@1 in per cent, text to video, and an interval that contains it with probability `coverage`."""

    recall: float
    low: float
    high: float
    coverage: float


def recall_at_1(scores: Scores) -> float:
    """Per cent of the texts that rank their own clip above the gallery; a tie with k others counts 1 / (k + 1)."""
    own_N1 = np.diagonal(scores.clips_NN)[:, None]
    better_N = (scores.gallery_NG > own_N1).sum(1)
    return float(100 * ((better_N == 0) / (1 + (scores.gallery_NG == own_N1).sum(1))).mean())


def answered_by_sample(scores: Scores) -> float:
    """Per cent of the texts whose best answer is any clip of the sample, and not one of the gallery."""
    return float(100 * (scores.clips_NN.max(1) > scores.gallery_NG.max(1)).mean())


def distorted(scores: Scores, amount: float, rank: int, generator: np.random.Generator) -> Scores:
    """Scores of a model that understands less: some clips score higher for every text, and groups of clips for groups
    of texts.

    `amount`: in standard deviations of the scores. A small `rank` makes large groups.
    """
    all_NM = np.concatenate([scores.clips_NN, scores.gallery_NG], 1)
    size, count = all_NM.shape
    texts_NR, clips_RM = (generator.standard_normal(shape, np.float32) for shape in ((size, rank), (rank, count)))
    pull_M = generator.standard_normal(count, np.float32)
    all_NM = all_NM + np.float32(amount * all_NM.std()) * (texts_NR @ clips_RM / np.float32(rank**0.5) + pull_M / 2)
    return Scores(all_NM[:, :size], all_NM[:, size:])


def weakened(scores: Scores, amount: float) -> Scores:
    """Scores of clips that differ less from each other, and not at all at `amount` 1; the gallery is unchanged."""
    return Scores((1 - amount) * scores.clips_NN + amount * scores.clips_NN.mean(), scores.gallery_NG)


def estimate_recall(batch: Scores, reference: Scores, generator: np.random.Generator,
                    coverage: float = 0.9) -> Estimate:
    """R@1 of a batch, estimated without knowing which of its clips belongs to which text.

    `reference` has the same gallery and at least as many texts. Draws of the batch's size are taken from it, because
    more clips answer more texts by chance. The interval comes from the damaged draws that are most like the batch.
    """
    size = len(batch)
    assert size <= len(reference), f"need a batch of at most {len(reference)} clips, got {size}"
    trials = np.empty((NUM_TRIALS, 2))
    for trial in range(NUM_TRIALS):
        draw = reference[generator.choice(len(reference), size, replace=False)]
        amount = max(0.0, generator.uniform(-0.15, 1.0))        # an eighth of the draws are not damaged
        rank = round(MAX_RANK ** generator.random())
        worse = weakened(draw, amount) if trial % 2 else distorted(draw, MAX_DISTORTION * amount, rank, generator)
        trials[trial] = answered_by_sample(worse), recall_at_1(worse)
    nearest = np.argsort(np.abs(trials[:, 0] - answered_by_sample(batch)), kind="stable")[:NUM_NEIGHBOURS]
    low, recall, high = np.quantile(trials[nearest, 1], [(1 - coverage) / 2, 0.5, (1 + coverage) / 2])
    return Estimate(float(recall), float(low), float(high), coverage)
