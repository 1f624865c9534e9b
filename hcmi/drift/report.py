"""What is known of one batch: the record that the stage fills, and that report.json and the page are written from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hcmi.drift.label_free_recall import Estimate
from hcmi.drift.profile import Profile, Shift
from hcmi.drift.sample import Sample, count_reasons, unreadable
from hcmi.drift.summary import DRIFT, UNREADABLE, advice, changes, summary
from hcmi.types import Skip

SHOWN_SKIPS = 20


@dataclass
class BatchReport:
    """One batch's verdict and the figures behind it."""

    name: str
    verdict: str = UNREADABLE
    why: str = ""                       # the reason for the verdict "unreadable" or "too small to judge"
    num_found: int = 0                  # clips, readable or not
    skipped: list[Skip] = field(default_factory=list)
    sample: Sample | None = None
    profile: Profile | None = None
    shifts: list[Shift] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)       # the shifts whose Evidently test failed
    measured: float | None = None       # R@1 in per cent, measured with the batch's captions
    expected: float | None = None       # R@1 of the reference with the same gallery
    difference: tuple[float, float] | None = None       # 95 % interval of `measured` minus `expected`
    gallery: int = 0                    # number of other clips that each caption's clip competes with
    estimate: Estimate | None = None
    evidently_page: str = ""

    @property
    def summary(self) -> str:
        return summary(self.verdict, self.shifts, len(self.sample or ()), len(unreadable(self.skipped)), self.why)

    @property
    def advice(self) -> str:
        return advice(self.verdict, self.measured, self.expected, self.difference)

    def to_record(self) -> dict[str, Any]:
        """The batch's entry in report.json."""
        return {
            "batch": self.name, "verdict": self.verdict, "summary": self.summary, "advice": self.advice,
            "clips": len(self.sample or ()), "found": self.num_found,
            "captioned": len(self.sample.captioned) if self.sample else 0,
            "changes": changes(self.shifts) if self.verdict == DRIFT else [],
            "recall_at_1": self._recall_record(),
            "shifts": [{"name": shift.name, "distance": _round(shift.distance, 6), "limit": _round(shift.threshold, 6),
                        "p_value": _round(shift.p_value, 6), "drifted": shift.name in self.failed,
                        "reference_median": _round(shift.reference, 6), "batch_median": _round(shift.batch, 6)}
                       for shift in self.shifts],
            "skipped": len(self.skipped), "skipped_reasons": count_reasons(self.skipped),
            "skipped_files": [{"path": skip.path, "reason": skip.reason, "detail": skip.detail}
                              for skip in self.skipped[:SHOWN_SKIPS]]}

    def _recall_record(self) -> dict[str, Any] | None:
        estimate = self.estimate
        if estimate is None:
            return None
        return {"gallery": self.gallery, "measured": _round(self.measured), "reference": _round(self.expected),
                "difference_95%_interval": [_round(value) for value in self.difference or ()],
                "label_free": _round(estimate.recall),
                f"label_free_{estimate.coverage:.0%}_interval": [_round(estimate.low), _round(estimate.high)]}


def _round(value: float | None, digits: int = 2) -> float | None:
    """None for a missing value or NaN, because JSON has no NaN."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)
