"""Limits that also allow what accepted past batches showed, as the chunks of NannyML do.

The random splits of `compare` say how far a batch is from the tested clips by chance. Real batches differ from each
other by more: each has its cameras, its topics, its day. Once people have accepted some batches, the distances of these
are usual, and a limit may not lie below them. What is assumed: an accepted batch was a usual one. Batches that drift
slowly raise these limits with them, which the history of all batches shows and a single report does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hcmi.dataset import read_accepted
from hcmi.drift.compare import Shift
from hcmi.drift.history import newest_records

FEWEST = 8              # accepted batches; the spread of fewer is chance [ours]
SPREADS = 3.0           # standard deviations above the mean, as NannyML's default limits


@dataclass(frozen=True)
class Learned:
    """What `batches` accepted batches allow: comparison -> the largest usual distance. No batches allow nothing."""

    batches: int = 0
    limits: dict[str, float] = field(default_factory=dict)

    def widen(self, shifts: Sequence[Shift]) -> list[Shift]:
        """The comparisons with no limit below the learned one."""
        return [replace(shift, threshold=max(shift.threshold, self.limits.get(shift.name, 0.0))) for shift in shifts]


def learn(reports_dir: str | Path, accepted: str | Path) -> Learned:
    """The limits from the reports in `reports_dir` on batches that the list `accepted` names.

    Each is the mean plus `SPREADS` standard deviations of a comparison's distances. A comparison that fewer than
    `FEWEST` of the batches have keeps its own limit. Raises: DataError when the list is broken.
    """
    names = {entry.batch for entry in read_accepted(accepted)}
    records = [record for name, (_, record) in newest_records(reports_dir).items() if name in names]
    distances: dict[str, list[float]] = {}
    for record in records:
        for shift in record["shifts"]:
            distances.setdefault(shift["name"], []).append(shift["distance"])
    return Learned(len(records), {name: float(np.mean(found) + SPREADS * np.std(found, ddof=1))
                                  for name, found in distances.items() if len(found) >= FEWEST})
