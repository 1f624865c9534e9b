"""What is known of one batch: the record that the stage fills, and that report.json and the page are written from."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hcmi.drift.causes import Cause
from hcmi.drift.compare import Shift
from hcmi.drift.groups import independent
from hcmi.drift.label_free_recall import Estimate
from hcmi.drift.profile import Profile
from hcmi.drift.sample import Sample, count_reasons, unreadable
from hcmi.drift.severity import Severity
from hcmi.drift.slices import Slice
from hcmi.drift.summary import changes
from hcmi.drift.verdict import (
    MACHINE,
    NO_CAPTIONS,
    UNKNOWN,
    UNREADABLE,
    advise,
    advise_on_queries,
    summary,
    summary_of_queries,
)
from hcmi.types import Skip

SHOWN_SKIPS = 20
TO_WRITE = ".captions_to_write.csv"         # behind the batch's name
LONGEST_NAME = 255 - len(TO_WRITE)          # bytes of a batch's name: file systems take names of 255


@dataclass
class BatchReport:
    """One batch's verdict and the figures behind it."""

    name: str
    verdict: str = UNKNOWN
    reason: str = UNREADABLE            # of the verdict "cannot tell"; "" for the others
    trouble: str = ""                   # the sentence for it
    num_found: int = 0                  # clips, readable or not; or queries
    num_captions: int = 0               # of all readable clips; a sample has one of each clip
    is_query_log: bool = False          # such a batch has no clips
    num_queries: int = 0
    skipped: list[Skip] = field(default_factory=list)
    sample: Sample | None = None
    profile: Profile | None = None
    shifts: list[Shift] = field(default_factory=list)
    severity: Severity | None = None
    causes: list[Cause] = field(default_factory=list)
    unmeasured: str = NO_CAPTIONS       # why `severity` is None
    measured: Severity | None = None    # with all captions, right or wrong
    estimate: Estimate | None = None    # without using which caption belongs to which clip
    gallery: int = 0                    # number of other clips that each caption's clip competes with
    lost: list[dict[str, Any]] = field(default_factory=list)        # captions that lost most, worst first
    slices: list[Slice] = field(default_factory=list)               # parts that are found less than the rest
    evidently_page: str = ""
    evidently_snapshot: str = ""

    @property
    def changes(self) -> list[str]:
        return changes(self.shifts)

    @property
    def why(self) -> str:
        if self.is_query_log:
            return summary_of_queries(self.verdict, self.changes, self.causes, self.num_queries, self.trouble)
        said = changes(self.shifts, with_scores=not self.causes)        # a named cause explains the scores
        left_out = 0 if self.reason in (UNREADABLE, MACHINE) else len(unreadable(self.skipped))
        return summary(self.verdict, self.severity, said, self.causes, len(self.sample or ()), left_out, self.trouble,
                       self.unmeasured)

    @property
    def advice(self) -> str:
        if self.is_query_log:
            return advise_on_queries(self.verdict, self.causes)
        return advise(self.verdict, self.severity, self.causes, self.reason, self.unmeasured)

    def to_record(self) -> dict[str, Any]:
        """The batch's entry in report.json."""
        return {
            "batch": self.name, "verdict": self.verdict, "reason": self.reason, "why": self.why, "advice": self.advice,
            "severity": self._severity_record(), "changes": self.changes,
            "causes": [cause.to_record() for cause in self.causes],
            "clips": len(self.sample or ()), "found": self.num_found, "queries": self.num_queries,
            "is_query_log": self.is_query_log,
            "captioned": len(self.sample.captioned) if self.sample else 0,
            "groups": 0 if self.profile is None else len(np.unique(self.profile.units)),
            "independent": 0.0 if self.profile is None else _round(independent(self.profile.units)),
            "recall_at_1": self._recall_record(), "lost": self.lost,
            "weak_slices": [{"name": some.name, "captions": some.captions, "recall_at_1": _round(some.recall),
                             "rest": _round(some.rest)} for some in self.slices],
            "shifts": [{"name": shift.name, "distance": _round(shift.distance, 6), "limit": _round(shift.threshold, 6),
                        "distance_over_limit": _round(shift.ratio, 4), "limit_raised": _round(shift.raised, 4),
                        "p_value": _round(shift.p_value, 6), "drifted": shift.drifted,
                        "reference_median": _round(shift.reference, 6), "batch_median": _round(shift.batch, 6)}
                       for shift in self.shifts],
            "skipped": len(self.skipped), "skipped_reasons": count_reasons(self.skipped),
            "skipped_files": [{"path": skip.path, "reason": skip.reason, "detail": skip.detail}
                              for skip in self.skipped[:SHOWN_SKIPS]]}

    def _severity_record(self) -> dict[str, Any] | None:
        """R@1 of the batch and the reference in per cent, among the same gallery; null when nobody can say."""
        if self.severity is None:
            return None
        figures = {name: _round(value) if isinstance(value, float) else value
                   for name, value in asdict(self.severity).items()}
        return {"recall_at_1": figures.pop("recall"), "interval": [figures.pop("low"), figures.pop("high")],
                "reference": figures.pop("reference"), "change": figures.pop("change"),
                "change_interval": [figures.pop("change_low"), figures.pop("change_high")], **figures,
                "gallery": self.gallery}

    def _recall_record(self) -> dict[str, Any] | None:
        """R@1 measured with every caption, and estimated without knowing which clip each belongs to."""
        if self.measured is None or self.estimate is None:
            return None
        measured, estimate = self.measured, self.estimate
        return {"measured": _round(measured.recall), "reference": _round(measured.reference),
                "difference_95%_interval": [_round(measured.change_low), _round(measured.change_high)],
                "label_free": _round(estimate.recall),
                f"label_free_{estimate.coverage:.0%}_interval": [_round(estimate.low), _round(estimate.high)]}


def _round(value: float | None, digits: int = 2) -> float | None:
    """None for a missing value or NaN, because JSON has no NaN."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)
