"""Which clips there are: meanings, splits, duplicates and neighbours."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from scene_clips_world import TWO, clips_of, steps_of

from hcmi.errors import ConfigError
from hcmi.scenes import Event
from hcmi.scenes.sampling import _UsedMeanings, random_event
from hcmi.scenes.vocabulary import VOCABULARIES, parts_of, split_of


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("split", ["val", "test"])
def test_captions_are_true_of_one_clip_only_when_evaluating(split, version):
    clips = clips_of(split, 400, version=version)
    captions = [caption for clip in clips for caption in clip.captions]
    assert len(set(captions)) == len(captions)
    true_of = Counter(part for clip in clips for part in parts_of(steps_of(clip)))
    assert {true_of[clip.meaning] for clip in clips} == {1}


@pytest.mark.parametrize("version", [1, 2])
def test_splits_share_no_set_of_events_when_seeds_differ(version):
    groups = {(split, seed): {frozenset((event.colour, event.shape, event.action) for event in clip.events)
                              for clip in clips_of(split, 150, seed, version=version)}
              for split in ("train", "val", "test", "scenes_same") for seed in (0, 1)}
    for (left, seed_left), (right, seed_right) in combinations(groups, 2):
        if left != right:
            assert not groups[left, seed_left] & groups[right, seed_right]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_train_repeats_meanings_at_the_asked_rate(rate):
    clips = clips_of("train", 2000, duplicate_rate=rate)
    repeated = len(clips) - len({clip.meaning for clip in clips})
    assert repeated == sum(clip.tags["near"] == "duplicate" for clip in clips)
    assert repeated / len(clips) == pytest.approx(rate, abs=0.03)
    same = {}
    for clip in clips:
        assert same.setdefault(clip.tags["meaning"], clip.meaning) == clip.meaning
    assert len(same) == len({clip.meaning for clip in clips})


def test_neighbours_differ_in_one_word_or_in_order_when_tagged_so():
    clips = clips_of("test", 300)
    earlier = []
    for clip in clips:
        words = clip.meaning.split()
        differences = [sum(a != b for a, b in zip(words, other.split(), strict=True))
                       for other in earlier if len(other.split()) == len(words)]
        if clip.tags["near"] in ("colour", "shape"):
            # a pair is written in alphabetical order, which one word may turn around
            assert 1 in differences or clip.tags["while"] == "yes"
        if clip.tags["near"] == "order":
            assert any(sorted(other.split(" > ")) == sorted(clip.meaning.split(" > ")) for other in earlier)
        earlier.append(clip.meaning)
    assert {clip.tags["near"] for clip in clips} == {"none", "colour", "shape", "action", "order"}


def test_another_event_is_two_of_a_kind_when_tagged_so():
    clips = clips_of("test", 400, **TWO)
    tagged = 0
    for number, clip in enumerate(clips):
        if clip.tags["near"] == "number":
            tagged += 1
            def kinds(clip):
                return [[event.kind for event in step] for step in steps_of(clip)]
            def numbers(clip):
                return [event.number for event in clip.events]
            assert any(kinds(other) == kinds(clip) and sorted(numbers(other)) == sorted(numbers(clip))
                       and sum(a != b for a, b in zip(numbers(other), numbers(clip), strict=True)) == 2
                       for other in clips[:number])
    assert tagged > 5
    assert {clip.tags["near"] for clip in clips} == {"none", "colour", "shape", "action", "order", "number"}


def test_version_1_has_no_two_of_a_kind_and_version_2_has_some_but_never_the_same_twice_at_once():
    assert {event.number for clip in clips_of("train", 300) for event in clip.events} == {1}
    clips = clips_of("train", 1000, **TWO)
    share = sum(event.number == 2 for clip in clips for event in clip.events) / sum(len(clip.events) for clip in clips)
    assert share == pytest.approx(VOCABULARIES[2].twin_rate, abs=0.04)
    for clip in clips:
        assert all(len({event.kind for event in step}) == len(step) for step in steps_of(clip))


def test_number_is_in_the_annotation_only_when_it_is_two():
    for clip in clips_of("train", 100, **TWO):
        records = clip.record()["events"]
        assert tuple(Event(**record) for record in records) == clip.events
        assert [record.get("number") for record in records] == [
            2 if event.number == 2 else None for event in clip.events]


def test_one_is_not_allowed_when_two_of_the_kind_are_there_or_the_other_way_round():
    rng = Random(0)
    while True:
        steps = tuple((replace(random_event(rng, VOCABULARIES[2]), number=1),) for _ in range(2))
        if split_of(steps) == "test" and all(split_of((step,)) != "test" for step in steps):
            break
    one, other = steps
    both = (replace(one[0], number=2),), other
    for first, second in ((steps, both), (both, steps)):
        used = _UsedMeanings("test", VOCABULARIES[2])
        assert used.allow(first)
        used.add(first)
        assert not used.allow(second)
        assert used.allow(second[::-1]), "another order is another meaning"


def test_clips_stay_the_same_when_more_are_asked_for():
    assert clips_of("train", 40) == clips_of("train", 120)[:40]
    assert clips_of("train", 40) != clips_of("train", 40, seed=1)


@pytest.mark.parametrize("version", [1, 2])
def test_vocabulary_is_balanced_when_clips_are_many(version):
    clips = clips_of("train", 3000, duplicate_rate=0.0, version=version)
    events = [event for clip in clips for event in clip.events]
    for kind, words in VOCABULARIES[version].words.items():
        counts = Counter(getattr(event, kind) for event in events)
        assert set(counts) == set(words)
        assert max(counts.values()) / min(counts.values()) < 1.35


def test_clips_have_the_events_in_time_order_when_read():
    for clip in clips_of("train", 100):
        ends = 0.0
        for step in steps_of(clip):
            assert len({(event.start_s, event.end_s) for event in step}) == 1
            assert ends <= step[0].start_s < step[0].end_s <= clip.duration_s
            ends = step[0].end_s
        assert clip.duration_s == pytest.approx(clip.num_frames / 12, abs=1e-6)
        assert clip.tags["num_events"] == str(len(clip.events))


def test_too_many_clips_are_refused_when_there_are_not_enough_meanings():
    with pytest.raises(ConfigError, match=r"need more val clips of different meaning .* got \d+\. Ask for fewer"):
        clips_of("val", 500, max_events=1)


def _whole_and_part(split):
    """A clip of three events and one of two of them, where both may be in the split and no event alone may."""
    rng = Random(0)
    while True:
        events = [random_event(rng, VOCABULARIES[1]) for _ in range(3)]
        whole = tuple((event,) for event in events)
        part = (whole[0], whole[2])
        if {split_of(whole), split_of(part)} == {split} and all(split_of(((event,),)) != split for event in events):
            return whole, part


@pytest.mark.parametrize(("split", "allowed"), [("train", True), ("val", False), ("test", False)])
def test_clip_is_not_allowed_when_it_is_a_part_of_another_or_the_other_way_round(split, allowed):
    whole, part = _whole_and_part(split)
    for first, second in ((whole, part), (part, whole)):
        used = _UsedMeanings(split, VOCABULARIES[1])
        assert used.allow(first)
        used.add(first)
        assert not used.allow(first)
        assert used.allow(second) == allowed


def test_clip_is_not_allowed_when_it_belongs_to_another_split():
    whole, _ = _whole_and_part("test")
    for split in ("train", "val", "scenes_same", "scenes_shifted"):
        assert not _UsedMeanings(split, VOCABULARIES[1]).allow(whole)
