"""What is left out of a text that is longer than the model reads."""

from model_world import section
from search_world import CAPTIONS, searchable_model

from hcmi.model import cut_note, words_read
from hcmi.model.cut import share_cut

LONG = " ".join(["a red ring slides left"] * 12)


def test_words_are_counted_up_to_the_last_that_fits():
    processor = searchable_model().processor
    room = processor.num_words - 2      # tokens beside start and end; each word of this text is one
    assert words_read(" ".join(["ring"] * room), processor) is None
    assert words_read(" ".join(["ring"] * (room + 1)), processor) == room
    assert words_read("ring, " * room, processor) == room // 2      # the comma is a token too


def test_share_is_of_the_captions_that_are_cut():
    config = section()
    assert share_cut([*CAPTIONS, LONG, LONG, LONG], config) == 3 / (len(CAPTIONS) + 3)
    assert share_cut([*CAPTIONS, LONG], section(num_words=80)) == 0
    assert cut_note(CAPTIONS, section(num_words=80)) is None
    assert cut_note([], config) is None
    told = cut_note([LONG] * 3, config)
    assert told.startswith("100.0% of the captions are longer than the 16 tokens that the model reads (model.num")


def test_share_is_unknown_when_the_backbone_is_not_there(tmp_path):
    assert share_cut([LONG], section(backbone=str(tmp_path / "none"))) is None
