"""Scenes: captions are parsed back by a grammar of this file, pixels are measured against what was asked for."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from random import Random

import av
import numpy as np
import pytest

from hcmi.config import ScenesConfig
from hcmi.errors import ConfigError
from hcmi.scenes import Event, scene_clips, write_batch, write_scenes
from hcmi.scenes import captions as wording
from hcmi.scenes import vocabulary as vocabulary
from hcmi.scenes.captions import captions_for
from hcmi.scenes.render import PALETTE, render
from hcmi.scenes.sampling import make_clip
from hcmi.scenes.vocabulary import ACTIONS, COLOURS, SHAPES, meaning_of, parts_of, split_of
from hcmi.scenes.write import encode

CONFIG = ScenesConfig(num_train=6, num_val=2, num_test=4, num_incoming=3, max_events=4, captions_per_clip=3,
                      part_captions=1, wording="sentence", duplicate_rate=0.2, neighbour_rate=0.3, width=128,
                      height=128, fps=12)
EVENT = re.compile(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(ACTIONS)})")


def understood(caption):
    """The meaning of a caption by a parser that shares no code with the generator; asserts on anything else."""
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


def clips_of(split, count, seed=0, **changes):
    return list(scene_clips(CONFIG.model_copy(update=changes), split, seed, count))


# ---------------------------------------------------------------------------------------------------------- captions

@pytest.mark.parametrize("split", ["train", "val", "test", "scenes_same", "scenes_shifted"])
def test_captions_say_what_the_clip_shows_when_parsed_back(split):
    for clip in clips_of(split, 200, seed=3, part_captions=0):
        assert len(set(clip.captions)) == 3
        assert {understood(caption) for caption in clip.captions} == {clip.meaning}


@pytest.mark.parametrize("words", ["sentence", "paragraph"])
def test_part_captions_tell_some_neighbouring_steps_when_a_film_has_several(words):
    lengths = Counter()
    for clip in clips_of("train", 300, part_captions=2, wording=words):
        whole, parts = clip.captions[:3], clip.captions[3:]
        assert {understood(caption) for caption in whole} == {clip.meaning}
        steps = steps_of(clip)
        runs = {meaning_of(steps[first:end]): steps[first:end] for first in range(len(steps))
                for end in range(first + 1, len(steps) + 1)}
        for part in parts:
            told = runs.pop(understood(part))       # no part twice
            assert len(told) < len(steps)
            assert split_of(told) == "train", "its caption belongs to another split's clips"
            assert not re.match(r"\w+ things? happen|first ", part), f"{part!r} says more than a part can know"
            lengths[len(told)] += 1
        if len(parts) < 2:
            left = [told for told in runs.values() if len(told) < len(steps) and split_of(told) == "train"]
            assert not left, f"{clip.meaning}: {left} could be told"
    assert set(lengths) == {1, 2, 3}


def test_only_training_clips_are_told_in_part():
    for split in ("val", "test", "scenes_same", "scenes_shifted"):
        assert clips_of(split, 50, part_captions=2) == clips_of(split, 50, part_captions=0)


def test_captions_all_parse_to_one_meaning_when_every_wording_is_used():
    red, blue, pink = Event("red", "star", "jumps"), Event("blue", "ring", "grows"), Event("pink", "moon", "slides up")
    for steps in (((red,),), ((red, blue),), ((red,), (blue,)), ((red,), (blue, pink)), ((red,), (blue,), (pink,))):
        usual = wording.wordings(steps)
        assert len(usual) >= 4
        for put in usual + wording.UNSEEN_WORDINGS + wording.PARAGRAPHS:
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


# ---------------------------------------------------------------------------------------------------- meanings, splits

@pytest.mark.parametrize("split", ["val", "test"])
def test_captions_are_true_of_one_clip_only_when_evaluating(split):
    clips = clips_of(split, 400)
    captions = [caption for clip in clips for caption in clip.captions]
    assert len(set(captions)) == len(captions)
    true_of = Counter(part for clip in clips for part in parts_of(steps_of(clip)))
    assert {true_of[clip.meaning] for clip in clips} == {1}


def steps_of(clip):
    orders = sorted({event.order for event in clip.events})
    return tuple(tuple(event for event in clip.events if event.order == order) for order in orders)


def test_parts_are_every_way_to_leave_events_out_when_worked_by_hand():
    a, b, c = Event("red", "star", "jumps"), Event("blue", "ring", "grows"), Event("pink", "moon", "splits")
    assert parts_of(((a,), (b, c))) == {
        "red star jumps", "blue ring grows", "pink moon splits", "blue ring grows & pink moon splits",
        "red star jumps > blue ring grows", "red star jumps > pink moon splits",
        "red star jumps > blue ring grows & pink moon splits"}


def test_splits_share_no_set_of_events_when_seeds_differ():
    groups = {(split, seed): {frozenset(event.name for event in clip.events) for clip in clips_of(split, 150, seed)}
              for split in ("train", "val", "test", "scenes_same") for seed in (0, 1)}
    for (left, seed_left), (right, seed_right) in combinations(groups, 2):
        if left != right:
            assert not groups[left, seed_left] & groups[right, seed_right]


def test_split_does_not_depend_on_order_when_events_are_the_same():
    a, b = Event("red", "star", "jumps"), Event("blue", "ring", "grows")
    assert split_of(((a,), (b,))) == split_of(((b,), (a,))) == split_of(((a, b),))


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


def test_clips_stay_the_same_when_more_are_asked_for():
    assert clips_of("train", 40) == clips_of("train", 120)[:40]
    assert clips_of("train", 40) != clips_of("train", 40, seed=1)


def test_vocabulary_is_balanced_when_clips_are_many():
    events = [event for clip in clips_of("train", 3000, duplicate_rate=0.0) for event in clip.events]
    for kind, words in vocabulary.WORDS.items():
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


# ------------------------------------------------------------------------------------------------------------ pixels

def shape_mask(frames, colour):
    """Where a shape is: near the colour's hue, far from the dull background."""
    pixels = frames.astype(np.float32)
    saturation = np.ptp(pixels, axis=-1)
    near = np.abs(pixels - np.asarray(PALETTE[colour], np.float32)).sum(-1) < 150
    return near & (saturation > 70)


def one_event(colour, shape, action, seed=0):
    clip = make_clip(f"x_{seed}", "test", ((Event(colour, shape, action),),), Random(seed), CONFIG, seed)
    return clip, render(clip, CONFIG)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("action", "axis", "sign"), [("slides left", 2, -1), ("slides right", 2, 1),
                                                     ("slides up", 1, -1), ("slides down", 1, 1)])
def test_shape_moves_the_right_way_when_it_slides(shape, action, axis, sign):
    for seed in range(3):
        _, frames = one_event("red", shape, action, seed)
        places = [np.argwhere(frame).mean(0) for frame in shape_mask(frames, "red")]
        along = np.array(places)[:, axis - 1] * sign
        assert np.all(np.diff(along) > -0.5)
        assert along[-1] - along[0] > 40
        assert np.ptp(np.array(places)[:, 2 - axis]) < 4


@pytest.mark.parametrize("shape", SHAPES)
def test_area_grows_and_shrinks_when_the_action_says_so(shape):
    for action, sign in (("grows", 1), ("shrinks", -1)):
        _, frames = one_event("green", shape, action, seed=4)
        area = shape_mask(frames, "green").sum((1, 2)).astype(float)
        assert np.log(area[-1] / area[0]) * sign > np.log(4)


def test_contrast_changes_when_a_shape_fades():
    for action, sign in (("fades in", 1), ("fades out", -1)):
        _, frames = one_event("blue", "circle", action, seed=5)
        blueness = (frames[..., 2].astype(float) - frames[..., 0]).max((1, 2))
        assert (blueness[-1] - blueness[0]) * sign > 80


def test_shape_is_gone_twice_when_it_blinks():
    for seed in range(4):
        _, frames = one_event("red", "square", "blinks", seed)
        seen = shape_mask(frames, "red").any((1, 2)).astype(int)
        assert seen[0] == seen[-1] == 1
        assert np.count_nonzero(np.diff(seen) == -1) == 2
        assert not seen[len(seen) // 3:2 * len(seen) // 3 + 1].all()


def test_shape_goes_up_and_comes_back_when_it_jumps():
    _, frames = one_event("red", "square", "jumps", seed=2)
    height = np.array([np.argwhere(frame)[:, 0].mean() for frame in shape_mask(frames, "red")])
    assert height[0] - height[len(height) // 2] > 25
    assert abs(height[0] - height[-1]) < 20


def test_shape_comes_back_round_when_it_loops():
    _, frames = one_event("red", "square", "loops", seed=2)
    places = np.array([np.argwhere(frame).mean(0) for frame in shape_mask(frames, "red")])
    assert np.ptp(places[:, 0]) > 20
    assert np.ptp(places[:, 1]) > 20
    assert np.linalg.norm(places[0] - places[-1]) < 25


def test_shape_becomes_two_when_it_splits():
    _, frames = one_event("red", "square", "splits", seed=3)
    mask = shape_mask(frames, "red")
    def groups(frame):
        return np.count_nonzero(np.diff(np.concatenate([[0], frame.any(0).astype(int)])) == 1)
    assert [groups(mask[0]), groups(mask[-1])] == [1, 2]


@pytest.mark.parametrize("seed", range(6))
def test_colours_are_seen_only_during_their_event_when_events_follow_each_other(seed):
    events = Event("red", "square", "slides up"), Event("blue", "circle", "jumps"), Event("yellow", "star", "loops")
    steps = tuple((event,) for event in events)
    clip = make_clip(f"y_{seed}", "test", steps, Random(seed), CONFIG, seed)
    frames = render(clip, CONFIG)
    times = (np.arange(len(frames)) + 0.5) / CONFIG.fps
    for event in clip.events:
        seen = shape_mask(frames, event.colour).sum((1, 2)) > 20
        np.testing.assert_array_equal(seen, (times >= event.start_s) & (times < event.end_s))


def test_whole_shape_is_in_the_frame_when_two_act_at_once():
    for seed in range(5):
        steps = ((Event("red", "square", "slides left"), Event("green", "circle", "grows")),)
        frames = render(make_clip(f"z_{seed}", "test", steps, Random(seed), CONFIG, seed), CONFIG)
        for colour in ("red", "green"):
            mask = shape_mask(frames, colour)
            assert mask.any((1, 2)).all()
            assert not mask[:, 0].any()
            assert not mask[:, :, 0].any()
            assert not mask[:, -1].any()
            assert not mask[:, :, -1].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_differ_when_shrunk_to_32_pixels(shape):
    def small(name):
        clip = replace(one_event("red", name, "grows")[0], pixel_seed="same")
        frame = render(clip, CONFIG)[-1].astype(np.float32)
        return frame.reshape(32, 4, 32, 4, 3).mean((1, 3))
    for other in set(SHAPES) - {shape}:
        assert np.abs(small(shape) - small(other)).max() > 60


def test_frames_have_the_asked_size_when_it_is_not_square():
    wide = CONFIG.model_copy(update={"width": 192})
    clip = next(scene_clips(wide, "train", 0, 1))
    frames = render(clip, wide)
    assert frames.shape == (clip.num_frames, 128, 192, 3)
    assert frames.dtype == np.uint8


def test_two_clips_of_one_meaning_look_different_when_repeated_in_training():
    steps = ((Event("red", "star", "grows"),),)
    first, second = (render(make_clip(f"t_{i}", "train", steps, Random(i), CONFIG, 0), CONFIG) for i in (1, 2))
    assert np.abs(first[0].astype(int) - second[0]).mean() > 5


# ------------------------------------------------------------------------------------------------------------- files

def test_film_is_h264_with_the_same_pixels_when_read_back(tmp_path):
    clip = next(scene_clips(CONFIG, "test", 0, 1))
    frames = render(clip, CONFIG)
    encode(frames, tmp_path / "a.mp4", 12)
    encode(frames, tmp_path / "b.mp4", 12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.average_rate) == ("h264", 128, 12)
        back = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    assert back.shape == frames.shape
    assert np.mean((back.astype(float) - frames) ** 2) < 40


def file_hashes(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_are_byte_identical_when_parameters_are_equal(tmp_path):
    rows = write_scenes(CONFIG, 0, tmp_path / "a")
    write_scenes(CONFIG, 0, tmp_path / "b")
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    assert Counter(row.split for row in rows) == {"train": 6, "val": 2, "test": 4}
    lines = [json.loads(line) for line in (tmp_path / "a" / "annotation.jsonl").read_text().splitlines()]
    assert [line["video_id"] for line in lines] == [row.video_id for row in rows]
    assert [row.video_id for row in rows] == sorted(row.video_id for row in rows)
    for line, row in zip(lines, rows, strict=True):
        assert row.sha256 == file_hashes(tmp_path / "a")[f"videos/{row.video_id}.mp4"]
        assert (row.duration_s, row.captions) == (line["duration_s"], tuple(line["captions"]))
        assert set(line["events"][0]) == {"colour", "shape", "action", "order", "start_s", "end_s"}


def test_nothing_is_left_behind_when_the_parameters_cannot_be_met(tmp_path):
    with pytest.raises(ConfigError, match="need more train clips"):
        write_scenes(CONFIG.model_copy(update={"max_events": 1, "num_train": 2000}), 0, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_shifted_batch_is_bright_and_worded_anew_when_compared_with_the_same(tmp_path):
    brightness = {}
    for batch in ("scenes_same", "scenes_shifted"):
        write_batch(CONFIG, 0, batch, tmp_path / batch)
        assert len(list((tmp_path / batch / "videos").iterdir())) == 3
        brightness[batch] = np.mean([render(clip, CONFIG).mean() for clip in scene_clips(CONFIG, batch, 0, 3)])
    assert brightness["scenes_shifted"] > brightness["scenes_same"] + 80
    text = (tmp_path / "scenes_shifted" / "captions.csv").read_text()
    assert text.startswith("video,caption\n")
    assert not re.search(r"a clip in which|things? happen| then | before ", text)
