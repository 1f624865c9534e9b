"""Batches that cannot be read: what is said depends on whether the files, the table or the machine is at fault."""

import re
from dataclasses import replace

import numpy as np
import pytest
from drift_world import make_folder, of, run
from search_world import searchable_model

from hcmi.dataset import NothingUsableError
from hcmi.drift import Reference, judge
from hcmi.drift.judging import why_unreadable
from hcmi.errors import MachineError
from hcmi.types import Skip


@pytest.fixture(scope="module")
def reference(world) -> Reference:
    root, _ = world
    return Reference(searchable_model(), root / "export", root / "shards", np.random.default_rng(0))


@pytest.fixture(scope="module")
def troubled(world) -> dict:
    """The report on videos alone that cannot be read, on a folder without videos, and on clips with empty captions."""
    root, _ = world
    videos = root / "troubled" / "unread" / "videos"
    videos.mkdir(parents=True)
    for number in range(3):
        (videos / f"film_{number}.mp4").write_bytes(b"no film %d" % number)
    (root / "troubled" / "notes").mkdir()
    (root / "troubled" / "notes" / "notes.txt").write_text("to be filmed")
    make_folder(root / "troubled" / "hushed", 12, 60, 120, seed=7)
    table = root / "troubled" / "hushed" / "captions.csv"
    rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([rows[0], *(f"{row.split(',')[0]},,test" for row in rows[1:])]) + "\n", encoding="utf-8")
    make_folder(root / "troubled" / "told", 12, 60, 120, seed=8)
    table = root / "troubled" / "told" / "captions.csv"
    head, *rows = table.read_text(encoding="utf-8").splitlines()
    rows += [row.replace("a ", f"{number} times a ", 1) for row in rows for number in range(19)]
    rows += [f"{row.split(',')[0]},,test" for row in rows[:4]]
    table.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return run(world, "troubled_report", incoming="troubled")


def test_videos_that_cannot_be_read_are_counted_and_no_table_is_blamed(world, troubled):
    batch = of(troubled, "unread")
    assert (batch["verdict"], batch["reason"], batch["found"]) == ("cannot tell", "unreadable", 3)
    assert batch["why"].startswith("3 of 3 clips cannot be read (3 not_a_video); at most ")
    assert re.search(r"The first: .*film_\d\.mp4: need a video that can be decoded", batch["why"])
    assert batch["advice"] == "Correct what the report names and run again."
    assert not [word for word in ("table", "caption") if word in batch["why"] + batch["advice"]]
    assert {skip["path"].rsplit("/", 1)[1] for skip in batch["skipped_files"]} == {
        "film_0.mp4", "film_1.mp4", "film_2.mp4"}
    page = (world[0] / "troubled_report/index.html").read_text(encoding="utf-8")
    assert "film_2.mp4</code> not_a_video" in page


def test_batch_without_a_readable_clip_says_why_when_every_clip_may_fail(world, troubled):
    root, params = world
    lenient = params.model_copy(update={"shards": params.shards.model_copy(update={"max_skip_fraction": 1.0})})
    batch = of(run((root, lenient), "lenient", "unread", incoming="troubled"), "unread")
    assert batch["why"].startswith("3 of 3 clips cannot be read (3 not_a_video)")


def test_folder_without_videos_is_told_to_add_one(troubled):
    batch = of(troubled, "notes")
    assert (batch["verdict"], batch["reason"]) == ("cannot tell", "unreadable")
    assert "need at least one readable video, got none (no rows). Add one." in batch["why"]


def test_empty_captions_are_named_and_are_not_ok(troubled):
    batch = of(troubled, "hushed")
    assert batch["verdict"] == "changed"
    assert batch["captioned"] == 0
    assert batch["why"].startswith("All captions are empty.")
    assert batch["advice"].startswith("Fill in the captions: without them nobody can say whether search still finds")


def test_empty_captions_are_compared_with_all_captions_and_not_with_one_of_each_clip(troubled):
    """4 beside 12 clips with 20 captions each were said to be 4 of 16."""
    batch = of(troubled, "told")
    assert (batch["captioned"], batch["skipped_reasons"]) == (12, "4 empty_caption")
    assert [cause for cause in batch["causes"] if cause["name"] == "empty captions"] == []


def skips(*reasons: str) -> list[Skip]:
    return [Skip(f"v{row}", f"v{row}.mp4", "dataset", reason, f"v{row}.mp4: need a video, got none.")
            for row, reason in enumerate(reasons)]


def test_reason_is_the_machine_when_most_files_failed_in_it():
    reason, why = why_unreadable(skips("timeout", "crashed", "no_frames"), 40, 0.05)
    assert (reason, why) == ("machine", "3 of 40 clips cannot be read in time (1 timeout, 1 crashed, 1 no_frames); at "
                                        "most 5% may fail. The first: v0.mp4: need a video, got none.")
    assert why_unreadable(skips("timeout", "no_frames"), 2, 0.05)[0] == "unreadable"


def test_clips_that_were_drawn_stand_for_all_when_a_batch_is_large():
    """480 of the 600 that were drawn timed out, but only 8 % of the 6,000 that were found did.
    """
    drawn = [replace(skip, stage="shards") for skip in skips(*["timeout"] * 480)]
    reason, why = why_unreadable(drawn, 6_000, 0.1)
    assert (reason, why.split(";")[0]) == (
        "machine", "About 4,800 of 6,000 clips cannot be read in time (480 timeout of 600 that were drawn at random)")
    listed = skips(*["no_frames"] * 60)         # of 600, and 27 of the other 540, which is 5 % of them: 87 of 600
    both = listed + drawn[:27]
    assert why_unreadable(both, 600, 0.14)[1].startswith("87 of 600 clips cannot be read (60 no_frames, 27 timeout)")
    assert why_unreadable(both, 600, 0.145) is None
    # 600 of 6,000, and 30 of 600 that were drawn of the other 5,400, which is 270 of them
    assert why_unreadable(skips(*["no_frames"] * 600) + drawn[:30], 6_000, 0.146) is None
    assert why_unreadable(skips(*["no_frames"] * 600) + drawn[:30], 6_000, 0.144)[1].startswith("About 870 of 6,000")
    assert why_unreadable([], 6_000, 0.0) is None


@pytest.mark.parametrize("error", [
    MachineError("decoder process: need it ready within 120 s, got no answer. Run again."),
    NothingUsableError("same: need at least one readable video, got none (timeout 2). Add one.",
                       skips("timeout", "timeout"))])
def test_machine_trouble_is_not_the_fault_of_the_batch(world, reference, monkeypatch, error):
    """The decoder process that did not start became 'unreadable, put this right'; so did videos that all timed out."""
    root, params = world

    def busy(*_):
        raise error

    monkeypatch.setattr("hcmi.drift.judging.read_batch", busy)
    report = judge(root / "incoming" / "same", reference, params, root / "shards")
    assert (report.verdict, report.reason) == ("cannot tell", "machine")
    assert report.advice == "The batch is not at fault. Run again when the machine is less busy."
    assert "Add one" not in report.why
