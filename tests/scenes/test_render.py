"""Pixels are measured against what was asked for."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from scene_clips_world import CONFIG

from hcmi.scenes import Event, scene_clips
from hcmi.scenes.render import PALETTE, render
from hcmi.scenes.sampling import make_clip
from hcmi.scenes.vocabulary import SHAPES


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
