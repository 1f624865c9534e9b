"""Each cause is named where it is, and not where the tested clips have as much of it."""

import numpy as np

from hcmi.drift.causes import copies_of_known, copies_within, empty_captions, look_of, unknown_words
from hcmi.drift.profile import unit
from hcmi.types import Clip, Skip

ROWS = unit(np.random.default_rng(0).normal(size=(40, 16)))


def clips(count: int, equal: int = 0) -> list[Clip]:
    return [Clip(f"v{row}", f"v{row}.mp4", "test", (), 0, 1, 1, f"sha{max(row, equal)}", {}) for row in range(count)]


ROWS_LOOK = np.random.default_rng(1).integers(0, 256, (40, 33, 40, 3), dtype=np.uint8)      # 2 x 2 pixels to a part


def test_equal_files_and_clips_of_equal_vectors_and_looks_are_copies_within():
    assert copies_within(clips(40), ROWS, ROWS_LOOK, 0.995, 0.0) is None
    found = copies_within(clips(40, equal=5), ROWS, ROWS_LOOK, 0.995, 0.0)
    assert (found.count, found.total, found.rows) == (5, 40, [1, 2, 3, 4, 5])
    assert found.sentence == "5 clips of 40 repeat another clip of the batch"
    same = ROWS.copy()
    same[20:30] = same[0]
    assert copies_within(clips(40), same, ROWS_LOOK, 0.995, 0.0) is None       # a model that cannot tell them apart
    looks = ROWS_LOOK.copy()
    looks[20:30] = looks[0] // 8 * 8 + 4        # as another encoding changes them
    assert copies_within(clips(40), same, looks, 0.995, 0.0).rows == list(range(20, 30))
    assert copies_within(clips(40), ROWS, looks, 0.995, 0.0) is None


def test_look_is_the_mean_of_each_part():
    frame = np.zeros((33, 48, 3), np.uint8)
    frame[2:4, 3:6] = (8, 0, 20)        # the part in row 1, column 1
    frame[32] = 255                     # does not fill a part
    look = look_of(frame).reshape(16, 16, 3)
    assert look[1, 1].tolist() == [8, 0, 20]
    assert look.sum() == 28


def test_copies_are_no_cause_when_the_tested_clips_have_as_many():
    assert copies_within(clips(40, equal=5), ROWS, ROWS_LOOK, 0.995, 0.1) is None
    assert copies_of_known(clips(40), np.where(np.arange(40) < 5, 1.0, 0.5), (), 0.995, 0.1) is None


def test_copies_of_known_clips_are_found_by_their_bytes_and_by_their_looks():
    nearest = np.where(np.arange(40) < 4, 0.999, 0.5)
    found = copies_of_known(clips(40), nearest, {"sha38", "sha39"}, 0.995, 0.0)
    assert found.rows == [0, 1, 2, 3, 38, 39]
    assert found.sentence == "6 clips of 40 are in the index already"


def test_unknown_words_are_listed_with_their_counts_and_another_language_is_said():
    known = {"a", "red", "ring", "slides"}
    captions = ["a red ring slides"] * 30 + ["a red diamond slides"] * 6 + ["A red bolt slides."] * 4
    found = unknown_words(np.arange(40), captions, known, 0.0)
    assert (found.count, found.details) == (10, ["diamond (6)", "bolt (4)"])
    assert unknown_words(np.arange(40), captions, known, 0.2) is None       # the tested captions have as many
    foreign = unknown_words(np.arange(10), ["ein roter Ring"] * 10, known, 0.0)
    assert "another language" in foreign.sentence
    assert foreign.advice.startswith("Translate")


def test_empty_captions_are_a_cause_even_when_all_are_empty():
    """A batch of them was `ok`."""
    skips = [Skip(f"v{row}", f"v{row}.mp4", "dataset", "empty_caption", "") for row in range(12)]
    assert empty_captions(skips, 0).sentence == "All captions are empty"
    assert empty_captions(skips, 88).sentence == "12 of 100 captions are empty"
    assert empty_captions(skips[:2], 88) is None
