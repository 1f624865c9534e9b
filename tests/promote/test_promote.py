"""`hcmi promote`, `rollback` and `releases`, on a model that real stages made."""

import json
import os
import re
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from model_world import COLOURS, write_film
from release_world import accept_batch, fingerprint, params, promote, put_batch
from search_world import call_hcmi

import hcmi.promote.stage as stage
from hcmi.dataset import batch_clips, is_held_out
from hcmi.evaluate import evaluate
from hcmi.index import SearchIndex
from hcmi.releases import Releases
from hcmi.shards import ShardReader

QUERY = "a red film then blue"
WORDS = ("first", "then", "last", "now", "later", "soon", "also")


def served() -> str | None:
    current = Releases("releases").current()
    return current and current.version


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ids(index: Path) -> set[str]:
    opened = SearchIndex.open(index)
    return {clip.video_id for clip in opened.clips(opened.live_rows())}


def test_first_release_is_served_with_its_lineage_and_searched_by_default(here):
    found = promote()
    assert (found["decision"], found["version"], found["replaces"]) == ("promoted", "v1", None)
    assert served() == "v1"
    record = json.loads((here / "releases/current/release.json").read_text())
    made_by = record["model"]["fingerprint"]
    assert made_by == fingerprint(here / "models/hcmi") == fingerprint(here / "releases/v1/model")
    assert record["videos"] == 30
    assert {"made", "code", "data", "params_yaml_sha256", "why", "figures"} <= set(record)
    assert (here / "releases/v1/params.yaml").read_bytes() == (here / "params.yaml").read_bytes()
    known = json.loads(call_hcmi("search", QUERY, "--json").stdout)
    for part in ("models", "export", "metrics", "plots"):       # a release needs nothing of what the stages write
        shutil.rmtree(here / part)
    assert json.loads(call_hcmi("search", QUERY, "--json").stdout) == known


def test_card_of_a_release_has_the_figures_and_the_data_of_the_release(here):
    promote()
    release = here / "releases/v1"
    card = ModelCard.load(release / "model/README.md")
    record = json.loads((release / "release.json").read_text())
    raw = json.loads((release / "metrics/evaluate.json").read_text())["raw"]
    assert (card.data.library_name, card.data.model_name) == ("hcmi", "hcmi v1")
    assert card.data["data_sha256"] == record["data"]["shards_sha256"]
    assert "text-video-retrieval" in card.data.tags
    found = {(result.metric_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {(f"R@{k}, {said}", f"recall_at_{k}"): raw[name][f"R@{k}"]
                     for name, said in (("t2v", "text to video"), ("v2t", "video to text")) for k in (1, 5, 10)}
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert record["model"]["fingerprint"] in card.text
    assert str(here) not in card.content
    assert "base_model" not in card.data.to_dict()
    [program] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    (here / "models/hcmi-v1").symlink_to(release / "model")     # as `hf download` puts it there
    scope: dict = {}
    exec(program, scope)
    assert scope["model"].fingerprint == record["model"]["fingerprint"]


def test_release_does_not_change_when_the_stages_files_are_overwritten_in_place(here):
    promote()
    before = files(here / "releases/v1")
    for path in [*(here / "export").rglob("*"), *(here / "models").rglob("*")]:
        if path.is_file():
            with open(path, "r+b") as file:
                file.write(b"overwritten")
    assert files(here / "releases/v1") == before


def test_nothing_changes_when_the_model_is_served_already(here):
    promote()
    before = files(here / "releases")
    assert promote()["decision"] == "unchanged"
    assert files(here / "releases") == before


def test_other_model_is_refused_with_figures_when_it_is_not_shown_to_be_better(here, retrain):
    promote()
    retrain("second")
    found = promote()
    assert (found["decision"], found["version"], found["replaces"]) == ("refused", None, "v1")
    assert found["why"].startswith("test set: R@1 ")
    assert found["test"]["queries"] == 6
    assert (served(), [release.version for release in Releases("releases").all()]) == ("v1", ["v1"])
    assert not list((here / "releases").glob(".v*"))
    lines = (here / "releases/decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["decision"] for line in lines] == ["promoted", "refused"]


def let_all_pass(here: Path) -> None:
    text = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(text.replace("margin: 1.0", "margin: 100.0"))


@pytest.fixture
def two(here, retrain) -> Path:
    """v1 and v2; v2 is served."""
    let_all_pass(here)
    promote()
    retrain("second")
    assert promote("--not-worse")["decision"] == "promoted"
    return here


def test_rollback_serves_the_release_before_and_its_model_is_not_promoted_again_by_itself(two):
    assert served() == "v2"
    found = json.loads(call_hcmi("rollback", "--json").stdout)
    assert (found["decision"], found["version"], found["replaces"]) == ("rolled back", "v1", "v2")
    assert served() == "v1"
    again = promote("--not-worse")
    assert again["decision"] == "refused"
    assert again["why"] == "v2 has this model and was rolled back. `hcmi promote --again` serves it all the same."
    assert promote("--again")["version"] == "v2"
    assert served() == "v2"
    assert Releases("releases").get("v2").withdrawn is None
    call_hcmi("rollback", "v1")
    call_hcmi("rollback", "v2")
    assert [(row["version"], row["current"], bool(row["withdrawn"])) for row in Releases("releases").table()] == [
        ("v1", False, True), ("v2", True, False)]
    text = call_hcmi("releases").stdout
    assert "* v2" in text
    assert "Rolled back to v2." in text


def test_rollback_says_so_in_one_line_when_there_is_nothing_before(here):
    assert call_hcmi("rollback", code=1).stderr == (
        "hcmi: releases: need a release before the served one, got none. `hcmi releases` lists them.\n")
    promote()
    assert call_hcmi("rollback", "v7", code=1).stderr == (
        "hcmi: releases: need a release called 'v7', got v1. `hcmi releases` lists them.\n")
    assert call_hcmi("rollback", "../models", code=1).stderr.startswith("hcmi: releases: need a release called")


def test_promotion_goes_on_when_it_was_killed_before_the_release_was_served(two):
    Releases("releases").serve("v1")        # as if the process had ended just before it served v2
    assert promote("--not-worse")["version"] == "v2"
    assert served() == "v2"


def test_no_model_passes_uncompared_where_releases_have_lost_their_link(two, retrain):
    """As after a copy without links. The model that comes next is v1's again, or a third one."""
    (two / "releases/current").unlink()
    for change in ("first", "third"):
        retrain("first")
        if change == "third":
            (two / "export/meta.json").write_text((two / "export/meta.json").read_text() + "\n")
        for options in ([], ["--not-worse"], ["--again"]):
            assert call_hcmi("promote", *options, code=1).stderr == (
                "hcmi: releases/current: need a link to the served release, got none, although there are v1, v2. Run "
                "`hcmi rollback VERSION`, then `hcmi promote` again.\n")
    assert [row["current"] for row in Releases("releases").table()] == [False, False]
    call_hcmi("rollback", "v2")
    assert served() == "v2"
    assert promote()["replaces"] == "v2"


def test_first_release_is_served_when_its_promotion_was_killed_before_that(here):
    promote()
    (here / "releases/current").unlink()
    found = promote()
    assert (found["decision"], found["version"], served()) == ("promoted", "v1", "v1")


def test_link_to_a_release_that_is_gone_is_said_and_rollback_goes_on(two):
    shutil.rmtree("releases/v2")
    said = ("hcmi: releases/current: need a link to a release, got one to 'v2'. Delete it and run "
            "`hcmi rollback VERSION`.\n")
    for verb in ("releases", "promote", "rollback"):
        assert call_hcmi(verb, code=1).stderr == said
    os.unlink("releases/current")
    call_hcmi("rollback", "v1")
    assert served() == "v1"


def test_promotion_is_refused_when_model_export_and_figures_do_not_belong_together(here, made):
    for part in ("models", "export"):
        shutil.rmtree(here / part)
        shutil.copytree(made / "second" / part, here / part)
    assert "metrics/ and plots/: need the figures of this model" in call_hcmi("promote", code=1).stderr
    shutil.rmtree(here / "export")
    assert call_hcmi("promote", code=1).stderr.startswith(
        "hcmi: export/meta.json: need a finished export to release, got none. Run `dvc repro`")
    assert served() is None
    assert Releases("releases").all() == []


def test_release_has_the_figures_of_the_file_that_is_named(here):
    """And nothing of the other models whose figures lie beside it."""
    named, older = here / "metrics/new.json", here / "metrics/evaluate.json"
    older.rename(named)
    report = json.loads(named.read_text())
    other = json.loads(named.read_text())
    for name in ("R@1", "R@5", "R@10"):
        other["raw"]["t2v"][name] = 11.1
    older.write_text(json.dumps(other))
    (here / "metrics/train").mkdir()
    (here / "metrics/train/metrics.json").write_text("{}")
    promote("--metrics", "metrics/new.json")
    release = here / "releases/v1"
    assert set(files(release / "metrics")) == {"evaluate.json", "train/metrics.json"}
    assert (release / "metrics/evaluate.json").read_bytes() == named.read_bytes()
    figures = json.loads((release / "release.json").read_text())["figures"]["t2v"]
    assert figures == {name: report["raw"]["t2v"][name] for name in figures}
    assert f"| text to video | {report['raw']['t2v']['R@1']:.1f} [" in (release / "model/README.md").read_text()


@pytest.mark.parametrize("name", ["metrics/none.json", "metrics", "none/evaluate.json"])
def test_promotion_is_refused_when_there_is_no_file_of_the_name_given(here, name):
    assert call_hcmi("promote", "--metrics", name, code=1).stderr == (
        f"hcmi: {name}: need the file of the model's figures, got none. Run `dvc repro`, then `hcmi promote` again.\n")
    assert Releases("releases").all() == []


def test_promotion_is_refused_when_figures_and_plots_are_of_different_runs(here):
    path = here / "metrics/evaluate.json"
    report = json.loads(path.read_text())
    was = report["raw"]["t2v"]["R@1"]
    report["raw"]["t2v"]["R@1"] = was + 1
    path.write_text(json.dumps(report))
    assert call_hcmi("promote", code=1).stderr == (
        f"hcmi: metrics/ and plots/: need the figures of one run, got t2v R@1 {was + 1} in the file and {was} in "
        "plots/. Run `dvc repro`, then `hcmi promote` again.\n")
    path.write_text("{")
    assert "need the figures of the model, got none that can be read" in call_hcmi("promote", code=1).stderr
    assert Releases("releases").all() == []


def test_promotion_is_refused_with_the_shards_of_another_run(here, tmp_path):
    shutil.copytree(here / "data/shards", tmp_path / "shards")
    index = pq.read_table(tmp_path / "shards/index.parquet")
    pq.write_table(index.filter(pc.not_equal(index["split"], "test")), tmp_path / "shards/index.parquet")
    said = call_hcmi("promote", "--shards", str(tmp_path / "shards"), code=1).stderr
    assert re.search(r"shards: need the test clips of the export, got shards of another run, without \w+\. Run", said)
    assert Releases("releases").all() == []


@pytest.mark.parametrize("case", ["other videos", "figures of another run", "broken ranks"])
def test_served_model_is_measured_again_when_its_figures_cannot_be_compared(two, monkeypatch, case):
    """Ids and captions are the same: only the files have changed since v2 was measured. Or v2 has other figures than
    its ranks, as earlier versions took with --metrics, or a damaged file.
    """
    path = two / "releases/v2/metrics/evaluate.json"
    report = json.loads(path.read_text())
    if case == "other videos":
        report["protocol"]["videos_sha256"] = "0" * 64
    elif case == "figures of another run":
        report["raw"]["t2v"]["R@1"] += 1
    else:
        (two / "releases/v2/plots/ranks.parquet").write_bytes(b"PAR1")
    path.write_text(json.dumps(report))
    measured: list[Path] = []
    monkeypatch.setattr(stage, "evaluate", lambda **given: measured.append(given["model_dir"]) or evaluate(**given))
    (two / "export/meta.json").write_text((two / "export/meta.json").read_text() + "\n")       # another export
    promote("--not-worse")
    assert measured == [Path("releases/v2/model")]


def test_served_model_is_measured_on_frames_of_its_own_size(here):
    promote()
    release = Releases("releases").current()
    stats = json.loads((release.shards / "stats.json").read_text())
    with stage._test_shards(release, here / "data/shards", params(here)) as shards:
        assert shards == here / "data/shards"
    (release.shards / "stats.json").write_text(json.dumps(stats | {"size": 24}))
    with stage._test_shards(release, here / "data/shards", params(here)) as shards:
        theirs, ours = ShardReader(shards, "test"), ShardReader(here / "data/shards", "test")
        assert theirs.frames(0, [0]).shape == (1, 24, 24, 3)
        assert {clip.video_id: clip.captions for clip in theirs.clips} == {
            clip.video_id: clip.captions for clip in ours.clips}


def films(folder: Path, count: int) -> list[Path]:
    pairs = [(one, other) for one in COLOURS for other in COLOURS if one != other][:count]
    return [write_film(folder / f"new_{one}_{other}.mp4", [one, other], frames_each=8) for one, other in pairs]


def test_accepted_batches_are_in_the_index_of_every_later_release(here, retrain, tmp_path):
    let_all_pass(here)
    promote()
    videos = films(tmp_path / "films", 4)
    batch = put_batch(here, "monday", videos)
    accept_batch(here, "monday")
    retrain("second")
    promote("--not-worse")
    clips, _ = batch_clips(batch, params(here).dataset)
    assert len(clips) == 4
    assert {clip.video_id for clip in clips} <= ids(here / "releases/current/export/index")
    assert Releases("releases").current().batches == ["content"]
    assert promote("--not-worse")["decision"] == "unchanged"        # the batch made no other model of it


def test_newest_batches_are_compared_on_clips_that_no_training_sees(here, retrain, held, tmp_path):
    let_all_pass(here)
    promote()
    videos = [*films(tmp_path / "films", 30), *held]
    batch = put_batch(here, "monday", videos, {path.name: f"a {path.stem.replace('_', ' ')} film" for path in videos})
    with open(batch / "captions.csv", "a") as file:
        file.writelines(f"{path.name},{words} {path.stem}\n" for path in videos for words in WORDS)
    accept_batch(here, "monday", "search hurt", searched=False)
    clips, _ = batch_clips(batch, params(here).dataset)
    kept = [clip for clip in clips if is_held_out(clip)]
    assert len(held) <= len(kept) < len(clips)
    retrain("second")
    found = promote("--not-worse")
    assert found["batches"]["queries"] == (1 + len(WORDS)) * len(kept)
    assert found["batches"]["where"] == "newest batches"


def test_current_is_refused_when_it_is_no_link(here):
    os.makedirs("releases/current")
    assert call_hcmi("releases", code=1).stderr.startswith("hcmi: releases/current: need a link to a release, got")
