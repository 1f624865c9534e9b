"""Pixels are measured against what was asked for."""

import hashlib
from dataclasses import replace
from itertools import combinations
from random import Random

import av
import numpy as np
import pytest
from scene_clips_world import CONFIG, clips_of

from hcmi.scenes import Event, scene_clips
from hcmi.scenes.render import PALETTE, render
from hcmi.scenes.sampling import make_clip
from hcmi.scenes.vocabulary import VOCABULARIES
from hcmi.scenes.write import encode

COLOURS, SHAPES, ACTIONS = VOCABULARIES[2].words.values()       # those of version 1 are among them

def shape_mask(frames, colour):
    """Where a shape is: near the colour's hue, far from the dull background."""
    pixels = frames.astype(np.float32)
    saturation = np.ptp(pixels, axis=-1)
    near = np.abs(pixels - np.asarray(PALETTE[colour], np.float32)).sum(-1) < 150
    return near & (saturation > 70)


def one_event(colour, shape, action, seed=0, number=1):
    steps = ((Event(colour, shape, action, number=number),),)
    clip = make_clip(f"x_{seed}", "test", steps, Random(seed), CONFIG, seed)
    return clip, render(clip, CONFIG)


def path_of(action, seed):
    """Middle of the shape in each frame: down and across, in pixels."""
    frames = one_event("red", "square", action, seed)[1]
    return np.array([np.argwhere(frame).mean(0) for frame in shape_mask(frames, "red")])


def turns(values, least=4):
    """How often a series changes its direction, where it moves by at least `least` in between."""
    directions, extreme = [], values[0]
    for value in values:
        if abs(value - extreme) >= least:
            if not directions or directions[-1] != (value > extreme):
                directions.append(value > extreme)
            extreme = value
        elif directions and (value > extreme) == directions[-1]:
            extreme = value
    return len(directions) - 1


def num_pieces(mask):
    """How many connected pieces of more than 4 pixels a mask has."""
    left, sizes = set(map(tuple, np.argwhere(mask))), []
    while left:
        border, size = [left.pop()], 1
        while border:
            y, x = border.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left:
                    left.remove(near)
                    border.append(near)
                    size += 1
        sizes.append(size)
    return sum(size > 4 for size in sizes)


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


@pytest.mark.parametrize("seed", range(4))
def test_path_is_as_the_words_say_when_an_action_of_version_2_moves(seed):
    down, across = path_of("zigzags", seed).T
    assert np.all(np.diff(across) > -0.5) or np.all(np.diff(across) < 0.5)
    assert np.ptp(across) > 30
    assert turns(down) == 2
    down, across = path_of("bounces", seed).T
    assert turns(down) == 4
    assert down[0] < down[1:].min(), "it falls from the top, and never comes up so high again"
    assert np.ptp(across) < 4
    down, across = path_of("swings", seed).T
    assert turns(across) == 1
    assert abs(across[0] - across[-1]) < 15
    assert turns(down) == 3
    path = path_of("spirals", seed)
    far = np.linalg.norm(path - path[-1], axis=1)
    assert far[0] > 15
    assert far[-3] < far[0] / 3, "it ends in the middle"
    assert turns(path[:, 0]) >= 1
    assert np.ptp(path[:, 1]) > 15


def test_shape_pulses_and_flips_twice_when_the_action_says_so():
    for seed in range(4):
        mask = shape_mask(one_event("green", "square", "pulses", seed)[1], "green")
        area = mask.sum((1, 2))
        assert turns(area, area.max() / 4) == 3
        assert area[0] > 3 * area.min()
        mask = shape_mask(one_event("green", "square", "flips", seed)[1], "green")
        across, down = mask.any(1).sum(1), mask.any(2).sum(1)
        assert turns(across, across.max() / 3) == 3
        assert across.min() < across.max() / 2
        assert down.min() > down.max() * 0.8, "it gets narrow, not small"


@pytest.mark.parametrize("action", [action for action in ACTIONS if action not in ("splits", "blinks")
                                    and not action.startswith("fades")])
def test_two_pieces_are_seen_in_all_frames_when_two_of_a_kind_act(action):
    for seed in range(3):
        mask = shape_mask(one_event("red", "square", action, seed, number=2)[1], "red")
        assert {num_pieces(frame) for frame in mask} == {2}
        assert {num_pieces(frame) for frame in shape_mask(one_event("red", "square", action, seed)[1], "red")} == {1}


def test_two_become_four_when_two_of_a_kind_split():
    mask = shape_mask(one_event("red", "square", "splits", 1, number=2)[1], "red")
    assert (num_pieces(mask[0]), num_pieces(mask[-1])) == (2, 4)
    assert num_pieces(shape_mask(one_event("red", "square", "splits", 1)[1], "red")[-1]) == 2


def test_three_pieces_are_seen_in_the_frame_when_two_of_a_kind_act_beside_another():
    for seed in range(5):
        steps = ((Event("red", "square", "slides left", number=2), Event("green", "circle", "bounces")),)
        frames = render(make_clip(f"w_{seed}", "test", steps, Random(seed), CONFIG, seed), CONFIG)
        for colour, number in (("red", 2), ("green", 1)):
            mask = shape_mask(frames, colour)
            assert {num_pieces(frame) for frame in mask} == {number}
            assert not np.any([mask[:, 0].any(), mask[:, :, 0].any(), mask[:, -1].any(), mask[:, :, -1].any()])


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_is_nearest_to_its_own_when_read_from_a_film_of_64_pixels(colour, tmp_path):
    for seed in range(3):
        encode(one_event(colour, "circle", "grows", seed)[1], tmp_path / "film.mp4", CONFIG.fps)
        with av.open(str(tmp_path / "film.mp4")) as film:
            last = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)][-1].astype(np.float32)
        small = last.reshape(64, 2, 64, 2, 3).mean((1, 3))
        own = np.abs(small - np.asarray(PALETTE[colour], np.float32)).sum(-1)
        inside = small[own <= np.sort(own.ravel())[100]].mean(0)       # the circle has more than 100 pixels
        nearest = min(COLOURS, key=lambda name: np.abs(inside - PALETTE[name]).sum())
        assert nearest == colour


def test_actions_differ_when_all_else_is_the_same():
    def small(action):
        clip = replace(one_event("red", "star", action)[0], pixel_seed="same")
        frames = render(clip, CONFIG).astype(np.float32)
        return frames.reshape(len(frames), 64, 2, 64, 2, 3).mean((2, 4))
    films = {action: small(action) for action in ACTIONS}
    for one, other in combinations(ACTIONS, 2):
        differs = (np.abs(films[one] - films[other]).max((1, 2, 3)) > 60).mean()
        assert differs > 0.15, f"{one} and {other} look the same in {1 - differs:.0%} of the frames"


@pytest.mark.parametrize(("version", "split", "pinned"), [
    (1, "train", "c83dfdfe02826d25"), (1, "scenes_shifted", "7698cfbf17121ca4"),
    (2, "train", "0db9de1dfd3e5502"), (2, "scenes_shifted", "57a8c870c14bf722")])
def test_pixels_are_the_published_ones_when_drawn_again(version, split, pinned):
    pixels = b"".join(render(clip, CONFIG).tobytes() for clip in clips_of(split, 8, version=version))
    assert hashlib.sha256(pixels).hexdigest()[:16] == pinned


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


def test_shapes_differ_when_shrunk_to_32_pixels():
    def small(name):
        clip = replace(one_event("red", name, "grows")[0], pixel_seed="same")
        frame = render(clip, CONFIG)[-1].astype(np.float32)
        return frame.reshape(32, 4, 32, 4, 3).mean((1, 3))
    pictures = {shape: small(shape) for shape in SHAPES}
    for one, other in combinations(SHAPES, 2):
        assert np.abs(pictures[one] - pictures[other]).max() > 60


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
