"""Each kind of batch gets the verdict, the sentence and the advice that a good colleague would give."""

import re
from dataclasses import replace

import numpy as np
import pytest
from made_batches import MadeReference, copies, made_sample, new_shapes, repeated, scaled, wrong_captions

from hcmi.drift import Sample

MEASURED = r"R@1 is \d+ % \(\d+ to \d+\), and 98 % for the tested clips\."
KINDS = {
    "same": (lambda sample, _: sample, "ok",
             rf"150 clips like those that the model was tested on\. {MEASURED}", "Nothing to do."),
    "brighter": (lambda sample, _: scaled(sample, brightness=1.1), "changed",
                 rf"Clips are brighter: brightness \d+ of 255 instead of 76\. Search finds these clips as well as "
                 rf"before\. {MEASURED}",
                 "Nothing needs to be done now. If you expect more clips like these, add some to the training data."),
    "new shapes": (lambda sample, generator: new_shapes(sample, 0.2, generator), "search hurt",
                   rf"Search finds fewer of these clips\. {MEASURED} 30 captions of 150 have words that no training "
                   r"caption has: diamond \(10\), arrow \(10\), bolt \(10\)\. R@1 of these is \d\d %, and \d\d+ % of "
                   r"the others\.",
                   "Caption the clips in captions_to_write.csv, add them to the training data and train again."),
    "wrong captions": (lambda sample, _: wrong_captions(sample, 0.1), "changed",
                       r"1[3-5] captions of 150 probably belong to another clip of the batch\. Search finds the clips "
                       rf"with right captions as well as before\. {MEASURED}",
                       "Check which video each line of captions.csv names; search is not at fault."),
    "copies": (lambda sample, _: copies(sample, 0.2), "changed",
               r"30 clips of 150 repeat another clip of the batch\. Search finds these clips as well as before\. "
               rf"{MEASURED}", "Remove the copies: they count several times in every figure here."),
}
# What people do to videos without making them harder to find.
HARMLESS = {"darker": {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9}, "blurred": {"sharpness": 0.8},
            "longer": {"duration_s": 1.25}, "smaller": {"width": 0.5, "height": 0.5}}


@pytest.fixture(scope="module")
def reference() -> MadeReference:
    return MadeReference()


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_for_each_kind_of_batch(reference, kind):
    make, verdict, why, advice = KINDS[kind]
    generator = np.random.default_rng(0)
    report = reference.judge(make(made_sample(150, generator), generator), generator)
    assert report.verdict == verdict
    assert report.advice == advice
    assert re.fullmatch(why, report.why), report.why


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_changes_are_seen_and_search_is_not_hurt(reference, kind):
    """The same red word as for a search that has collapsed was said of ten of ten such batches."""
    generator = np.random.default_rng(1)
    found = [reference.judge(scaled(made_sample(100, generator), **HARMLESS[kind]), generator) for _ in range(2)]
    assert [report.verdict for report in found] == ["changed"] * 2
    assert all("train again" not in report.advice for report in found)


def test_new_shapes_in_a_tenth_of_the_clips_are_seen_and_named(reference):
    """One of twenty such batches alarmed."""
    generator = np.random.default_rng(2)
    found = [reference.judge(new_shapes(made_sample(100, generator), 0.1, generator), generator) for _ in range(4)]
    assert {report.verdict for report in found} <= {"changed", "search hurt"}
    for report in found:
        assert [cause.name for cause in report.causes] == ["unknown words"]
        assert "10 captions of 100 have words that no training caption has" in report.why
    told = ["R@1 of these is" in report.why and "train again" in report.advice for report in found]
    assert sum(told) >= 2       # in ten captions the fall may be within what chance gives


def test_unknown_words_that_search_finds_as_well_are_no_reason_to_train(reference):
    generator = np.random.default_rng(3)
    sample = made_sample(100, generator)
    captions = [caption.replace("a ", "the ") if row < 20 else caption for row, caption in enumerate(sample.captions)]
    report = reference.judge(replace(sample, captions=captions), generator)
    assert report.verdict == "changed"
    assert report.advice == "If people will search with these words, train with captions that use them."


def without_captions(sample: Sample) -> Sample:
    return replace(sample, captioned=np.arange(0), captions=[], texts=None)


def test_nothing_is_said_of_search_when_no_clip_has_a_caption_and_nothing_estimates_it(reference):
    generator = np.random.default_rng(4)
    report = reference.judge(without_captions(scaled(made_sample(100, generator), brightness=0.8)), generator)
    assert (report.verdict, report.severity) == ("changed", None)
    assert "Nobody can say whether search suffers, because fewer than 10 of these clips have captions." in report.why


def test_captions_of_the_test_clips_are_asked_for_when_these_have_none(monkeypatch, reference):
    generator = np.random.default_rng(4)
    monkeypatch.setattr(reference, "scores", None)
    report = reference.judge(scaled(made_sample(100, generator), brightness=0.8), generator)
    assert (report.verdict, report.severity) == ("changed", None)
    assert report.advice.startswith("Write captions for the test clips of the data set and run the pipeline again")


def test_clips_that_all_show_the_same_are_named_as_copies_when_each_has_a_caption(reference):
    """60 black clips ended the whole run in a division by zero."""
    generator = np.random.default_rng(3)
    report = reference.judge(repeated(made_sample(60, generator), np.zeros(60, int)), generator)
    assert report.causes[0].sentence == "59 clips of 60 repeat another clip of the batch"
