"""The guard against foreign words knows the tokenizer: what one spells in bytes, another one reads."""

import warnings

import pytest
from checkpoint_world import CHECKPOINTS, LANGUAGES, TEXTS
from model_world import clip_tokenizer

from hcmi.model import load_retriever, warn_of_foreign
from hcmi.model.languages import is_foreign, readable_scripts, spelt_share
from hcmi.model.processor import HcmiProcessor

ENGLISH = "a dog jumps into water"
THAI = "สุนัขกระโดดลงน้ำ"


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    def load(name):
        return load_retriever(CHECKPOINTS[name](tmp_path_factory.mktemp(name))).processor.tokenizer
    return {name: load(name) for name in ("siglip_1", "siglip_2", "metaclip_2")}


@pytest.mark.parametrize("text", LANGUAGES)
@pytest.mark.parametrize("name", ["siglip_2", "metaclip_2"])
def test_tokenizer_of_many_languages_takes_every_language_it_has(tokenizer_of, name, text):
    """Also a word of one letter, before which these tokenizers have a token for the space."""
    assert spelt_share(tokenizer_of[name], text) == 0
    assert not is_foreign(tokenizer_of[name], "狗" if "狗" in text else text.split()[0])


@pytest.mark.parametrize("name", ["siglip_1", "siglip_2", "metaclip_2"])
def test_language_that_a_tokenizer_lacks_is_foreign(tokenizer_of, name):
    """In bytes with SigLIP 2, as unknown pieces with the others."""
    assert is_foreign(tokenizer_of[name], THAI)
    assert not is_foreign(tokenizer_of[name], TEXTS[0].lower())


def test_tokenizer_of_english_spells_the_others(tokenizer_of):
    for text in LANGUAGES[1:]:
        assert is_foreign(tokenizer_of["siglip_1"], text), text


def test_clips_own_vocabulary_reads_latin_and_cyrillic_letters_and_spells_chinese(shared_data):
    tokenizer = clip_tokenizer(shared_data / "clip")
    scripts = readable_scripts(tokenizer)
    assert {"Latin", "Cyrillic"} <= set(scripts)
    assert not {"Chinese", "Korean"} & set(scripts)
    assert not is_foreign(tokenizer, "l'été à Zürich, naïve façades")


def test_share_is_of_letters_alone():
    """An alphabet of single bytes: an English letter is one token, each of the two Cyrillic ones is two."""
    tokenizer = clip_tokenizer()
    assert spelt_share(tokenizer, "ab жд!!") == 0.5
    assert not is_foreign(tokenizer, "ab жд")
    assert is_foreign(tokenizer, "a жд — «»")
    assert spelt_share(tokenizer, "12, ?! 🎬") == 0


def test_words_that_scratch_towers_were_trained_on_are_read_in_any_language():
    captions = ["красное кольцо", "синее кольцо"] * 3
    tokenizer = HcmiProcessor.from_captions(captions, 400, 12, 16).tokenizer
    assert not is_foreign(tokenizer, "красное кольцо")
    assert is_foreign(tokenizer, "ωψφ")


def test_captions_in_a_foreign_language_are_warned_of(tokenizer_of):
    with pytest.warns(UserWarning, match=r"captions: 200 of 200 looked at are .* the tokenizer of b does not read"):
        warn_of_foreign(tokenizer_of["siglip_1"], LANGUAGES[1:2] * 200, "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_foreign(tokenizer_of["siglip_1"], [ENGLISH] * 3 + LANGUAGES[1:2], "b")
        warn_of_foreign(tokenizer_of["siglip_2"], LANGUAGES, "b")
        warn_of_foreign(tokenizer_of["siglip_2"], [], "b")
