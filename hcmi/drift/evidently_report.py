"""Evidently measures each distance, compares it with the calibrated limit, and draws the distributions.

Its `EmbeddingsDrift` is not used: it draws a t-SNE on every run (9 of 9 seconds for 1,000 clips), and its `ratio`
method did not react to a mean shift. `EmbeddingShift` below measures the energy distance instead.
"""

import re
from functools import cache
from pathlib import Path

import evidently
import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.core.metric_types import SingleValue, SingleValueCalculation, SingleValueMetric
from evidently.legacy.renderers.html_widgets import CounterData, counter
from evidently.metrics import ValueDrift
from evidently.tests import lt

from hcmi.drift.profile import Profile, Shift, energy_distance
from hcmi.drift.summary import COLUMNS

_RANDOM_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
LIBRARY_MARK = "/*evidently-library*/"


class EmbeddingShift(SingleValueMetric):
    """Energy distance between the embeddings of two data sets. `columns` hold one coordinate each."""

    label: str
    columns: list[str]
    threshold: float


class EmbeddingShiftCalculation(SingleValueCalculation[EmbeddingShift]):
    """Evidently finds this class by its type parameter."""

    def calculate(self, context, current_data: Dataset, reference_data: Dataset | None) -> SingleValue:
        assert reference_data is not None, "an embedding shift needs a reference"
        parts = [data.as_dataframe()[self.metric.columns].to_numpy() for data in (reference_data, current_data)]
        is_current = np.arange(sum(map(len, parts)))[None] >= len(parts[0])
        distance = float(energy_distance(np.concatenate(parts), is_current)[0])
        result = self.result(distance)
        found = "detected" if distance >= self.metric.threshold else "not detected"
        result.widget = [counter(counters=[CounterData(
            f"Data drift {found}. Drift detection method: energy distance. Drift score: {distance:.4f}, "
            f"limit {self.metric.threshold:.4f}", f"Drift in {self.metric.label}")])]
        return result

    def display_name(self) -> str:
        return f"Energy distance of {self.metric.label}"


def compare_with_evidently(reference: Profile, batch: Profile, shifts: list[Shift]) -> tuple[set[str], str]:
    """The names of the shifts whose Evidently test fails, and Evidently's HTML page.

    The page has `LIBRARY_MARK` in place of Evidently's JavaScript, which is the same for all batches.
    """
    frames = [_frame(profile, shifts) for profile in (reference, batch)]
    metrics: list = []
    for shift in shifts:
        if shift.name in reference.embeddings:
            columns = _coordinates(shift.name, reference.embeddings[shift.name].shape[1])
            metrics.append(EmbeddingShift(label=_label(shift), columns=columns, threshold=shift.threshold,
                                          tests=[lt(shift.threshold)]))
        else:
            metrics.append(ValueDrift(column=_label(shift), method="wasserstein", threshold=shift.threshold))
    # coordinates are left out, because Evidently would spend seconds on the statistics of each
    definition = DataDefinition(numerical_columns=[_label(shift) for shift in shifts
                                                   if shift.name not in reference.embeddings])
    data = [Dataset.from_pandas(frame, data_definition=definition) for frame in frames]
    snapshot = Report(metrics, include_tests=True).run(data[1], data[0])
    tests = snapshot.dict()["tests"]
    assert len(tests) == len(shifts), f"{len(tests)} tests of {len(shifts)} shifts"
    failed = {shift.name for shift, test in zip(shifts, tests, strict=True) if test["status"].value == "FAIL"}
    return failed, _repeatable(snapshot.get_html_str(as_iframe=False).replace(library(), LIBRARY_MARK))


@cache
def library() -> str:
    """Evidently's JavaScript, 3.5 MB."""
    return (Path(evidently.__file__).parent / "nbextension" / "static" / "index.js").read_text(encoding="utf-8")


def _frame(profile: Profile, shifts: list[Shift]) -> pd.DataFrame:
    """The compared columns by label, and each embedding as one column per coordinate."""
    parts = {}
    for shift in shifts:
        if shift.name in profile.embeddings:
            rows_VD = profile.embeddings[shift.name]
            parts.update(dict(zip(_coordinates(shift.name, rows_VD.shape[1]), rows_VD.T, strict=True)))
        else:
            parts[_label(shift)] = profile.columns[shift.name].to_numpy()
    return pd.DataFrame(parts)


def _coordinates(name: str, count: int) -> list[str]:
    return [f"{name}_{number}" for number in range(count)]


def _label(shift: Shift) -> str:
    return COLUMNS[shift.name].label


def _repeatable(page: str) -> str:
    """Replace Evidently's random ids by numbers, so that equal input gives an equal page."""
    seen: dict[str, str] = {}
    return _RANDOM_ID.sub(lambda match: seen.setdefault(match[0], f"{len(seen):032x}"), page)
