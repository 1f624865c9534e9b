"""Limits that also allow what accepted past batches showed, as the chunks of NannyML do.

The random splits of `compare` say how far a batch is from the tested clips by chance. Real batches differ from each
other by more: each has its cameras, its topics, its day. Once people have accepted some batches, the distances of these
are usual, and a limit may not lie below them. What is assumed: an accepted batch was a usual one. Batches that drift
slowly raise these limits with them, which the history of all batches shows and a single report does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hcmi.dataset import read_accepted
from hcmi.drift.compare import Shift
from hcmi.drift.history import Records
from hcmi.errors import shown

FEWEST = 8              # accepted batches; the spread of fewer is chance [ours]
SPREADS = 3.0           # standard deviations above the mean, as NannyML's default limits


@dataclass(frozen=True)
class Learned:
    """What accepted batches allow: batch -> comparison -> its distance divided by its limit without learning.

    Distances of small batches are larger by chance alone, and so are their limits.
    """

    batches: dict[str, dict[str, float]] = field(default_factory=dict)

    def without(self, batch: str) -> "Learned":
        """What the others allow: a batch is no evidence that it is usual itself."""
        return Learned({name: ratios for name, ratios in self.batches.items() if name != batch})

    @cached_property
    def factors(self) -> dict[str, float]:
        """Comparison -> by how much its limit may be multiplied: the mean plus `SPREADS` standard deviations.

        A comparison that fewer than `FEWEST` of the batches have is left out.
        """
        found: dict[str, list[float]] = {}
        for ratios in self.batches.values():
            for name, ratio in ratios.items():
                found.setdefault(name, []).append(ratio)
        return {name: float(np.mean(some) + SPREADS * np.std(some, ddof=1)) for name, some in found.items()
                if len(some) >= FEWEST}

    def widen(self, shifts: Sequence[Shift]) -> list[Shift]:
        """The comparisons with no limit below the learned one."""
        factors = [max(1.0, self.factors.get(shift.name, 1.0)) for shift in shifts]
        return [replace(shift, threshold=shift.threshold * factor, raised=factor)
                for shift, factor in zip(shifts, factors, strict=True)]


def learn(records: Records, accepted: str | Path, model: str) -> Learned:
    """What `records` by `model` show of the batches that the list `accepted` names.

    Raises: DataError when the list is broken.
    """
    names = {shown(entry.batch) for entry in read_accepted(accepted)}
    return Learned({name: {shift["name"]: shift["distance_over_limit"] * shift.get("limit_raised", 1.0)
                           for shift in record["shifts"]}
                    for name, (_, record) in records.items()
                    if name in names and record["reference"].get("model") == model})
