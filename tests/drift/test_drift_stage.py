"""The stage on real mp4 files: an unchanged batch passes, a brighter one does not, broken ones get a line each."""

import re

import numpy as np
import pytest
from drift_world import of, run
from made_scores import scores
from search_world import searchable_model, write_video
from video_files import write_odd_folder

from hcmi.drift import Scores, drift
from hcmi.drift.label_free_recall import weakened
from hcmi.drift.report import BatchReport
from hcmi.drift.stage import measure_search_quality
from hcmi.errors import DriftError


def test_verdicts_of_each_kind_of_batch(result):
    assert result["verdicts"] == {"brighter": "drift", "broken": "unreadable", "few": "too small to judge",
                                  "same": "ok", "silent": "ok", "table": "unreadable"}


def test_report_says_what_changed_when_clips_are_brighter(result):
    assert any(re.search(r"clips are brighter: brightness 2\d\d of 255 instead of 8\d", change)
               for change in of(result, "brighter")["changes"])


def test_report_names_the_broken_file_and_the_wrong_table(result):
    assert "film.mp4" in of(result, "broken")["summary"]
    assert "captions.csv row 1: need the columns video,caption" in of(result, "table")["summary"]


def test_report_has_search_quality_where_captions_are_known(result):
    quality = of(result, "same")["recall_at_1"]
    assert quality["gallery"] == of(result, "brighter")["recall_at_1"]["gallery"] == 20
    assert quality["reference"] == of(result, "brighter")["recall_at_1"]["reference"]
    low, high = quality["difference_95%_interval"]
    assert low < quality["measured"] - quality["reference"] < high
    assert 0 <= quality["label_free_90%_interval"][0] <= quality["label_free"] <= 100
    assert of(result, "silent")["recall_at_1"] is None
    assert of(result, "few")["recall_at_1"] is None


def test_evidently_agrees_with_our_distances(result):
    for batch in result["batches"]:
        for shift in batch["shifts"]:
            if batch["verdict"] in ("ok", "drift"):
                assert shift["drifted"] == (shift["distance"] >= shift["limit"]), (batch["batch"], shift)


def test_batch_gets_the_same_answer_and_bytes_when_asked_for_alone(world, result):
    first, second = (run(world, f"alone_{number}", "brighter") for number in range(2))
    assert first["batches"] == [of(result, "brighter")]
    assert first == second
    pages = [(world[0] / f"alone_{number}" / "index.html").read_bytes() for number in range(2)]
    assert pages[0] == pages[1]


def test_export_of_another_model_is_refused_and_nothing_is_written(world):
    root, params = world
    searchable_model(seed=1).save_pretrained(root / "other")
    with pytest.raises(DriftError, match=r"export: need the export of this model \(\w{12}\), got one of model \w{12}"):
        drift(incoming_dir=root / "incoming", model_dir=root / "other", export_dir=root / "export",
              shards_dir=root / "shards", out_dir=root / "refused", params=params)
    assert not (root / "refused").exists()


def test_batch_is_judged_when_odd_files_are_among_its_videos(world):
    """Names in other encodings, of the batch too; pipes, dead links, folders called like videos."""
    root, _ = world
    good, bad = write_odd_folder(root / "odd" / "batch" / "videos")
    (root / "odd" / "caf\udce9").mkdir()
    write_video(root / "odd" / "caf\udce9" / "film.mp4", 100)
    result = run(world, "odd_report", incoming="odd")
    assert result["verdicts"] == {"batch": "unreadable", r"caf\xe9": "too small to judge"}
    batch = of(result, "batch")
    assert batch["found"] == len(good) + len(bad)
    assert f"{len(bad)} of {len(good) + len(bad)} clips cannot be read" in batch["summary"]
    assert "1 empty_file" in batch["summary"]
    page = (root / "odd_report/index.html").read_text(encoding="utf-8")
    assert r"caf\xe9" in page


def quality(batch: Scores, reference: Scores, generator: np.random.Generator) -> BatchReport:
    report = BatchReport("made", verdict="drift")
    measure_search_quality(report, batch, reference, generator)
    return report


def with_wrong_captions(batch: Scores, share: float) -> Scores:
    texts = np.arange(len(batch))
    texts[:round(share * len(batch))] = np.roll(texts[:round(share * len(batch))], 1)
    return Scores(batch.clips_NN[texts], batch.gallery_NG[texts])


def test_unchanged_batches_have_the_references_recall_and_none_is_reported_as_worse():
    """With near copies among their clips, of which a batch has more than a small draw of the reference."""
    generator = np.random.default_rng(0)
    reference = scores(600, generator)
    found = [quality(scores(100, generator, near=0.3), reference, generator) for _ in range(30)]
    differences = [report.measured - report.expected for report in found]
    assert abs(np.mean(differences)) < 1.96 * np.std(differences) / 30**0.5 + 1.5
    assert {report.gallery for report in found} == {reference.gallery_NG.shape[1]}
    assert [report.advice for report in found if "fewer" in report.advice] == []
    inside = [low <= 0 <= high for low, high in (report.difference for report in found)]
    assert sum(inside) >= 27


@pytest.mark.parametrize("damage", [lambda batch: with_wrong_captions(batch, 0.3), lambda batch: weakened(batch, 0.4)])
def test_damaged_batches_are_reported_as_worse(damage):
    generator = np.random.default_rng(1)
    reference = scores(600, generator)
    for _ in range(5):
        report = quality(damage(scores(100, generator, near=0.3)), reference, generator)
        assert report.advice.startswith("Search finds fewer of these clips")


def test_recall_is_left_out_when_there_are_few_captions_or_no_gallery():
    generator = np.random.default_rng(2)
    for batch, reference in ((scores(9, generator), scores(50, generator)), (scores(50, generator), None),
                             (None, scores(50, generator))):
        report = quality(batch, reference, generator)
        assert (report.measured, report.expected, report.difference, report.estimate) == (None, None, None, None)
        assert report.advice.startswith("Look at the clips")
