"""How well search works on a batch when nobody has said which clip answers which query.

Pure: matrices in, numbers out. The sign used: a search that works answers queries about different clips with different
clips, one that fails answers many queries with the same few (hubs). The share of different answers needs no labels, and
what it says of R@1 is learned on the reference, whose labels are known, by letting some of its clips attract queries
more and more (ours; the idea of regressing accuracy on degraded sets is Deng and Zheng's, "Are labels always necessary
for classifier accuracy evaluation?", CVPR 2021). On 60 damaged batches of Scenes this erred by 5 points on average; the
share of texts whose clip finds them back, by 6; the model's own confidence, which stays high while R@1 falls, by more.

What it cannot see: clips that look exactly like another clip's caption (say, red and blue exchanged).
"""

from dataclasses import dataclass

import numpy as np

NUM_TRIALS = 400            # damaged reference galleries
NUM_NEIGHBOURS = 40         # of them, those with a share of different answers most like the batch's
MAX_DAMAGE = 5.0            # in standard deviations of the scores; chance level is reached before
MAX_RANK = 32               # of the damage: real damage pulls many clips the same way


@dataclass(frozen=True)
class Estimate:
    """R@1 in per cent, text to video, among `gallery` clips, and the interval that holds it at rate `coverage`."""

    recall: float
    low: float
    high: float
    coverage: float
    gallery: int
    answers: float          # different answers, per cent of the queries


def recall_at_1(sims_NN: np.ndarray) -> float:
    """Per cent of the texts that rank their own clip (the diagonal) first; a tie with k others counts 1 / (k + 1)."""
    own_N = np.diagonal(sims_NN)
    better_N = (sims_NN > own_N[:, None]).sum(1)
    return float(100 * ((better_N == 0) / (sims_NN == own_N[:, None]).sum(1)).mean())


def different_answers(sims_NN: np.ndarray) -> float:
    """Different clips that come first for some text, in per cent of the texts."""
    return float(100 * len(np.unique(sims_NN.argmax(1))) / len(sims_NN))


def damaged(sims_NN: np.ndarray, amount: float, rank: int, generator: np.random.Generator) -> np.ndarray:
    """Scores of a model that understands less: some clips attract every text, groups of clips groups of texts.

    `amount` in standard deviations of the scores; a small `rank` makes large groups.
    """
    size = len(sims_NN)
    texts_NR, clips_RN = (generator.standard_normal(shape, np.float32) for shape in ((size, rank), (rank, size)))
    pull_N = generator.standard_normal(size, np.float32)
    return sims_NN + np.float32(amount * sims_NN.std()) * (texts_NR @ clips_RN / np.float32(rank**0.5) + pull_N / 2)


def estimate_recall(batch_NN: np.ndarray, reference_MM: np.ndarray, generator: np.random.Generator,
                    coverage: float = 0.9) -> Estimate:
    """Label-free R@1 of a batch from its scores `batch_NN`: one text a clip, in any order.

    `reference_MM` are the reference's scores, text i belonging to clip i, with M >= N: galleries of the batch's size
    are drawn from it, because R@1 falls as galleries grow. The interval is taken from the damaged galleries that most
    resemble the batch.
    """
    size = len(batch_NN)
    assert size <= len(reference_MM), f"need a batch of at most {len(reference_MM)} clips, got {size}"
    trials = np.empty((NUM_TRIALS, 2))
    for trial in range(NUM_TRIALS):
        rows = generator.choice(len(reference_MM), size, replace=False)
        amount = MAX_DAMAGE * max(0.0, generator.uniform(-0.15, 1.0))       # an eighth of the galleries stay whole
        rank = round(MAX_RANK ** generator.random())
        worse_NN = damaged(reference_MM[np.ix_(rows, rows)], amount, rank, generator)
        trials[trial] = different_answers(worse_NN), recall_at_1(worse_NN)
    answers = different_answers(batch_NN)
    nearest = np.argsort(np.abs(trials[:, 0] - answers), kind="stable")[:NUM_NEIGHBOURS]
    low, recall, high = np.quantile(trials[nearest, 1], [(1 - coverage) / 2, 0.5, (1 + coverage) / 2])
    return Estimate(float(recall), float(low), float(high), coverage, size, answers)
