"""The stage on real mp4 files: an unchanged batch passes, a brighter one does not, broken ones get a line each."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from made_scores import scores
from search_world import tiny_model, write_video

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from video_files import write_odd_folder

from hcmi.config import load_params
from hcmi.dataset import read_folder, write_manifest
from hcmi.drift import Scores, drift
from hcmi.drift.label_free_recall import faded
from hcmi.drift.profile import CLIP_COLUMNS, EMBEDDINGS, QUERY_COLUMNS, Shift
from hcmi.drift.stage import BatchReport, find_batches, search_quality
from hcmi.drift.summary import COLUMNS, advice, change, summary
from hcmi.errors import DriftError
from hcmi.export import export
from hcmi.shards import write_shards


def make_folder(folder: Path, count: int, low: int, high: int, seed: int, captions: bool = True,
                num_train: int = 0) -> None:
    generator = np.random.default_rng(seed)
    lines = ["video,caption,split"]
    for number in range(count):
        grey = int(generator.integers(low, high))
        seconds = 1.5 if number < num_train else 1.0        # so that no training clip has the bytes of a test clip
        write_video(folder / "videos" / f"clip_{seed}_{number:03d}.mp4", grey, seconds)
        caption = f"a {'red' if grey % 2 else 'blue'} ring of grey {grey} slides left"
        lines.append(f"clip_{seed}_{number:03d}.mp4,{caption},{'train' if number < num_train else 'test'}")
    if captions:
        (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory, repo_root):
    """Folders of a finished pipeline with 50 held-out clips and 20 more, and batches of every kind."""
    root = tmp_path_factory.mktemp("drift")
    params = load_params(repo_root / "params.yaml")
    dataset = params.dataset.model_copy(update={"name": "folder", "path": str(root / "raw")})
    shards = params.shards.model_copy(update={"size": 16, "num_frames": 6, "num_workers": 1})
    params = params.model_copy(update={"dataset": dataset, "shards": shards})
    make_folder(root / "raw", 70, 60, 120, seed=1, num_train=20)
    clips, _ = read_folder(root / "raw", dataset)
    write_manifest(sorted(clips, key=lambda clip: clip.video_id), root / "manifest.parquet")
    write_shards(manifest_path=root / "manifest.parquet", out_dir=root / "shards", config=shards)
    tiny_model().save_pretrained(root / "model")
    export(model_dir=root / "model", shards=root / "shards", out_dir=root / "export", config=params.export)
    incoming = root / "incoming"
    make_folder(incoming / "same", 24, 60, 120, seed=2)
    make_folder(incoming / "brighter", 24, 190, 240, seed=3)
    make_folder(incoming / "silent", 12, 60, 120, seed=4, captions=False)
    make_folder(incoming / "few", 3, 60, 120, seed=5)
    (incoming / "empty" / "videos").mkdir(parents=True)
    (incoming / "broken").mkdir()
    (incoming / "broken" / "film.mp4").write_bytes(b"no film")
    make_folder(incoming / "table", 1, 60, 120, seed=6)
    (incoming / "table" / "captions.csv").write_text("film,words\nx,y\n", encoding="utf-8")
    return root, params


def run(world, out: str, *batches: str, incoming: str = "incoming") -> dict:
    root, params = world
    return drift(incoming_dir=root / incoming, model_dir=root / "model", export_dir=root / "export",
                 shards_dir=root / "shards", out_dir=root / out, params=params, batches=batches)


@pytest.fixture(scope="module")
def result(world):
    return run(world, "reports/drift")


def of(result: dict, name: str) -> dict:
    return next(batch for batch in result["batches"] if batch["batch"] == name)


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


def test_page_says_the_gallery_once_and_how_sure_the_difference_is(world, result):
    page = (world[0] / "reports/drift/index.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="same">'):].split("</section>")[0]
    quality = of(result, "same")["recall_at_1"]
    low, high = quality["difference_95%_interval"]
    assert section.count("the same 20 clips") == 1
    assert (f"{quality['measured'] - quality['reference']:+.1f} points (95% interval {low:+.1f} to {high:+.1f})"
            in section)


def test_evidently_agrees_with_our_distances(result):
    for batch in result["batches"]:
        for shift in batch["shifts"]:
            if batch["verdict"] in ("ok", "drift"):
                assert shift["drifted"] == (shift["distance"] >= shift["limit"]), (batch["batch"], shift)


def test_page_stands_alone(world, result):
    page = (world[0] / "reports/drift/index.html").read_text(encoding="utf-8")
    assert "Drift report: 6 new batches: 1 drifted, 2 unreadable, 1 too small to judge, 2 as expected" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert page.count('id="evidently-') == 4        # three batches that were judged, and the library
    assert json.loads((world[0] / "reports/drift/report.json").read_text(encoding="utf-8")) == result


def test_batch_gets_the_same_answer_and_bytes_when_asked_for_alone(world, result):
    first, second = (run(world, f"alone_{number}", "brighter") for number in range(2))
    assert first["batches"] == [of(result, "brighter")]
    assert first == second
    pages = [(world[0] / f"alone_{number}" / "index.html").read_bytes() for number in range(2)]
    assert pages[0] == pages[1]


def test_no_batches_make_a_report_that_says_so(world):
    assert run(world, "nothing", incoming="not_there")["verdicts"] == {}
    page = (world[0] / "nothing/index.html").read_text(encoding="utf-8")
    assert "Drift report: No new batches" in page
    assert re.search(r"nothing in <code>\S+/not_there</code> to look at\. Put a folder of videos into", page)


def test_unknown_batch_is_named_with_the_known_ones(world):
    for names in (["new"], ["same", "new"]):
        with pytest.raises(DriftError, match=r"a batch called 'new', got brighter, broken, few, same, silent, table\."):
            find_batches(world[0] / "incoming", names)


def test_named_batches_are_found_once_by_name_and_an_empty_one_is_passed_over(world):
    found = find_batches(world[0] / "incoming", ["same", "empty", "few", "same"])
    assert [folder.name for folder in found] == ["few", "same"]


def test_page_names_the_batches_that_were_asked_for_when_they_are_empty(world):
    """As the pipeline's two are with a data set of one's own, while other batches lie beside them."""
    assert run(world, "asked", "empty")["verdicts"] == {}
    page = (world[0] / "asked/index.html").read_text(encoding="utf-8")
    assert re.search(r"nothing in <code>\S+/incoming/empty</code> to look at", page)


def test_export_of_another_model_is_refused_and_nothing_is_written(world):
    root, params = world
    tiny_model(seed=1).save_pretrained(root / "other")
    with pytest.raises(DriftError, match=r"export: need the export of this model \(\w{12}\), got one of model \w{12}"):
        drift(incoming_dir=root / "incoming", model_dir=root / "other", export_dir=root / "export",
              shards_dir=root / "shards", out_dir=root / "refused", params=params)
    assert not (root / "refused").exists()


def test_every_column_has_words():
    assert {*QUERY_COLUMNS, *CLIP_COLUMNS, *EMBEDDINGS} == set(COLUMNS)


def test_change_says_so_when_only_the_spread_moved():
    shift = Shift("brightness", 0.5, 0.2, 0.001, 100.2, 99.9)
    assert change(shift) == "brightness is spread differently around the same middle of 100 of 255"


def test_summary_counts_what_could_not_be_read():
    assert summary("ok", [], 40, 2).endswith("look like those the model was tested on. 2 more could not be read.")


def quality(batch: Scores, reference: Scores, generator: np.random.Generator) -> BatchReport:
    report = BatchReport("made", verdict="drift")
    search_quality(report, batch, reference, generator)
    return report


def with_wrong_captions(batch: Scores, share: float) -> Scores:
    texts = np.arange(len(batch))
    texts[:round(share * len(batch))] = np.roll(texts[:round(share * len(batch))], 1)
    return Scores(batch.clips_NN[texts], batch.gallery_NG[texts])


def test_unchanged_batches_have_the_references_recall_and_no_batch_is_said_to_be_worse():
    """With near copies of their own clips, as every batch has more of than a thin draw of the reference."""
    generator = np.random.default_rng(0)
    reference = scores(600, generator)
    found = [quality(scores(100, generator, near=0.3), reference, generator) for _ in range(30)]
    differences = [report.measured - report.expected for report in found]
    assert abs(np.mean(differences)) < 1.96 * np.std(differences) / 30**0.5 + 1.5
    assert {report.gallery for report in found} == {reference.gallery_NG.shape[1]}
    assert [report.advice for report in found if "fewer" in report.advice] == []
    inside = [low <= 0 <= high for low, high in (report.difference for report in found)]
    assert sum(inside) >= 27


@pytest.mark.parametrize("damage", [lambda batch: with_wrong_captions(batch, 0.3), lambda batch: faded(batch, 0.4)])
def test_damaged_batches_are_said_to_be_worse(damage):
    generator = np.random.default_rng(1)
    reference = scores(600, generator)
    for _ in range(5):
        report = quality(damage(scores(100, generator, near=0.3)), reference, generator)
        assert report.advice.startswith("Search finds fewer of these clips")


def test_recall_is_not_told_when_there_are_few_captions_or_no_gallery():
    generator = np.random.default_rng(2)
    for batch, reference in ((scores(9, generator), scores(50, generator)), (scores(50, generator), None),
                             (None, scores(50, generator))):
        report = quality(batch, reference, generator)
        assert (report.measured, report.expected, report.difference, report.estimate) == (None, None, None, None)
        assert report.advice.startswith("Look at the clips")


def test_advice_depends_on_whether_search_still_works():
    assert advice("drift", 40.0, 90.0, (-60.0, -40.0)).startswith(
        "Search finds fewer of these clips (R@1 40 % instead of 90 %)")
    assert advice("drift", 80.0, 90.0, (-21.0, 1.0)).startswith("Search finds them as well as before")
    assert advice("drift", None, None, None).startswith("Look at the clips")


def test_batch_is_judged_when_odd_files_are_among_its_videos(world):
    """Names in other encodings, of the batch too; pipes, dead links, folders called like videos."""
    root, _ = world
    good, bad = write_odd_folder(root / "odd" / "batch" / "videos")
    (root / "odd" / "caf\udce9").mkdir()
    write_video(root / "odd" / "caf\udce9" / "film.mp4", 100)
    result = run(world, "odd_report", incoming="odd")
    assert result["verdicts"] == {"batch": "unreadable", r"caf\xe9": "unreadable"}     # too many of them, of few videos
    batch = of(result, "batch")
    assert batch["found"] == len(good) + len(bad)
    assert f"{len(bad)} of {len(good) + len(bad)} clips cannot be read" in batch["summary"]
    assert "6 bad_name" in batch["summary"]
    assert "got a name that is not one line of UTF-8 text. Rename it." in of(result, r"caf\xe9")["summary"]
    page = (root / "odd_report/index.html").read_text(encoding="utf-8")
    assert r"caf\xe9.mp4" in page
