"""Evidently's report on one batch: presets, text descriptors, tests; as a page, and as a snapshot for a workspace.

Every distance is divided by its limit, so that one threshold of 1 holds for all columns, batches and times, and
Evidently can draw trends. `DistanceOverLimit` is for what Evidently has no metric for: its `EmbeddingsDrift` draws a
t-SNE on every run (9 of 9 seconds for 1,000 clips), and its `ratio` method did not react to a mean shift.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import evidently
import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.core.metric_types import SingleValue, SingleValueCalculation, SingleValueMetric
from evidently.descriptors import NonLetterCharacterPercentage, TextLength
from evidently.legacy.calculations.stattests import StatTest, register_stattest
from evidently.legacy.calculations.stattests.wasserstein_distance_norm import wasserstein_stat_test
from evidently.legacy.core import ColumnType
from evidently.legacy.renderers.html_widgets import CounterData, counter
from evidently.metrics import MeanValue, QuantileValue
from evidently.presets import DataDriftPreset, DatasetStats, TextEvals
from evidently.tests import gte, lt

from hcmi.drift.compare import Shift
from hcmi.drift.profile import Profile
from hcmi.drift.severity import Severity
from hcmi.drift.summary import COLUMNS

_RANDOM_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
LIBRARY_MARK = "/*evidently-library*/"
METHOD = "distance_over_limit"
NO_DATE = datetime(2000, 1, 1, tzinfo=UTC)      # a workspace sets the real one; equal input gives equal bytes
# Evidently draws each of these; each costs a tenth of a CPU second.
SHOWN = ("rank", "own_score", "margin", "unknown_words", "nearest_known", "duration_s", "brightness", "sharpness",
         "motion")
FOUND, CAPTION = "found first", "caption"
CAPTION_COLUMNS = {"caption length": TextLength, "caption symbols, per cent": NonLetterCharacterPercentage}
_limits: ContextVar[dict[str, float]] = ContextVar("limits")


def _distance_over_limit(reference: pd.Series, current: pd.Series, feature_type: ColumnType,
                         threshold: float) -> tuple[float, bool]:
    distance = wasserstein_stat_test(reference, current, feature_type, threshold).drift_score
    ratio = distance / _limits.get()[str(reference.name)]
    return ratio, ratio >= threshold


register_stattest(StatTest(METHOD, "Wasserstein distance divided by its limit", [ColumnType.Numerical], 1.0),
                  _distance_over_limit)


class DistanceOverLimit(SingleValueMetric):
    """A distance between two data sets divided by its limit, as hcmi measured it; in the current data's metadata."""

    class Config:
        type_alias = "evidently:metric_v2:DistanceOverLimit"

    label: str


class DistanceOverLimitCalculation(SingleValueCalculation[DistanceOverLimit]):
    """Evidently finds this class by its type parameter."""

    def calculate(self, context, current_data: Dataset, reference_data: Dataset | None) -> SingleValue:
        ratio = float(current_data.metadata[self.metric.label])
        result = self.result(ratio)
        result.widget = [counter(counters=[CounterData(
            f"{'Over' if ratio >= 1 else 'Under'} the limit of 1", f"{self.metric.label}: {ratio:.2f}")])]
        return result

    def display_name(self) -> str:
        return f"Distance over limit: {self.metric.label}"


@dataclass(frozen=True)
class EvidentlyReport:
    """`over`: the shifts whose test fails. `page` has `LIBRARY_MARK` in place of Evidently's JavaScript."""

    over: set[str]
    page: str
    snapshot: str       # JSON


def report_with_evidently(name: str, verdict: str, reference: Profile, batch: Profile, captions: tuple[list, list],
                          shifts: list[Shift], severity: Severity | None) -> EvidentlyReport:
    """Evidently's own answer to the same data. `captions`: of the reference's and the batch's clips, "" for none."""
    columns = [shift for shift in shifts if shift.name in SHOWN]
    others = [shift for shift in shifts if shift.name not in SHOWN]
    with_captions = any(captions[0]) and any(captions[1])
    data = [_dataset(profile, texts, columns, with_captions) for profile, texts in
            zip((reference, batch), captions, strict=True)]
    data[1].metadata.update({_label(shift.name): shift.ratio for shift in others})
    metrics: list = [DatasetStats()]
    if columns:
        metrics.append(DataDriftPreset(columns=[_label(shift.name) for shift in columns], num_method=METHOD,
                                       num_threshold=1.0))
    metrics += [DistanceOverLimit(label=_label(shift.name), tests=[lt(1.0)]) for shift in others]
    if severity is not None and "rank" in batch.columns:
        known = (reference.columns["rank"] == 1).sum() / max(reference.columns["rank"].notna().sum(), 1)
        metrics += [MeanValue(column=FOUND, tests=[gte(max(0.0, known - 0.05))]),
                    QuantileValue(column=_label("rank"), quantile=0.9)]
    if with_captions:
        metrics.append(TextEvals(columns=list(CAPTION_COLUMNS)))
    with _limits_of(columns), np.errstate(invalid="ignore", divide="ignore"):     # correlations of constant columns
        snapshot = Report(metrics, include_tests=True).run(data[1], data[0], timestamp=NO_DATE, name=name,
                                                           tags=[name, verdict], metadata={"verdict": verdict})
    failed = _over(snapshot)
    over = {shift.name for shift in shifts if _label(shift.name) in failed}
    page = _repeatable(snapshot.get_html_str(as_iframe=False).replace(library(), LIBRARY_MARK))
    return EvidentlyReport(over, page, _repeatable(snapshot.dumps()))


def _over(snapshot: Any) -> set[str]:
    """The labels of the distances whose test fails."""
    failed = [test.metric_config.params for test in snapshot.tests_results if test.status.value == "FAIL"]
    return {params["label"] if "label" in params else params["column"] for params in failed
            if "label" in params or params.get("method") == METHOD}


@contextmanager
def _limits_of(shifts: list[Shift]) -> Iterator[None]:
    token = _limits.set({_label(shift.name): shift.threshold for shift in shifts})
    try:
        yield
    finally:
        _limits.reset(token)


@cache
def library() -> str:
    """Evidently's JavaScript, 3.5 MB."""
    return (Path(evidently.__file__).parent / "nbextension" / "static" / "index.js").read_text(encoding="utf-8")


def _dataset(profile: Profile, captions: list[str], shifts: list[Shift], with_captions: bool) -> Dataset:
    """The compared columns by label. Coordinates are left out: Evidently would spend seconds on the statistics of each.
    """
    frame = pd.DataFrame({_label(shift.name): profile.columns[shift.name].to_numpy() for shift in shifts})
    if "rank" in profile.columns:
        rank = profile.columns["rank"]
        frame[FOUND] = np.where(rank.notna(), (rank == 1).astype(float), np.nan)
        frame[_label("rank")] = rank.to_numpy()
    numbers = list(frame.columns)
    if not with_captions:
        return Dataset.from_pandas(frame, data_definition=DataDefinition(numerical_columns=numbers))
    frame[CAPTION] = [caption or None for caption in captions]      # Evidently divides by the length of a text
    descriptors = [make(CAPTION, alias=name) for name, make in CAPTION_COLUMNS.items()]
    definition = DataDefinition(numerical_columns=numbers, text_columns=[CAPTION])
    dataset = Dataset.from_pandas(frame, data_definition=definition, descriptors=descriptors)
    found = dataset.as_dataframe()
    found[list(CAPTION_COLUMNS)] = found[list(CAPTION_COLUMNS)].where(found[CAPTION].notna())   # Evidently's are 0
    return dataset


def _label(name: str) -> str:
    return COLUMNS[name].label


def _repeatable(text: str) -> str:
    """Replace Evidently's random ids by numbers, so that equal input gives an equal page."""
    seen: dict[str, str] = {}

    def numbered(match: re.Match) -> str:
        new = uuid.UUID(int=len(seen))
        return seen.setdefault(match[0], str(new) if "-" in match[0] else new.hex)

    return _RANDOM_ID.sub(numbered, text)
