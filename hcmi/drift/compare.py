"""Whether two profiles differ by more than chance.

Pure: arrays in, numbers out. The rows of the batch and the reference are pooled and split at random many times. The
distances between the random parts are those without drift at exactly these sizes, so the stated false alarm rate holds
for small and large batches (a permutation test; ours). Clips that hang together are moved together: what is assumed is
that groups are independent of each other, not that clips are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hcmi.drift.distances import classifier_gap, energy_distance, wasserstein
from hcmi.drift.profile import CLIP_COLUMNS, EMBEDDINGS, MIN_CLIPS, QUERY_COLUMNS, VIDEO_LEVELS, Profile

_BLOCK = 500                # splits at a time: bounds the memory
CLASSIFIER = "classifier"
MEANS = frozenset(("rank", "unknown_words"))


@dataclass(frozen=True)
class Shift:
    """One comparison of the batch with the reference. It has drifted when `distance` reaches `threshold`."""

    name: str
    distance: float         # columns: Wasserstein distance in the reference's standard deviations; embeddings: energy
    threshold: float
    p_value: float          # adjusted: how often the largest of all comparisons is this large without drift
    reference: float        # median of the column, or mean of MEANS; NaN for embeddings
    batch: float
    raised: float = 1.0     # `threshold` divided by what it is without accepted batches (learned.py)

    @property
    def ratio(self) -> float:
        """The distance divided by its limit."""
        return self.distance / self.threshold

    @property
    def drifted(self) -> bool:
        return self.distance >= self.threshold


@dataclass(frozen=True)
class _Test:
    name: str
    rows: np.ndarray                                            # [M] or [M, D]
    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def compare(reference: Profile, batch: Profile, false_alarm_rate: float, generator: np.random.Generator) -> list[Shift]:
    """One `Shift` for each comparison of what both sets have; the batch has changed when any of them has.

    Each distance is measured for the real split and for random ones, and scaled by its spread over the random splits.
    The distribution of the largest scaled distance over the random splits gives one limit for all (Westfall and Young's
    single-step maxT), so that all comparisons together report a change in a batch without one at `false_alarm_rate`.
    """
    count = max(999, round(10 / false_alarm_rate) - 1)
    tests = _tests(reference, batch)
    if not tests:
        return []
    half = len(reference)
    missing = np.stack([~_finite(test.rows) for test in tests])
    strata_M = np.unique(missing, axis=1, return_inverse=True)[1].ravel()
    units_M = np.concatenate([reference.units, batch.units + len(reference) + len(batch)])
    batch_PM = assignments(np.arange(half + len(batch)) >= half, strata_M, units_M, count, generator)
    distance_PS = np.concatenate([np.stack([test.distance(test.rows, block, units_M) for test in tests], axis=1)
                                  for block in np.array_split(batch_PM, max(1, len(batch_PM) // _BLOCK))])
    middle_S = np.median(distance_PS, axis=0)
    scale_S = np.maximum(np.quantile(distance_PS, 0.99, axis=0) - middle_S, 1e-12)
    largest_P = ((distance_PS - middle_S) / scale_S).max(1)
    limit = np.sort(largest_P)[-max(1, int(false_alarm_rate * len(largest_P)))]
    # slightly lower, so that rounding in Evidently's own distance cannot change the verdict
    threshold_S = np.maximum((middle_S + limit * scale_S) * (1 - 1e-6), 1e-9)
    real_S = (distance_PS[0] - middle_S) / scale_S
    return [Shift(test.name, float(distance_PS[0, s]), float(threshold_S[s]), float((largest_P >= real_S[s]).mean()),
                  *(_middle(test.name, part) for part in (test.rows[:half], test.rows[half:])))
            for s, test in enumerate(tests)]


def _tests(reference: Profile, batch: Profile) -> list[_Test]:
    """The comparisons of what both sets have and what is not constant."""
    tests = []
    for name in (*QUERY_COLUMNS, *CLIP_COLUMNS):
        if name in reference.columns and name in batch.columns:
            rows_M = np.concatenate([reference.columns[name], batch.columns[name]]).astype(np.float64)
            tests.append(_Test(name, rows_M, wasserstein))
    for name in EMBEDDINGS:
        if name in reference.embeddings and name in batch.embeddings:
            rows_MD = np.concatenate([reference.embeddings[name], batch.embeddings[name]]).astype(np.float64)
            tests.append(_Test(name, rows_MD, energy_distance))
    tests = [test for test in tests if _comparable(test.rows, len(reference))]
    by_name = {test.name: test.rows for test in tests}
    levels = [by_name[name] for name in VIDEO_LEVELS if name in by_name]
    if levels:
        tests.append(_Test(CLASSIFIER, np.concatenate(levels, axis=1), classifier_gap))
    return tests


def assignments(real_M: np.ndarray, strata_M: np.ndarray, units_M: np.ndarray, count: int,
                generator: np.random.Generator) -> np.ndarray:
    """bool [1 + count, M]: which of the pooled rows form the batch in each split; row 0 is the real split `real_M`.

    Rows are exchanged only within their stratum. A stratum is the rows with the same columns missing, so that each
    column is always split into the same numbers of rows; otherwise 5 % false alarms became 20 %. In each stratum, whole
    units are drawn in random order until the batch has its rows; only the last one may be cut.
    """
    batch_PM = np.tile(real_M, (1 + count, 1))
    for stratum in np.unique(strata_M):
        rows = np.flatnonzero(strata_M == stratum)
        units = np.unique(units_M[rows], return_inverse=True)[1]
        keys_PU = generator.random((count, units.max() + 1))
        keys_PR = keys_PU[:, units] + 1e-9 * generator.random((count, len(rows)))
        size = int(real_M[rows].sum())
        chosen_PR = np.zeros((count, len(rows)), bool)
        if size:
            np.put_along_axis(chosen_PR, np.argpartition(keys_PR, size - 1, axis=1)[:, :size], True, axis=1)
        batch_PM[1:, rows] = chosen_PR
    return batch_PM


def _comparable(rows: np.ndarray, half: int) -> bool:
    finite_M = _finite(rows)
    enough = min(finite_M[:half].sum(), finite_M[half:].sum()) >= MIN_CLIPS
    return bool(enough and np.ptp(rows[finite_M], axis=0).max() > 0)


def _finite(rows: np.ndarray) -> np.ndarray:
    return np.isfinite(rows) if rows.ndim == 1 else np.isfinite(rows).all(1)


def _middle(name: str, part: np.ndarray) -> float:
    """The median, or the mean of columns whose usual value is that of more than half of the clips."""
    if part.ndim > 1:
        return float("nan")
    return float(np.nanmean(part) if name in MEANS else np.nanmedian(part))
