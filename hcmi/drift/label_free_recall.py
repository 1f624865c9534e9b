"""R@1 of search on a batch, measured with captions, and estimated without knowing which clip belongs to which text.

Pure: matrices in, numbers out. R@1 is that of texts whose clip competes with one fixed gallery of other clips, the same
for the batch and the reference. When a batch was ranked among its own clips instead, it had to be compared with random
draws of the reference, which contain few near copies of a clip: unchanged batches seemed 5 points worse.

The estimate infers who belongs to whom: each text has one clip and each clip one text, so the scores are scaled until
all rows and columns sum to one (Sinkhorn and Knopp, 1967). Even where a text has two likely clips, both usually beat
the gallery or neither does. It needs no damaged copies of the reference, as estimates from degraded sets do. It does
not notice clips that look exactly like another clip's caption (for example, red and blue exchanged).
"""

from dataclasses import dataclass

import numpy as np

NUM_SCALINGS = 20           # of rows and columns in turn
COVERAGE = 0.9              # of the estimate's interval
QUANTILE = 1.645            # of the normal distribution, for COVERAGE
WIDENING = 1.5              # the matching takes its own scores as right [ours]
LEAST_WIDTH = 1.0           # points that the interval reaches to either side at least [ours]
DOUBT = 1.5                 # [ours]
SURE = 0.8                  # of a text's match, for saying that its caption belongs to that clip


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


def hits(scores: Scores) -> np.ndarray:
    """[N] 1 for each text that ranks its own clip above the gallery; a tie with k others counts 1 / (k + 1)."""
    own_N1 = np.diagonal(scores.clips_NN)[:, None]
    better_N = (scores.gallery_NG > own_N1).sum(1)
    return (better_N == 0) / (1 + (scores.gallery_NG == own_N1).sum(1))


def recall_at_1(scores: Scores) -> float:
    """Per cent of the texts that rank their own clip above the gallery."""
    return float(100 * hits(scores).mean())


def match(scores: Scores, temperature: float) -> np.ndarray:
    """[N, N] how probably clip j belongs to text i; rows and columns sum to one. It knows no labels.

    `temperature`: of the softmax that fits the reference best, see `fit_temperature`. (The temperature that fits the
    batch best by the permanent of the softmax, in Bethe's approximation, was too high in half of the damaged batches.)
    """
    logits_NN = scores.clips_NN.astype(np.float64) / temperature
    shares_NN = np.exp(logits_NN - logits_NN.max(1, keepdims=True))
    for _ in range(NUM_SCALINGS):
        shares_NN /= shares_NN.sum(0, keepdims=True) + 1e-300
        shares_NN /= shares_NN.sum(1, keepdims=True) + 1e-300
    return shares_NN


def estimate_recall(batch: Scores, temperature: float) -> Estimate:
    """R@1 of a batch, estimated without knowing which of its clips belongs to which text.

    A worse search needs a higher temperature, which nobody knows without labels. The interval therefore reaches down to
    the estimate at `DOUBT` times the temperature.
    """
    recall, half = _found(batch, temperature)
    doubtful, _ = _found(batch, DOUBT * temperature)
    low, high = min(recall, doubtful) - half, max(recall, doubtful) + half
    return Estimate(recall, max(low, 0.0), min(high, 100.0), COVERAGE)


def _found(batch: Scores, temperature: float) -> tuple[float, float]:
    """R@1 by the matching, and half the width of the interval that the matching alone gives."""
    found_N = (match(batch, temperature) * (batch.clips_NN > batch.gallery_NG.max(1)[:, None])).sum(1)
    spread = 100 * np.sqrt((found_N * (1 - found_N)).clip(0).sum()) / len(batch)
    return float(100 * found_N.mean()), float(LEAST_WIDTH + WIDENING * QUANTILE * spread)


def exchanged_captions(batch: Scores, temperature: float) -> np.ndarray:
    """The texts, ascending, that are found, but with another clip of the batch than their own.

    Their own clip loses to the gallery, and another clip of the batch, which is theirs by the matching, beats it. Their
    captions probably belong to those clips.
    """
    shares_NN = match(batch, temperature)
    best_N, best_of_gallery_N = shares_NN.argmax(1), batch.gallery_NG.max(1)
    rows_N = np.arange(len(batch))
    is_found_N = batch.clips_NN[rows_N, best_N] > best_of_gallery_N
    return np.flatnonzero((best_N != rows_N) & is_found_N & (shares_NN.max(1) >= SURE)
                          & (np.diagonal(batch.clips_NN) < best_of_gallery_N))
