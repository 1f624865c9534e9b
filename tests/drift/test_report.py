"""The record of a batch as JSON."""

import json

from hcmi.drift.label_free_recall import Estimate
from hcmi.drift.profile import Shift
from hcmi.drift.report import SHOWN_SKIPS, BatchReport
from hcmi.types import Skip


def test_record_is_json_when_a_figure_is_missing_or_not_a_number():
    shift = Shift("video_embedding", 0.5, 0.2, 0.001, float("nan"), float("nan"))
    record = BatchReport("made", verdict="drift", shifts=[shift], failed={"video_embedding"}).to_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["recall_at_1"] is None
    assert record["shifts"] == [{"name": "video_embedding", "distance": 0.5, "limit": 0.2, "p_value": 0.001,
                                 "drifted": True, "reference_median": None, "batch_median": None}]


def test_record_rounds_recall_to_two_digits():
    report = BatchReport("made", measured=12.345678, expected=50.0, difference=(-40.126, -30.0), gallery=20,
                         estimate=Estimate(11.0, 9.0, 13.333333, 0.9))
    assert report.to_record()["recall_at_1"] == {
        "gallery": 20, "measured": 12.35, "reference": 50.0, "difference_95%_interval": [-40.13, -30.0],
        "label_free": 11.0, "label_free_90%_interval": [9.0, 13.33]}


def test_record_names_the_first_skipped_files_and_counts_all():
    skips = [Skip(f"v{number}", f"v{number}.mp4", "shards", "no_frames", "x") for number in range(SHOWN_SKIPS + 5)]
    skips.append(Skip("w", "captions.csv", "dataset", "duplicate", "x"))
    record = BatchReport("made", why="Nothing can be read.", skipped=skips).to_record()
    assert record["skipped"] == SHOWN_SKIPS + 6
    assert record["skipped_reasons"] == f"{SHOWN_SKIPS + 5} no_frames, 1 duplicate"
    assert [skip["path"] for skip in record["skipped_files"]] == [f"v{number}.mp4" for number in range(SHOWN_SKIPS)]
