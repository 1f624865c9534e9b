"""The stage on real mp4 files: an unchanged batch passes, a brighter one does not, broken ones get a line each."""

import csv
import re
import shutil
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from drift_world import of, run
from made_scores import scores
from search_world import searchable_model, video_tokens, write_video
from video_files import write_odd_folder

from hcmi.drift import BatchReport, Profile, Reference, Scores, drift, judge, recall_at_1
from hcmi.drift.evidently_report import report_with_evidently
from hcmi.drift.judging import _measure
from hcmi.drift.profile import fit_temperature
from hcmi.drift.verdict import CHANGED, HURT, decide
from hcmi.errors import ConfigError, DriftError
from hcmi.types import Clip


def test_verdicts_of_each_kind_of_batch(result):
    assert result["verdicts"] | {"brighter": ""} == {
        "brighter": "", "broken": "cannot tell", "few": "cannot tell", "same": "ok", "silent": "ok",
        "table": "cannot tell"}
    assert result["verdicts"]["brighter"] in ("changed", "search hurt")
    assert {name: of(result, name)["reason"] for name in ("broken", "few", "same", "table")} == {
        "broken": "unreadable", "few": "too few", "same": "", "table": "unreadable"}


def test_report_says_what_changed_when_clips_are_brighter(result):
    assert any(re.search(r"clips are brighter: brightness 2\d\d of 255 instead of 8\d", change)
               for change in of(result, "brighter")["changes"])


def test_report_names_the_broken_file_and_the_wrong_table(result):
    assert "film.mp4" in of(result, "broken")["why"]
    assert "table" not in of(result, "broken")["why"]       # it has none
    assert "captions.csv row 1: need the columns video,caption" in of(result, "table")["why"]


def test_report_has_search_quality_where_captions_are_known(result):
    quality = of(result, "same")["recall_at_1"]
    assert of(result, "same")["severity"]["gallery"] == of(result, "brighter")["severity"]["gallery"] == 20
    assert quality["reference"] == of(result, "brighter")["recall_at_1"]["reference"]
    low, high = quality["difference_95%_interval"]
    assert low < quality["measured"] - quality["reference"] < high
    assert 0 <= quality["label_free_90%_interval"][0] <= quality["label_free"] <= 100
    assert of(result, "silent")["recall_at_1"] is None
    assert of(result, "few")["recall_at_1"] is None


def test_evidently_agrees_with_our_distances(world):
    """Each of its tests fails exactly where a distance is over its limit."""
    root, params = world
    reference = Reference(searchable_model(), root / "export", root / "shards", np.random.default_rng(0))
    report = judge(root / "incoming" / "brighter", reference, params, root / "shards")
    texts = ([""] * len(reference.profile), [""] * len(report.profile))
    found = report_with_evidently("brighter", report.verdict, reference.profile, report.profile, texts, report.shifts,
                                  report.severity)
    assert found.over == {shift.name for shift in report.shifts if shift.drifted} != set()


def test_batch_gets_the_same_answer_and_bytes_when_asked_for_alone(world, result):
    first, second = (run(world, f"alone_{number}", "brighter") for number in range(2))
    assert first["batches"] == [of(result, "brighter")]
    assert first == second
    pages = [(world[0] / f"alone_{number}" / "index.html").read_bytes() for number in range(2)]
    assert pages[0] == pages[1]


def test_shards_of_the_test_split_are_enough(world, result, tmp_path):
    """As a release has them."""
    root, params = world
    shutil.copytree(root / "shards", tmp_path / "shards", ignore=lambda _, names: [
        name for name in names if name.endswith(".tar") and not name.startswith("test")])
    alone = drift(incoming_dir=root / "incoming", model_dir=root / "model", export_dir=root / "export",
                  shards_dir=tmp_path / "shards", out_dir=tmp_path / "alone", params=params, batches=["same"])
    assert of(alone, "same") == of(result, "same")


def test_export_of_another_model_is_refused_and_nothing_is_written(world):
    root, params = world
    searchable_model(seed=1).save_pretrained(root / "other")
    with pytest.raises(DriftError, match=r"export: need the export of this model \(\w{12}\), got one of model \w{12}"):
        drift(incoming_dir=root / "incoming", model_dir=root / "other", export_dir=root / "export",
              shards_dir=root / "shards", out_dir=root / "refused", params=params)
    assert not (root / "refused").exists()


def test_a_mistyped_folder_of_batches_is_refused_and_the_report_that_was_there_stays(world, result):
    page = world[0] / "reports" / "drift" / "index.html"
    before = page.stat()
    with pytest.raises(DriftError, match=r"incomming: need a folder that holds a folder for each batch, got none\."):
        run(world, "reports/drift", incoming="incomming")
    assert page.stat() == before


def test_batch_is_judged_when_odd_files_are_among_its_videos(world):
    """Names in other encodings, of the batch too; pipes, dead links, folders called like videos."""
    root, _ = world
    good, bad = write_odd_folder(root / "odd" / "batch" / "videos")
    (root / "odd" / "caf\udce9").mkdir()
    write_video(root / "odd" / "caf\udce9" / "film.mp4", 100)
    result = run(world, "odd_report", incoming="odd")
    assert result["verdicts"] == {"batch": "cannot tell", r"caf\xe9": "cannot tell"}   # too many of them, of few videos
    batch = of(result, "batch")
    assert batch["found"] == len(good) + len(bad)
    assert f"{len(bad)} of {len(good) + len(bad)} clips cannot be read" in batch["why"]
    assert "1 empty_file" in batch["why"]
    page = (root / "odd_report/index.html").read_text(encoding="utf-8")
    assert r"caf\xe9" in page


def test_page_is_written_when_the_folder_of_batches_and_the_report_have_names_of_any_bytes(world, tmp_path):
    (tmp_path / "inc\udce9" / "b\udce9").mkdir(parents=True)
    for names, said in (((), r"inc\xe9</code>. Put"), (("b\udce9",), r"inc\xe9/b\xe9</code>. Put")):
        result = run(world, str(tmp_path / "rep\udce9"), *names, incoming=str(tmp_path / "inc\udce9"))
        assert result["verdicts"] == {}
        assert said in (tmp_path / "rep\udce9" / "index.html").read_text(encoding="utf-8")


def test_batch_whose_name_is_too_long_for_its_files_gets_a_line_and_the_others_a_verdict(world):
    """It ended the report on all batches after they had been judged."""
    root, _ = world
    for name in ("b" * 234, "c" * 233):
        shutil.copytree(root / "incoming" / "brighter", root / "long" / name)
    result = run(world, "long_report", incoming="long")
    assert of(result, "b" * 234)["why"].endswith(
        "need a name of at most 233 bytes, which the report's files have too, got 234. Rename the folder.")
    assert result["verdicts"]["b" * 234] == "cannot tell"
    assert result["verdicts"]["c" * 233] in ("changed", "search hurt")
    assert (root / "long_report" / f"{'c' * 233}.captions_to_write.csv").is_file()


class Known:
    """What `_measure` needs of a reference."""

    gallery = from_clips = None
    words: frozenset[str] = frozenset()

    def __init__(self, reference: Scores | None):
        self.scores, self.temperature = reference, 0.1 if reference is None else fit_temperature(reference.clips_NN)
        self.sample = Sampled(len(reference) if reference else 0)
        self.profile = Profile(pd.DataFrame(index=self.sample.captioned))


class Sampled:
    """What `_measure` needs of a sample: clips with one caption each."""

    def __init__(self, count: int):
        self.videos = video_tokens(count, np.random.default_rng(0))
        self.clips = [Clip(f"v{row}", f"v{row}.mp4", "test", ("a",), 0, 1, 1, f"{row}", {}) for row in range(count)]
        self.captioned, self.captions = np.arange(count), [f"caption {row}" for row in range(count)]


def quality(batch: Scores | None, reference: Scores | None) -> BatchReport:
    sample = Sampled(len(batch) if batch else 0)
    report = BatchReport("made", sample=sample, profile=Profile(pd.DataFrame(index=sample.captioned)))
    wrong = _measure(report, batch, Known(reference))
    report.causes = [wrong] if wrong else []
    report.verdict, report.reason = decide(True, report.severity, report.causes), ""
    return report


def with_wrong_captions(batch: Scores, share: float) -> Scores:
    texts = np.arange(len(batch))
    texts[:round(share * len(batch))] = np.roll(texts[:round(share * len(batch))], 1)
    return Scores(batch.clips_NN[texts], batch.gallery_NG[texts])


def test_unchanged_batches_have_the_references_recall_and_in_none_search_is_hurt():
    """With near copies among their clips, of which a batch has more than a small draw of the reference."""
    generator = np.random.default_rng(0)
    reference = scores(600, generator)
    found = [quality(scores(100, generator, near=0.3), reference) for _ in range(30)]
    differences = [report.measured.change for report in found]
    assert abs(np.mean(differences)) < 1.96 * np.std(differences) / 30**0.5 + 1.5
    assert {report.gallery for report in found} == {reference.gallery_NG.shape[1]}
    assert sum(report.verdict == HURT for report in found) <= 1
    inside = [report.measured.change_low <= 0 <= report.measured.change_high for report in found]
    assert sum(inside) >= 27


def test_search_is_hurt_when_recall_fell_by_ten_points():
    generator = np.random.default_rng(1)
    reference = scores(600, generator, noise=0.5)
    batches = [scores(200, generator, noise=0.68, near=0.3) for _ in range(20)]
    fallen = [batch for batch in batches if recall_at_1(batch) < recall_at_1(reference) - 10]
    assert len(fallen) >= 5
    assert {quality(batch, reference).verdict for batch in fallen} == {HURT}


def test_exchanged_captions_are_named_and_search_is_not_hurt():
    generator = np.random.default_rng(2)
    reference = scores(600, generator, noise=0.5)
    report = quality(with_wrong_captions(scores(200, generator, noise=0.5), 0.1), reference)
    assert report.measured.is_hurt
    assert report.verdict == CHANGED
    assert report.causes[0].name == "wrong captions"
    assert 15 <= report.causes[0].count <= 21
    assert report.severity.how == "measured without wrong captions"


def test_recall_is_left_out_when_there_are_few_captions_or_no_gallery():
    generator = np.random.default_rng(2)
    for batch, reference, advice in (
            (scores(9, generator), scores(50, generator), "Write captions for the clips in captions_to_write.csv"),
            (scores(50, generator), None, "Give the data set clips"),
            (scores(50, generator), scores(9, generator), "Give the data set clips"),
            (None, scores(50, generator), "Write captions for the clips in captions_to_write.csv")):
        report = quality(batch, reference)
        assert (report.measured, report.severity, report.estimate) == (None, None, None)
        assert report.advice.startswith(advice)


@pytest.fixture(scope="module")
def films(world):
    """Four bright films of 3 seconds in a sub-folder, divided into windows: `run`, the report and its folder."""
    root, params = world
    windows = params.windows.model_copy(update={"seconds": 0.5, "overlap_seconds": 0.0, "whole_seconds": 1.0})
    shorter = root, params.model_copy(update={"windows": windows})
    for number in range(4):
        write_video(root / "films" / "batch" / "videos" / "far #1?" / f"100 %2F{number}.mp4", 200 + 9 * number, 3.0)
    return shorter, run(shorter, "films_report/deep", incoming="films"), root / "films_report" / "deep"


def test_windows_can_be_measured_when_the_captions_to_write_are_written(films):
    """The table named each film six times without saying which part: the batch then had 4 clips."""
    shorter, first, out = films
    assert (first["verdicts"], of(first, "batch")["clips"]) == ({"batch": "changed"}, 24)
    with open(out / "batch.captions_to_write.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["video"], row["start"], row["end"]) for row in rows)[:6] == [
        ("far #1?/100 %2F0.mp4", start, end) for start, end in (("0.0", "0.5"), ("0.5", "1.0"), ("1.0", "1.5"),
                                                               ("1.5", "2.0"), ("2.0", "2.5"), ("2.5", ""))]
    table = shorter[0] / "films" / "batch" / "captions.csv"
    with open(table, "w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"caption": f"a ring {number}"} for number, row in enumerate(rows))
    batch = of(run(shorter, "films_again", incoming="films"), "batch")
    table.unlink()
    assert (batch["captioned"], batch["severity"]["how"]) == (24, "measured")
    assert batch["verdict"] != "cannot tell"


def test_links_lead_from_the_page_to_the_files_whatever_their_names(films):
    _, _, out = films
    links = re.findall(r'<small><a href="(.*?)"', (out / "index.html").read_text(encoding="utf-8"))
    files = {(out / unquote(urlsplit(link).path)).resolve() for link in links}
    assert any("100 %2F" in file.name for file in files)
    assert all(file.is_file() for file in files)


def test_a_folder_of_reports_is_not_replaced_by_one_of_them(world, tmp_path):
    """`--out reports/watch` deleted the reports on all batches, and with judged.json what had been judged."""
    (tmp_path / "watch" / "b").mkdir(parents=True)
    for told in ("b/report.json", "report.json", "judged.json"):
        (tmp_path / "watch" / told).write_text("{}")
        with pytest.raises(ConfigError, match=r"watch: need a folder for this report, .* with b in it\. Name a folder "
                                              r"in it, such as .*watch/same\."):
            run(world, str(tmp_path / "watch"), "same")
    assert (tmp_path / "watch" / "b" / "report.json").exists()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "judged.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"with judged.json in it\. Name a folder in it, such as .*/same\."):
        run(world, str(tmp_path / "alone"), "same")
