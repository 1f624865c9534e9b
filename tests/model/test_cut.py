"""What is left out of a text that is longer than the model reads."""

from model_world import section
from search_world import CAPTIONS, searchable_model

from hcmi.model import cut_note, unread
from hcmi.model.cut import share_cut

LONG = " ".join(["a red ring slides left"] * 12)


def test_end_that_is_not_read_begins_with_the_first_word_that_does_not_fit():
    processor = searchable_model().processor
    room = processor.num_words - 2      # tokens beside start and end; each word of this text is one
    assert unread(" ".join(["ring"] * room), processor) == ""
    assert unread(" ".join(["ring"] * (room + 2)), processor) == "ring ring"
    words = unread("ring,\n" * room, processor).split()      # the comma is a token too
    assert words == ["ring,"] * (room - room // 2)


def test_whole_words_count_when_the_start_of_one_has_more_tokens():
    class Letters:
        num_words = 9

        def tokens(self, text: str, special: bool) -> list[int]:
            return [0] * (2 + sum(1 if word == "traditional" else len(word) for word in text.split()))

    assert unread("a dog traditional cats", Letters()) == "cats"
    assert unread("a dog traditional cat", Letters()) == "cat"
    assert unread("a dog traditional ca", Letters()) == ""


def test_end_of_a_text_without_spaces_is_a_part_of_it():
    """A query in Chinese was said to be left out as a whole, though the model reads the first half of it."""
    class OneTokenEach:
        num_words = 50

        def tokens(self, text: str, special: bool) -> list[int]:
            return [0] * (len(text.replace(" ", "")) + 2 * special)

    text = "一只狗跳进水里" * 20
    assert unread(text, OneTokenEach()) == text[48:]
    assert unread("狗 " + text, OneTokenEach()) == text[47:]
    assert unread("一" * 40 + " " + "二" * 20, OneTokenEach()) == "二" * 20, "as long as a word may be"


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
