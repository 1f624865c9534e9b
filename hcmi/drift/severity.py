"""Does search suffer? R@1 of a batch next to that of the tested clips, both among the same gallery. Pure."""

from dataclasses import dataclass

import numpy as np

from hcmi.drift.groups import independent
from hcmi.drift.label_free_recall import Estimate, Scores, recall_at_1
from hcmi.evaluate import difference_of_rates, wilson

# Points of R@1 that the whole interval must lie below. Clips brighter by 12 % lose 1.3 points; with 0 here, they were
# `search hurt` in 4 % of batches of 60 and 8 % of 30 (docs/decisions/0025-hurt-without-captions.md). [ours]
TOLERATED = 1.0
TOLERATED_ESTIMATE = 0.25   # from the clips alone, where a fifth of the fall of unknown shapes is estimated [ours]
VAGUE = 10.0                # points of R@1: an interval that may hide such a fall has too few captions [ours]
MEASURED, WITHOUT_WRONG, LABEL_FREE = "measured", "measured without wrong captions", "label-free"


@dataclass(frozen=True)
class Severity:
    """R@1 in per cent of a batch and of the reference, and their difference, each with an interval."""

    recall: float
    low: float
    high: float
    reference: float
    change: float           # `recall` minus `reference`
    change_low: float
    change_high: float
    how: str                # MEASURED, WITHOUT_WRONG or LABEL_FREE
    captions: int           # of the batch that were ranked; 0 where there are none

    @property
    def is_hurt(self) -> bool:
        """Even the upper end of the interval is a fall that is worth acting on."""
        return self.change_high <= -(TOLERATED_ESTIMATE if self.how == LABEL_FREE else TOLERATED)

    @property
    def is_vague(self) -> bool:
        """No fall was shown, but a large one may be hidden by how few captions there are. An estimate is always wide.
        """
        return self.how != LABEL_FREE and not self.is_hurt and self.change_low < -VAGUE

    @property
    def sentence(self) -> str:
        """`R@1 is 84 % (79 to 88), and 97 % for the tested clips.`"""
        guess = ", estimated from the clips alone," if self.how == LABEL_FREE else ""
        return f"R@1{guess} is {self.recall:.0f} % ({self.low:.0f} to {self.high:.0f}), and " \
               f"{self.reference:.0f} % for the tested clips."


def measure(batch: Scores, reference: Scores, groups_N: np.ndarray, known_groups_N: np.ndarray,
            how: str = MEASURED) -> Severity:
    """R@1 with captions. The intervals are 95 % ones, of as many independent clips as the groups are worth: Wilson's,
    and Newcombe's for the difference. (Resampling the groups held R@1 of batches of 200 in 77 to 92 % of cases,
    because a batch has few misses; this does in 93 to 99 %.)
    """
    recall, expected = recall_at_1(batch), recall_at_1(reference)
    size, known_size = round(independent(groups_N)), round(independent(known_groups_N))
    found, known = size * recall / 100, known_size * expected / 100
    low, high = wilson(found, size)
    change_low, change_high = difference_of_rates(known, known_size, found, size)
    return Severity(recall, 100 * low, 100 * high, expected, recall - expected, 100 * change_low, 100 * change_high,
                    how, len(batch))


def estimated(estimate: Estimate, reference: float) -> Severity:
    """R@1 of a batch without captions."""
    return Severity(estimate.recall, estimate.low, estimate.high, reference, estimate.recall - reference,
                    estimate.low - reference, estimate.high - reference, LABEL_FREE, 0)
