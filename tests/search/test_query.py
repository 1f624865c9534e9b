"""Queries, counts and tags that are refused, and odd ones that are not."""

import numpy as np
import pytest
from search_world import clips, searchable_model, times, video_tokens

from hcmi.errors import ConfigError
from hcmi.index import add_videos, create_index, model_card
from hcmi.search import Retriever, check_number, check_top, parse_tags
from hcmi.search.query import check_tags

QUERY = "a red ring slides left"


@pytest.mark.parametrize(("query", "message"), [
    ("", "query: need some words, got none"),
    (" \n\t ", "query: need some words, got none"),
    ("x" * 100_000, "need at most 2000 characters, got 100000"),
    ("\x00\x01PNG\r\n", "need readable text in UTF-8, got control characters"),
    ("caf\udce9", "need readable text in UTF-8"),
    ("红色的圆环向左滑动", "need words of a language the model knows"),
    ("собака прыгает", "need words of a language the model knows"),
    ("xyzzy, please", "query 'xyzzy, please': need a word that a training caption has, got none"),
])
def test_search_refuses_a_query_that_has_no_answer(world, query, message):
    with pytest.raises(ConfigError, match=message) as caught:
        world[0].search(query)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("query", ["a", "RED ring!", "ring " * 300, "a réd rïng", "xyzzy ring",
                                   "ring \U0001fae9", "ring \U0001fac8"])      # emoji of Unicode 16 and 17
def test_search_answers_when_the_query_is_only_odd(world, query):
    assert len(world[0].search(query)) == 10


def test_query_in_the_language_of_the_captions_is_accepted_when_it_is_full_of_punctuation(tmp_path):
    model = searchable_model(captions=["красное кольцо", "синее кольцо"] * 3)
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips(["v0"]), [(video_tokens(1, np.random.default_rng(0)), times(1))])
    retriever = Retriever(model, tmp_path / "index")
    assert retriever.search("«красное», — «кольцо» …!!") == retriever.search("красное кольцо")


@pytest.mark.parametrize("query", ["\u200b", "\ufeff \u00ad"])
def test_search_refuses_a_query_of_invisible_characters_alone(world, query):
    with pytest.raises(ConfigError, match="need a word that a training caption has, got none"):
        world[0].search(query)


@pytest.mark.parametrize(("top", "step"), [(0, "Ask for 1 or more"), (-1, "Ask for 1 or more"),
                                           (1_000_000, "Ask for fewer answers")])
def test_search_refuses_top_out_of_range(world, top, step):
    with pytest.raises(ConfigError, match=rf"^top: need 1 to 1000, got {top}\. {step}\.$"):
        world[0].search(QUERY, top=top)


def test_messages_name_the_flag_that_the_user_typed():
    with pytest.raises(ConfigError, match=r"^--top: need 1 to 1000, got 0"):
        check_top(0, "--top")
    with pytest.raises(ConfigError, match=r"^--tag: need NAME=VALUE, got 'place'. For example --tag place=beach"):
        parse_tags(["place"], "--tag")
    with pytest.raises(ConfigError, match=r"^tag: need NAME=VALUE, got '=beach'. For example tag place=beach"):
        parse_tags(["a=b", "=beach"])


def test_tag_that_is_no_text_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^--tag: need text in UTF-8, got place=caf\\xe9\. Correct it\.$"):
        parse_tags(["place=caf\udce9"], "--tag")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "nan", "inf", "three", -1, "-0.5"])
def test_length_is_refused_when_it_is_no_finite_number_from_0(world, value):
    message = rf"^min_seconds: need a number from 0, got {value!r}\. Correct it or leave it out\.$"
    for ask in (lambda: world[0].search(QUERY, min_seconds=value), lambda: world[0].similar("v0", min_seconds=value)):
        with pytest.raises(ConfigError, match=message):
            ask()
    with pytest.raises(ConfigError, match=r"^max_seconds: need a number"):
        world[0].search(QUERY, max_seconds=value)


def test_number_is_none_when_it_is_not_given():
    assert [check_number(value, "n") for value in (None, "", "1e-1", 0)] == [None, None, 0.1, 0.0]


def test_tags_of_a_program_are_text_when_their_values_are_not(world):
    assert check_tags({"year": 2024, "place": "sea"}) == {"year": "2024", "place": "sea"}
    assert world[0].search(QUERY, tags={"year": 2024}) == world[0].search(QUERY, tags={"year": "2024"})


def test_note_says_that_no_video_has_a_tag_of_that_name(world):
    assert world[0].tag_notes({"place": "moon", "planet": "earth"}) == ["no video has the tag 'planet'."]


@pytest.mark.parametrize("tags", ["year=2024", ["year=2024"]])
def test_tags_of_a_program_are_refused_when_they_are_no_dict(world, tags):
    with pytest.raises(ConfigError, match=r"^tags: need a dict such as {'place': 'beach'}, got .*\. Give names"):
        world[0].search(QUERY, tags=tags)


def test_tag_is_refused_when_its_name_has_two_values():
    with pytest.raises(ConfigError, match=r"^--tag: need one value of a, got '1' and '2'\. Leave one out\.$"):
        parse_tags(["a=1", "b=1", "a=2"], "--tag")
    assert parse_tags(["a=1", "a=1"]) == {"a": "1"}


def test_tags_are_split_at_the_first_equals_sign():
    assert parse_tags(["place=beach", "sum=1+1=2", "empty="]) == {"place": "beach", "sum": "1+1=2", "empty": ""}
