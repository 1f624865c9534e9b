"""Captions are parsed back by a grammar of this file, which shares no code with the generator."""

import re
from collections import Counter
from random import Random

import pytest
from scene_clips_world import clips_of, steps_of

from hcmi.scenes import Event, captions
from hcmi.scenes.captions import captions_for
from hcmi.scenes.vocabulary import ACTIONS, COLOURS, SHAPES, meaning_of, split_of

EVENT = re.compile(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(ACTIONS)})")


def understood(caption):
    """The meaning of a caption. Raises: AssertionError when the grammar does not know it."""
    text, back = caption.lower().removesuffix("."), False
    text = re.sub(r"\. (then|finally|after that|in the end|scene \w+:) ", " > ", text)
    text = re.sub(r"^there is (an? \w+ \w+) that ", r"\1 ", text)
    text = re.sub(r"^\w+ things? happens?\. ", "", text)
    for opening in (r"scene one: ", r"at first ", r"a clip in which ",
                    r"(one|two|three|four|five|six) things? happens?: ", r"first ", r"watch how ",
                    r"in this footage ", r"here ", r"this recording shows that "):
        text = re.sub("^" + opening, "", text)
    if " after " in text:
        text, back = text.replace(" after ", " > "), True
    text = re.sub(r",? then |, and finally | before |; next |, whereupon |; afterwards | and later ", " > ", text)
    text = re.sub(r"^while (.*), (.*)$", r"\1 & \2", text)
    text = re.sub(r"^(.*) and (.*) at the same time$", r"\1 & \2", text).replace(" while ", " & ")
    steps = [[EVENT.fullmatch(part) for part in step.split(" & ")] for step in text.split(" > ")]
    assert all(all(step) for step in steps), f"cannot parse {caption!r}: {text!r}"
    meanings = [" & ".join(sorted(" ".join(event.groups()) for event in step)) for step in steps]
    return " > ".join(meanings[::-1] if back else meanings)


@pytest.mark.parametrize("split", ["train", "val", "test", "scenes_same", "scenes_shifted"])
def test_captions_say_what_the_clip_shows_when_parsed_back(split):
    for clip in clips_of(split, 200, seed=3, part_captions=0):
        assert len(set(clip.captions)) == 3
        assert {understood(caption) for caption in clip.captions} == {clip.meaning}


@pytest.mark.parametrize("words", ["sentence", "paragraph"])
def test_part_captions_describe_some_neighbouring_steps_when_a_clip_has_several(words):
    lengths = Counter()
    for clip in clips_of("train", 300, part_captions=2, wording=words):
        whole, parts = clip.captions[:3], clip.captions[3:]
        assert {understood(caption) for caption in whole} == {clip.meaning}
        steps = steps_of(clip)
        runs = {meaning_of(steps[first:end]): steps[first:end] for first in range(len(steps))
                for end in range(first + 1, len(steps) + 1)}
        for part in parts:
            described = runs.pop(understood(part))       # no part twice
            assert len(described) < len(steps)
            assert split_of(described) == "train", "its caption belongs to another split's clips"
            assert not re.match(r"\w+ things? happen|first ", part), f"{part!r} says more than a part can know"
            lengths[len(described)] += 1
        if len(parts) < 2:
            left = [part for part in runs.values() if len(part) < len(steps) and split_of(part) == "train"]
            assert not left, f"{clip.meaning}: {left} could be described"
    assert set(lengths) == {1, 2, 3}


@pytest.mark.parametrize("words", ["sentence", "paragraph"])
def test_event_captions_describe_different_single_events_when_a_clip_has_several(words):
    pairs = 0
    for clip in clips_of("train", 300, part_captions=0, event_captions=6, wording=words):
        steps = steps_of(clip)
        events = {meaning_of(((event,),)) for step in steps for event in step}
        allowed = {meaning for meaning, event in ((meaning_of(((event,),)), event) for step in steps for event in step)
                   if split_of(((event,),)) == "train"}
        found = [understood(caption) for caption in clip.captions[3:]]
        assert len(found) == len(set(found)), "no event twice"
        assert set(found) == (allowed if sum(map(len, steps)) > 1 and len(clip.events) > 1 else set()), events
        assert not any(re.match(r"\w+ things? happen|first ", caption) for caption in clip.captions[3:])
        pairs += any(len(step) == 2 for step in steps)
    assert pairs > 10, "events of a pair are described one by one too"
    assert all(len(clip.captions) <= 5 for clip in clips_of("train", 50, part_captions=0, event_captions=2))


def test_only_training_clips_have_captions_of_parts():
    none = {"part_captions": 0, "event_captions": 0}
    for split in ("val", "test", "scenes_same", "scenes_shifted"):
        assert clips_of(split, 50, part_captions=2, event_captions=3) == clips_of(split, 50, **none)


def test_captions_all_parse_to_one_meaning_when_every_wording_is_used():
    red, blue, pink = Event("red", "star", "jumps"), Event("blue", "ring", "grows"), Event("pink", "moon", "slides up")
    for steps in (((red,),), ((red, blue),), ((red,), (blue,)), ((red,), (blue, pink)), ((red,), (blue,), (pink,))):
        usual = captions.wordings(steps)
        assert len(usual) >= 4
        for put in usual + captions.UNSEEN_WORDINGS + captions.PARAGRAPHS:
            for seed in range(4):
                assert understood(put(Random(seed), steps)) == meaning_of(steps)


def test_parser_of_this_file_notices_when_a_caption_is_wrong():
    assert understood("a red star jumps before a blue ring grows") == "red star jumps > blue ring grows"
    assert understood("a blue ring grows after a red star jumps") == "red star jumps > blue ring grows"
    with pytest.raises(AssertionError, match="cannot parse"):
        understood("a red star jumps and a blue ring grows")


def test_captions_use_an_when_the_colour_starts_with_a_vowel():
    assert captions_for(Random(0), ((Event("orange", "ring", "grows"),),), 1)[0].count("an orange ring") == 1


def test_captions_fit_32_tokens_when_there_are_four_events():
    words = [len(re.findall(r"\w+|[^\w\s]", caption)) for clip in clips_of("train", 1500) for caption in clip.captions]
    assert max(words) + 2 <= 32
