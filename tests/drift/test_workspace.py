"""A workspace of several batches: each panel of the dashboard has a point for each batch, and 1 is the limit of all."""

import asyncio
import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from made_batches import MadeReference, made_sample, new_shapes, scaled

from hcmi.drift.stage import _add_evidently
from hcmi.drift.workspace import FOLDERS, build_workspace, find_snapshots
from hcmi.errors import DriftError

BATCHES = {"2026-11-23_same": lambda sample, _: sample,
           "2026-11-20_brighter": lambda sample, _: scaled(sample, brightness=1.3),
           "2026-11-21_shapes": lambda sample, generator: new_shapes(sample, 0.3, generator)}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A folder of reports, one batch each; the verdicts of the batches."""
    root, reference, verdicts = tmp_path_factory.mktemp("reports"), MadeReference(100), {}
    for number, (name, make) in enumerate(BATCHES.items()):
        generator = np.random.default_rng(number)
        report = reference.judge(make(made_sample(40, generator), generator), generator)
        report.name = name
        _add_evidently(report, reference)
        (root / name).mkdir()
        (root / name / f"{name}.evidently.json").write_text(report.evidently_snapshot, encoding="utf-8")
        verdicts[name] = report.verdict
    return root, verdicts


def test_snapshot_holds_evidentlys_presets_descriptors_and_tests_and_opens_on_the_summary(reports):
    """No preset, descriptor or test was used, and the panel opened on 11,000 pixels of plots over the rows' numbers."""
    snapshot = json.loads(next(reports[0].glob("*_shapes/*.json")).read_text(encoding="utf-8"))
    kinds = {some["type"].rsplit(":")[-1] for some in _dicts(snapshot["metric_results"]) if "type" in some}
    assert {"RowCount", "DriftedColumnsCount", "ValueDrift", "DistanceOverLimit", "MeanValue"} <= kinds
    assert {"ValueDriftTest", "LessThanMetricTest", "GreaterOrEqualMetricTest"} <= kinds
    shown = [json.dumps([widget["title"], widget["params"]]) for widget in snapshot["widgets"]]
    assert "Dataset Summary" in shown[0]
    for said in ("Drift is detected for ", "Under the limit of 1", "Mean value of 'found first'", "caption length"):
        assert any(said in one for one in shown), said
    assert not [one for one in shown if "Index binned" in one]


def test_clips_without_a_caption_have_no_length_of_it_when_others_of_the_batch_have_captions():
    """They ended the run in a division by zero inside Evidently."""
    reference, generator = MadeReference(100), np.random.default_rng(5)
    sample = made_sample(40, generator)
    some = replace(sample, captioned=np.arange(20), captions=[caption[:9] for caption in sample.captions[:20]],
                   texts=sample.texts[np.arange(20)])
    report = reference.judge(some, generator)
    _add_evidently(report, reference)
    assert "Minimal value of 'caption length': current: 9.000" in report.evidently_snapshot


@pytest.fixture(scope="module")
def workspace(reports, tmp_path_factory):
    """Evidently's own view of the workspace, and its only project."""
    os.environ["DO_NOT_TRACK"] = "1"
    out = tmp_path_factory.mktemp("made") / "workspace"
    assert build_workspace([reports[0]], out) == 3
    from evidently.ui.workspace import Workspace

    found = Workspace(str(out))
    [project] = found.list_projects()
    return found, project


def test_each_batch_is_there_with_its_date_its_name_and_its_verdict(reports, workspace):
    found, project = workspace
    runs = [found.get_run(project.id, run) for run in found.list_runs(project.id)]
    assert {run.name: (run.timestamp.date().isoformat(), sorted(run.tags), run.metadata) for run in runs} == {
        name: (name[:10], sorted([name, verdict]), {"verdict": verdict}) for name, verdict in reports[1].items()}


def test_every_panel_draws_a_line_through_all_batches(workspace):
    """Four snapshots gave four lines of one point each, because each had its own limit as a parameter."""
    from evidently.ui.service.base import SeriesFilter

    found, project = workspace
    storage = found.datasets.project_manager.data_storage
    panels = [panel for panel in project.dashboard.model().panels if panel.values]
    assert len(panels) >= 5
    lines = {}
    for panel in panels:
        for value in panel.values:
            wanted = SeriesFilter(tags=[], metadata={}, metric=value.metric, metric_labels=value.metric_labels)
            answer = asyncio.run(storage.get_data_series(project.id, [wanted], None, None))
            points = {series.params.get("column", series.params.get("label", "")): [
                one for one in series.values if one is not None] for series in answer.series}
            lines[panel.title, value.legend] = points
            assert len(answer.series) <= 1, (panel.title, value.legend, points)     # not a line for each batch
            assert [source.timestamp.day for source in answer.sources] == sorted(
                source.timestamp.day for source in answer.sources)
    counts = {legend: sum(map(len, points.values())) for (_, legend), points in lines.items()}
    assert counts["R@1"] == counts["clips"] == counts["whole clips"] == counts["brightness"] == 3
    assert min(counts.values()) >= 1        # a column that is constant in a batch is not compared
    assert all(len(legend) <= 30 for legend in counts)      # Evidently cuts longer ones


def test_limit_of_each_distance_is_one_in_every_batch(reports):
    for path in reports[0].glob("*/*.json"):
        snapshot = json.loads(path.read_text(encoding="utf-8"))
        drifts = [some for some in _dicts(snapshot) if some.get("method") == "distance_over_limit"]
        assert drifts
        assert {some["threshold"] for some in drifts if some.get("threshold") is not None} == {1.0}


def _dicts(value):
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _dicts(one)


def test_of_two_reports_on_a_batch_the_newer_one_is_taken_and_an_undated_name_gets_the_time_of_its_file(tmp_path):
    for folder, seconds in (("a", 1_000_000_000), ("b", 1_100_000_000)):
        (tmp_path / folder).mkdir()
        for name in ("films", "2026-11-20"):
            path = tmp_path / folder / f"{name}.evidently.json"
            path.write_text("{}")
            os.utime(path, (seconds, seconds))
    assert find_snapshots([tmp_path]) == [
        (datetime.fromtimestamp(1_100_000_000, UTC), tmp_path / "b" / "films.evidently.json"),
        (datetime(2026, 11, 20, tzinfo=UTC), tmp_path / "b" / "2026-11-20.evidently.json")]


def test_what_a_killed_run_left_is_passed_over_and_a_broken_snapshot_is_named(reports, tmp_path, capsys):
    """A half-written snapshot in the temporary folder of a report ended `make drift-ui` in a traceback."""
    shutil.copytree(reports[0], tmp_path / "watch")
    one = next(tmp_path.glob("watch/*_same/*.json"))
    for number, text in enumerate(("{", "[]", '{"a": 1}')):
        (tmp_path / "watch" / f"odd_{number}").mkdir()
        (tmp_path / "watch" / f"odd_{number}" / f"odd_{number}.evidently.json").write_text(text)
    (tmp_path / "watch" / ".x.abcd1234.tmp").mkdir()
    (tmp_path / "watch" / ".x.abcd1234.tmp" / "x.evidently.json").write_text(one.read_text(encoding="utf-8"))
    assert build_workspace([tmp_path / "watch"], tmp_path / "out") == 3
    notes = capsys.readouterr().err.splitlines()
    assert [f"odd_{number}.evidently.json: need a snapshot" in note for number, note in enumerate(notes)] == [True] * 3


def test_no_reports_is_one_line(tmp_path):
    with pytest.raises(DriftError, match=r"need a drift report of a batch, got none\. Run `hcmi drift`"):
        build_workspace([tmp_path / folder for folder in FOLDERS], tmp_path / "out")
    assert not (tmp_path / "out").exists()
