"""The words for changes, and the sentence that a good colleague would say about each kind of batch."""

import pytest

from hcmi.drift.causes import Cause
from hcmi.drift.compare import CLASSIFIER, Shift
from hcmi.drift.profile import CLIP_COLUMNS, EMBEDDINGS, QUERY_COLUMNS
from hcmi.drift.severity import LABEL_FREE, MEASURED, WITHOUT_WRONG, Severity
from hcmi.drift.summary import COLUMNS, change, changes
from hcmi.drift.verdict import (
    CHANGED,
    HURT,
    MACHINE,
    NO_GALLERY,
    NO_TEST_CAPTIONS,
    OK,
    TOO_FEW,
    UNKNOWN,
    UNREADABLE,
    advise,
    decide,
    summary,
)
from hcmi.evaluate import difference_of_rates
from hcmi.wording import plural

SAME = Severity(97.0, 93.0, 99.0, 97.5, -0.5, -4.0, 2.0, MEASURED, 200)
WORSE = Severity(84.0, 79.0, 88.0, 97.0, -13.0, -19.0, -8.0, MEASURED, 200)
WRONG = Cause("wrong captions", "20 captions of 200 probably belong to another clip of the batch", "Check them.", 20,
              200)
COPIES = Cause("copies within the batch", "40 clips of 200 repeat another clip of the batch", "Remove the copies.", 40,
               200)


def test_every_column_has_words():
    assert {*QUERY_COLUMNS, *CLIP_COLUMNS, *EMBEDDINGS, CLASSIFIER} == set(COLUMNS)


def test_change_says_so_when_only_the_spread_moved():
    shift = Shift("brightness", 0.5, 0.2, 0.001, 100.2, 99.9)
    assert change(shift) == "brightness is spread differently around the same median of 100 of 255"


def test_changes_are_in_order_of_size_and_said_once():
    shifts = [Shift("motion", 0.3, 0.2, 0.001, 1.0, 2.0), Shift("brightness", 0.9, 0.2, 0.001, 100, 50),
              Shift("video_embedding", 9, 0.2, 0.001, float("nan"), float("nan")),
              Shift("clip_embedding", 8, 0.2, 0.001, float("nan"), float("nan")),
              Shift("rank", 99, 0.2, 0.001, 1, 40), Shift("contrast", 0.1, 0.2, 1, 1, 2)]
    assert [text.split(":")[0] for text in changes(shifts)] == [
        "clips are darker", "there is more motion", "the clips look different to the model",
        "captions find their clip at worse ranks"]
    assert len(changes(shifts, with_scores=False)) == 3


@pytest.mark.parametrize(("drifted", "severity", "causes", "verdict"), [
    (False, SAME, [], OK), (True, SAME, [], CHANGED), (True, None, [], CHANGED), (False, None, [], OK),
    (False, SAME, [COPIES], CHANGED), (True, WORSE, [], HURT), (False, WORSE, [], HURT)])
def test_four_ends(drifted, severity, causes, verdict):
    assert decide(drifted, severity, causes) == verdict


def test_a_fall_is_hurt_only_when_it_is_certain_and_worth_acting_on():
    assert not Severity(95.9, 95, 97, 97, -1.1, -1.9, -0.1, MEASURED, 9000).is_hurt
    assert not Severity(90.0, 80, 96, 97, -7, -15, 0.4, MEASURED, 40).is_hurt
    assert WORSE.is_hurt


def test_sentence_for_a_batch_as_before():
    assert summary(OK, SAME, [], [], 200, 2, "") == (
        "200 clips like those that the model was tested on. R@1 is 97 % (93 to 99), and 98 % for the tested clips. "
        "2 more clips could not be read.")
    assert advise(OK, SAME, [], "") == "Nothing to do."


def test_sentence_for_brighter_clips_that_search_finds():
    said = summary(CHANGED, SAME, ["clips are brighter: brightness 90 of 255 instead of 80"], [], 200, 0, "")
    assert said.startswith("Clips are brighter: brightness 90 of 255 instead of 80. Search finds these clips as well "
                           "as before. R@1 is 97 %")
    assert advise(CHANGED, SAME, [], "").startswith("Nothing needs to be done now.")


def test_sentence_for_clips_that_search_finds_less():
    said = summary(HURT, WORSE, ["the clips look different to the model"], [], 200, 0, "")
    assert said == ("Search finds fewer of these clips. R@1 is 84 % (79 to 88), and 97 % for the tested clips. The "
                    "clips look different to the model.")
    assert "train again" in advise(HURT, WORSE, [], "")


def test_wrong_captions_are_not_the_fault_of_search():
    severity = Severity(97.0, 93.0, 99.0, 97.5, -0.5, -4.0, 2.0, WITHOUT_WRONG, 180)
    said = summary(CHANGED, severity, [], [WRONG], 200, 0, "")
    assert said.startswith("20 captions of 200 probably belong to another clip of the batch. Search finds the clips "
                           "with right captions as well as before.")
    assert advise(CHANGED, severity, [WRONG], "") == "Check them."
    assert "train" not in advise(CHANGED, SAME, [COPIES], "")


@pytest.mark.parametrize(("reason", "advice"), [
    (TOO_FEW, "Collect more clips and run again."),
    (MACHINE, "The batch is not at fault. Run again when the machine is less busy."),
    (UNREADABLE, "Correct what the report names and run again.")])
def test_advice_depends_on_why_nobody_can_tell(reason, advice):
    assert advise(UNKNOWN, None, [], reason) == advice


def test_without_captions_the_advice_is_to_write_some():
    assert "Nobody can say" in summary(CHANGED, None, ["clips are darker"], [], 20, 0, "")
    assert advise(CHANGED, None, [], "").startswith("Write captions for the clips in captions_to_write.csv")


@pytest.mark.parametrize(("unmeasured", "what"), [
    (NO_TEST_CAPTIONS, "Write captions for the test clips of the data set"), (NO_GALLERY, "Give the data set clips")])
def test_advice_can_be_followed_when_it_is_not_the_batch_that_lacks_something(unmeasured, what):
    """Captions of the batch were asked for, however many it had, where the test clips had none."""
    assert advise(CHANGED, None, [], "", unmeasured).startswith(what)
    assert f"Nobody can say whether search suffers, because {unmeasured}." in summary(
        CHANGED, None, ["clips are darker"], [], 20, 0, "", unmeasured)
    assert f"Search cannot be measured on them, because {unmeasured}." in summary(OK, None, [], [], 20, 0, "",
                                                                                  unmeasured)


def test_a_wide_interval_is_said_to_be_too_few_captions():
    """12 captions, 8 of which find their clip, against 86 % of 300: from 46 points less to 2 more by chance."""
    low, high = difference_of_rates(258, 300, 8, 12)
    few = Severity(66.7, 39.1, 86.2, 86.0, -19.3, 100 * low, 100 * high, MEASURED, 12)
    assert few.is_vague
    for verdict, changed in ((OK, []), (CHANGED, ["clips are darker"])):
        said = summary(verdict, few, changed, [], 12, 0, "")
        assert "There are too few captions to tell whether search finds these clips as well as before." in said
        assert "slightly" not in said
        assert "More clips with captions would tell whether search suffers." in advise(verdict, few, [], "")
    less = Severity(66.7, 39.1, 86.2, 86.0, -19.3, -45.0, -0.2, MEASURED, 12)
    assert "Search finds fewer of these clips; there are too few captions to tell how many fewer." in summary(
        CHANGED, less, ["clips are darker"], [], 12, 0, "")
    assert not Severity(96.9, 60.0, 97.9, 97.0, -0.1, -37.0, 0.9, LABEL_FREE, 0).is_vague
    assert not SAME.is_vague
    assert not WORSE.is_vague


def test_singular_and_plural():
    assert (plural(1, "clip"), plural(1200, "clip"), plural(2, "batch", "batches")) == ("1 clip", "1,200 clips",
                                                                                         "2 batches")


def test_estimated_fall_is_said_as_a_guess_and_the_advice_is_to_measure_it():
    guess = Severity(90.0, 60.0, 94.0, 97.0, -7.0, -37.0, -3.0, LABEL_FREE, 0)
    assert decide(True, guess, []) == HURT
    assert summary(HURT, guess, [], [], 200, 0, "").startswith(
        "Search probably finds fewer of these clips. R@1, estimated from the clips alone, is 90 % (60 to 94), and 97 %")
    assert advise(HURT, guess, [], "") == (
        "Write captions for the clips in captions_to_write.csv and run again: then search can be measured.")
    same = Severity(96.9, 94.0, 97.9, 97.0, -0.1, -3.0, 0.9, LABEL_FREE, 0)
    assert "only captions can show it" in summary(CHANGED, same, ["clips are darker"], [], 200, 0, "")


def test_an_estimated_fall_needs_a_quarter_of_the_size_because_estimates_fall_short():
    assert Severity(95.0, 80.0, 96.7, 97.0, -2.0, -17.0, -0.3, LABEL_FREE, 0).is_hurt
    assert not Severity(95.0, 80.0, 96.8, 97.0, -2.0, -17.0, -0.2, LABEL_FREE, 0).is_hurt
    assert not Severity(95.0, 93.0, 96.7, 97.0, -2.0, -4.0, -0.3, MEASURED, 9000).is_hurt


def test_a_fall_that_may_be_chance_is_not_called_the_same():
    fewer = Severity(95.3, 90.7, 97.7, 97.5, -2.2, -6.9, 0.7, MEASURED, 150)
    assert decide(True, fewer, []) == CHANGED
    assert "Search may find slightly fewer of these clips" in summary(CHANGED, fewer, ["x"], [], 150, 0, "")
