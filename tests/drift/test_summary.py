"""The words for verdicts, changes and advice."""

from hcmi.drift.profile import CLIP_COLUMNS, EMBEDDINGS, QUERY_COLUMNS, Shift
from hcmi.drift.summary import COLUMNS, advice, change, summary


def test_every_column_has_words():
    assert {*QUERY_COLUMNS, *CLIP_COLUMNS, *EMBEDDINGS} == set(COLUMNS)


def test_change_says_so_when_only_the_spread_moved():
    shift = Shift("brightness", 0.5, 0.2, 0.001, 100.2, 99.9)
    assert change(shift) == "brightness is spread differently around the same median of 100 of 255"


def test_summary_counts_what_could_not_be_read():
    assert summary("ok", [], 40, 2).endswith("look like those the model was tested on. 2 more could not be read.")


def test_advice_depends_on_whether_search_still_works():
    assert advice("drift", 40.0, 90.0, (-60.0, -40.0)).startswith(
        "Search finds fewer of these clips (R@1 40 % instead of 90 %)")
    assert advice("drift", 80.0, 90.0, (-21.0, 1.0)).startswith("Search finds them as well as before")
    assert advice("drift", None, None, None).startswith("Look at the clips")
