"""The record of a batch as JSON."""

import json

from hcmi.drift.compare import Shift
from hcmi.drift.label_free_recall import Estimate
from hcmi.drift.report import SHOWN_SKIPS, BatchReport
from hcmi.drift.severity import MEASURED, Severity
from hcmi.types import Skip


def test_record_is_json_when_a_figure_is_missing_or_not_a_number():
    shift = Shift("video_embedding", 0.5, 0.2, 0.001, float("nan"), float("nan"))
    record = BatchReport("made", verdict="changed", reason="", shifts=[shift]).to_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["recall_at_1"] is None
    assert record["severity"] is None
    assert record["shifts"] == [{"name": "video_embedding", "distance": 0.5, "limit": 0.2, "distance_over_limit": 2.5,
                                 "limit_raised": 1.0,
                                 "p_value": 0.001, "drifted": True, "reference_median": None, "batch_median": None}]


def test_record_has_the_severity_with_its_intervals():
    severity = Severity(12.345678, 5.0, 20.0, 50.0, -37.654322, -50.126, -30.0, MEASURED, 40)
    report = BatchReport("made", verdict="search hurt", severity=severity, measured=severity, gallery=20,
                         estimate=Estimate(11.0, 9.0, 13.333333, 0.9))
    record = report.to_record()
    assert record["severity"] == {
        "recall_at_1": 12.35, "interval": [5.0, 20.0], "reference": 50.0, "change": -37.65,
        "change_interval": [-50.13, -30.0], "how": "measured", "captions": 40, "gallery": 20}
    assert record["recall_at_1"] == {
        "measured": 12.35, "reference": 50.0, "difference_95%_interval": [-50.13, -30.0],
        "label_free": 11.0, "label_free_90%_interval": [9.0, 13.33]}


def test_record_names_the_first_skipped_files_and_counts_all():
    skips = [Skip(f"v{number}", f"v{number}.mp4", "shards", "no_frames", "x") for number in range(SHOWN_SKIPS + 5)]
    skips.append(Skip("w", "captions.csv", "dataset", "duplicate", "x"))
    record = BatchReport("made", trouble="Nothing can be read.", skipped=skips).to_record()
    assert record["verdict"] == "cannot tell"
    assert record["reason"] == "unreadable"
    assert record["skipped"] == SHOWN_SKIPS + 6
    assert record["skipped_reasons"] == f"{SHOWN_SKIPS + 5} no_frames, 1 duplicate"
    assert [skip["path"] for skip in record["skipped_files"]] == [f"v{number}.mp4" for number in range(SHOWN_SKIPS)]
