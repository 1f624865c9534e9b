"""The page of a report: it says what report.json says, and needs no other file."""

import json
import re

from drift_world import of, run

from hcmi.drift import BatchReport
from hcmi.drift.causes import Cause
from hcmi.drift.page import PER_CENT, STATIC, _causes


def test_page_says_the_gallery_once_and_how_sure_the_difference_is(world, result):
    page = (world[0] / "reports/drift/index.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="same">'):].split("</section>")[0]
    quality = of(result, "same")["recall_at_1"]
    low, high = quality["difference_95%_interval"]
    assert section.count("the same 20 clips") == 1
    assert (f"{quality['measured'] - quality['reference']:+.1f} points (95% interval {low:+.1f} to {high:+.1f})"
            in section)


def test_page_stands_alone(world, result):
    page = (world[0] / "reports/drift/index.html").read_text(encoding="utf-8")
    assert "Drift report: 6 new batches: " in page
    assert not re.search(r'src="(?!#|data:)', page)
    assert not re.search(r'href="https?:', page)        # links lead to the videos alone
    assert page.count('id="evidently-') == 4        # three batches that were judged, and the library
    assert json.loads((world[0] / "reports/drift/report.json").read_text(encoding="utf-8")) == result


def test_no_line_ends_between_a_figure_and_its_per_cent():
    assert PER_CENT.sub("_%", '<a href="a 5 %.mp4">98 % (90 to 100)</a> 5 %<b>') == (
        '<a href="a 5 %.mp4">98_% (90 to 100)</a> 5_%<b>')


def test_a_cause_is_said_once_unless_it_has_details():
    report = BatchReport("made", verdict="changed", reason="", causes=[
        Cause("copies within the batch", "6 clips of 40 repeat another clip of the batch", "Remove them.", 6, 40),
        Cause("wrong captions", "4 captions of 40 probably belong to another clip of the batch", "Check them.", 4, 40,
              details=["a red ring"])])
    assert _causes(report) == ('<ul class="causes"><li><b>4 captions of 40 probably belong to another clip of the '
                               "batch.</b> Check them.<br><small>a red ring</small></li></ul>")


def test_no_batches_make_a_report_that_says_so(world):
    (world[0] / "to_come").mkdir()
    assert run(world, "nothing", incoming="to_come")["verdicts"] == {}
    page = (world[0] / "nothing/index.html").read_text(encoding="utf-8")
    assert "Drift report: No new batches" in page
    assert re.search(r"no videos in <code>\S+/to_come</code>\. Put a folder of videos into", page)


def test_page_names_the_batches_that_were_asked_for_when_they_are_empty(world):
    """The pipeline's two batches are empty with the user's own data set, while other batches exist."""
    assert run(world, "asked", "empty")["verdicts"] == {}
    page = (world[0] / "asked/index.html").read_text(encoding="utf-8")
    assert re.search(r"no videos in <code>\S+/incoming/empty</code>", page)


def test_page_has_every_part_of_its_skeleton_filled(world, result):
    marks = re.findall(r"<!--\w+-->", (STATIC / "page.html").read_text(encoding="utf-8"))
    assert len(marks) == 7
    page = (world[0] / "reports/drift/index.html").read_text(encoding="utf-8")
    assert not [mark for mark in marks if mark in page]
    for name in ("page.css", "page.js"):
        assert (STATIC / name).read_text(encoding="utf-8") in page
