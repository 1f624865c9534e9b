"""Captions are parsed back by a grammar of this file, which shares no code with the generator."""

import re
from collections import Counter
from random import Random

import pytest
from scene_clips_world import TWO, clips_of, steps_of

from hcmi.scenes import Event, captions, phrase
from hcmi.scenes.captions import captions_for
from hcmi.scenes.vocabulary import VOCABULARIES, meaning_of, shown_by, split_of

COLOURS = "red|orange|yellow|green|blue|purple|pink|white|cyan|lime|brown|magenta"
ONE = re.compile(
    rf"an? ((?:{COLOURS}) "
    r"(?:circle|square|triangle|ring|star|cross|heart|moon|diamond|arrow|bolt|hourglass) "
    r"(?:slides (?:left|right|up|down)|grows|shrinks|fades (?:in|out)|blinks|jumps|loops|splits|"
    r"zigzags|bounces|swings|pulses|flips|spirals))")
TWO_OF_A_KIND = re.compile(
    rf"(two (?:{COLOURS}) "
    r"(?:circles|squares|triangles|rings|stars|crosses|hearts|moons|diamonds|arrows|bolts|hourglasses) "
    r"(?:slide (?:left|right|up|down)|grow|shrink|fade (?:in|out)|blink|jump|loop|split|"
    r"zigzag|bounce|swing|pulse|flip|spiral))")


def understood(caption):
    """The meaning of a caption. Raises: AssertionError when the grammar does not know it."""
    text, back = caption.lower().removesuffix("."), False
    text = re.sub(r"\. (then|finally|after that|in the end|scene \w+:) ", " > ", text)
    text = re.sub(r"^there (?:is (?=an? )|are (?=two ))(\w+ \w+ \w+) that ", r"\1 ", text)
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
    steps = [[ONE.fullmatch(part) or TWO_OF_A_KIND.fullmatch(part) for part in step.split(" & ")]
             for step in text.split(" > ")]
    assert all(all(step) for step in steps), f"cannot parse {caption!r}: {text!r}"
    meanings = [" & ".join(sorted(event[1] for event in step)) for step in steps]
    return " > ".join(meanings[::-1] if back else meanings)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("split", ["train", "val", "test", "scenes_same", "scenes_shifted"])
def test_captions_say_what_the_clip_shows_when_parsed_back(split, version):
    for clip in clips_of(split, 200, seed=3, part_captions=0, version=version):
        assert len(set(clip.captions)) == 3
        assert {understood(caption) for caption in clip.captions} == {clip.meaning}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("words", ["sentence", "paragraph"])
def test_part_captions_describe_some_neighbouring_steps_when_a_clip_has_several(words, version):
    lengths = Counter()
    for clip in clips_of("train", 300, part_captions=2, wording=words, version=version):
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
    none = {"part_captions": 0, "event_captions": 0, "brief_captions": 0}
    for split in ("val", "test", "scenes_same", "scenes_shifted"):
        assert clips_of(split, 50, part_captions=2, event_captions=3, brief_captions=2) == clips_of(split, 50, **none)


@pytest.mark.parametrize("version", [1, 2])
def test_brief_captions_leave_out_one_of_colour_shape_and_action(version):
    left_out = Counter()
    for clip in clips_of("train", 200, part_captions=0, brief_captions=6, version=version):
        found = clip.captions[3:]
        true = {brief: word for event in clip.events for word, brief in {
            "colour": f"{'an' if event.shape[0] in 'aeiou' else 'a'} {event.shape} {event.action}",
            "shape": f"something {event.colour} {event.action}",
            "action": f"{'an' if event.colour[0] in 'aeiou' else 'a'} {event.colour} {event.shape}"}.items()}
        assert len(set(found)) == len(found) == min(6, len(true))
        left_out.update(true[caption] for caption in found)
    assert min(left_out.values()) > 200
    assert all(len(clip.captions) == 5 for clip in clips_of("train", 50, part_captions=0, brief_captions=2))


def test_two_of_a_kind_are_also_told_as_one_when_single_events_are_described():
    singly = Counter()
    for clip in clips_of("train", 300, part_captions=0, event_captions=6, **TWO):
        events = {event for step in steps_of(clip) for event in step}
        true_of_it = {meaning_of(((one,),)) for event in events for one in shown_by(event)
                      if split_of(((one,),)) == "train"}
        found = {understood(caption) for caption in clip.captions[3:]}
        assert found <= true_of_it
        if len(found) < 6:
            assert found == (true_of_it if len({event.name for event in events}) > 1 else set())
        for event in events:
            if event.number == 2:
                singly[event.name in found, event.kind in found] += 1
    assert singly[True, True] > 50
    assert singly[False, True] + singly[True, False] < 20, "only where six captions are too few, or one is there twice"


def test_plural_words_are_right_when_worked_by_hand():
    def two(colour, shape, action):
        return phrase(Event(colour, shape, action, number=2))
    assert two("orange", "cross", "slides up") == "two orange crosses slide up"
    assert two("red", "hourglass", "fades in") == "two red hourglasses fade in"
    assert two("lime", "ring", "bounces") == "two lime rings bounce"
    verbs = {two("red", "ring", action).removeprefix("two red rings ") for action in VOCABULARIES[2].actions}
    assert verbs == {"slide left", "slide right", "slide up", "slide down", "grow", "shrink", "fade in", "fade out",
                     "blink", "jump", "loop", "split", "zigzag", "bounce", "swing", "pulse", "flip", "spiral"}
    there = captions.wordings(((Event("orange", "ring", "fades in", number=2),),))[-1]
    assert there(Random(0), ((Event("orange", "ring", "fades in", number=2),),)) == (
        "there are two orange rings that fade in")
    assert there(Random(0), ((Event("orange", "ring", "fades in"),),)) == "there is an orange ring that fades in"


def test_captions_all_parse_to_one_meaning_when_every_wording_is_used():
    red, blue, pink = Event("red", "star", "jumps"), Event("blue", "ring", "grows"), Event("pink", "moon", "slides up")
    two = Event("cyan", "cross", "slides down", number=2)
    for steps in (((red,),), ((red, blue),), ((red,), (blue,)), ((red,), (blue, pink)), ((red,), (blue,), (pink,)),
                  ((two,),), ((red, two),), ((two,), (blue,)), ((two,), (blue, two)), ((red,), (two,), (pink,))):
        usual = captions.wordings(steps)
        assert len(usual) >= 4
        for put in usual + captions.UNSEEN_WORDINGS + captions.PARAGRAPHS:
            for seed in range(4):
                assert understood(put(Random(seed), steps)) == meaning_of(steps)


def test_parser_of_this_file_notices_when_a_caption_is_wrong():
    assert understood("a red star jumps before a blue ring grows") == "red star jumps > blue ring grows"
    assert understood("a blue ring grows after a red star jumps") == "red star jumps > blue ring grows"
    for wrong in ("a red star jumps and a blue ring grows", "two red star jumps", "two red stars jumps",
                  "a red stars jump", "there is two red stars that jump", "there are a red star that jumps"):
        with pytest.raises(AssertionError, match="cannot parse"):
            understood(wrong)


def test_captions_use_an_when_the_colour_starts_with_a_vowel():
    assert captions_for(Random(0), ((Event("orange", "ring", "grows"),),), 1)[0].count("an orange ring") == 1


@pytest.mark.parametrize("version", [1, 2])
def test_captions_fit_32_tokens_when_there_are_four_events(version):
    words = [len(re.findall(r"\w+|[^\w\s]", caption))
             for clip in clips_of("train", 1500, version=version) for caption in clip.captions]
    assert max(words) + 2 <= 32
