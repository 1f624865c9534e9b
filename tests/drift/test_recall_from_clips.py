"""R@1 of batches without captions: loops, hand-worked values, and a made-up world whose R@1 is known."""

import numpy as np
import pytest
import torch

from hcmi.drift import recall_from_clips
from hcmi.drift.recall_from_clips import (
    FLOOR,
    PLACES,
    Clips,
    RecallFromClips,
    can_fit,
    likeness,
    strangeness,
    variation,
)
from hcmi.drift.severity import estimated
from hcmi.types import VideoTokens


def tokens(count: int, generator: np.random.Generator, frames: int = 5, clips: int = 2) -> VideoTokens:
    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=shape)).float(), dim=-1)

    weights = torch.full((count, frames), 1 / frames)
    weights[0, 3:] = 0                                  # padding
    return VideoTokens(unit(count, 6), unit(count, frames, 6), unit(count, clips, 6), weights,
                       torch.full((count, clips), 1 / max(clips, 1)))


def test_strangeness_agrees_with_loops_when_frames_are_padded():
    generator = np.random.default_rng(0)
    videos, known = tokens(3, generator), tokens(4, generator)
    found = strangeness(videos, known)
    for row in range(3):
        for level, (own, weights, others, other_weights) in enumerate((
                (videos.frames_BTD, videos.frame_weights_BT, known.frames_BTD, known.frame_weights_BT),
                (videos.clips_BCD, videos.clip_weights_BC, known.clips_BCD, known.clip_weights_BC))):
            bank = [others[g, n] for g in range(4) for n in range(others.shape[1]) if other_weights[g, n] > 0]
            far = [np.log(max(1 + FLOOR - max(float(vector @ other) for other in bank), FLOOR))
                   for vector, weight in zip(own[row], weights[row], strict=True) if weight > 0]
            assert found[row, level] == pytest.approx(np.mean(far), abs=1e-4)


def test_strangeness_has_a_level_less_when_a_head_has_no_parts():
    generator = np.random.default_rng(0)
    assert strangeness(tokens(3, generator), tokens(4, generator)).shape == (3, 3)
    assert strangeness(tokens(3, generator, clips=0), tokens(4, generator, clips=0)).shape == (3, 2)


def test_variation_agrees_with_loops_and_leaves_padding_out():
    videos = tokens(3, np.random.default_rng(0))
    found = variation(videos).numpy()
    for row, valid in enumerate((3, 5, 5)):
        places = [round(place * (valid - 1) / (PLACES - 1)) for place in range(PLACES)]
        frames = videos.frames_BTD[row, places].numpy()
        mean = frames.mean(0) / np.linalg.norm(frames.mean(0))
        assert found[row] == pytest.approx(np.log(np.maximum(1 - frames @ mean, FLOOR)), abs=1e-4)


def moving(count: int, generator: np.random.Generator, still: int = 0) -> VideoTokens:
    """Clips whose frames move from one direction to another; the last `still` of 12 frames are all the same."""
    first, last = generator.normal(size=(2, count, 1, 16))
    along = np.minimum(np.arange(12), 11 - still)[:, None] / 11
    frames = (1 - along) * first + along * last
    frames = torch.nn.functional.normalize(torch.from_numpy(frames).float(), dim=-1)
    weights = torch.full((count, 12), 1 / 12)
    return VideoTokens(torch.nn.functional.normalize(frames.mean(1), dim=-1), frames, frames[:, ::3], weights,
                       weights[:, ::3])


def test_films_that_stand_still_are_strange_by_how_their_frames_differ_alone():
    """Each of their frames and parts is that of a usual film, so such films passed as films in which less happens."""
    generator = np.random.default_rng(1)
    known, usual = moving(400, generator), moving(100, generator)
    still = moving(100, generator, still=8)
    frames, parts, differ = (strangeness(still, known).mean(0) - strangeness(usual, known).mean(0)) \
        / strangeness(usual, known).std(0)
    assert max(frames, parts) < 1
    assert differ > 3


def test_one_level_far_out_is_enough_and_no_other_makes_up_for_it(estimator):
    spread = estimator._spread_L
    usual, out, made_up = (estimator._chance(estimator._together(np.array([row]) * spread))[0]
                           for row in ([0.0, 0.0], [0.0, 3.0], [-5.0, 3.0]))
    assert made_up == out < usual - 0.3


def test_likeness_by_hand():
    pairs = np.array([0, 0, 1, 1])
    assert likeness(np.array([0.0, 0, 1, 1]), pairs) == 1
    assert likeness(np.array([0.0, 1, 0, 1]), pairs) == 0       # less alike than chance
    assert likeness(np.array([0.0, 1, 2, 3]), np.arange(4)) == 0


DIM = 12
TOPIC = np.eye(DIM)[0]


def clips(count: int, generator: np.random.Generator, strange: float = 0.0, topic: float = 0.0) -> Clips:
    """What a clip shows says how strange it usually is; a clip is found unless it is stranger than that."""
    vectors = generator.normal(size=(count, DIM)) / 4 + topic * TOPIC
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    excess = strange + generator.normal(size=count)
    shown = np.stack([excess + 3 * vectors[:, 0], excess + generator.normal(size=count)], axis=1)
    found = generator.random(count) < 1 / (1 + np.exp(2 * excess - 5))
    return Clips(shown, vectors, np.arange(count), found.astype(float))


@pytest.fixture(scope="module")
def estimator() -> RecallFromClips:
    generator = np.random.default_rng(1)
    damaged = {kind: clips(60, generator, strange) for kind, strange in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    return RecallFromClips(clips(600, generator), damaged)


def test_estimate_is_near_the_truth_and_its_interval_holds_it_when_clips_are_stranger(estimator):
    generator = np.random.default_rng(2)
    for strange in (0.5, 1.0, 2.0, 3.0):
        batch = clips(400, generator, strange)
        truth, found = 100 * batch.hits_V.mean(), estimator.estimate(batch)
        assert abs(found.recall - truth) < 8
        assert found.low <= truth <= found.high + 4         # `high` is that of chance in unchanged clips


def test_few_unchanged_batches_and_few_of_one_topic_are_hurt(estimator):
    """All batches share the error of one reference. On clips of Scenes there are fewer (benchmarks/drift.py)."""
    generator = np.random.default_rng(3)
    for topic, most in ((0.0, 0.06), (0.1, 0.16)):
        found = [estimator.estimate(clips(100, generator, topic=topic)) for _ in range(100)]
        assert np.mean([estimated(one, estimator.reference).is_hurt for one in found]) <= most


def test_a_topic_would_look_strange_if_what_a_clip_shows_were_not_subtracted(estimator, monkeypatch):
    monkeypatch.setattr(recall_from_clips, "ALPHA", 1e9)
    generator = np.random.default_rng(4)
    plain = RecallFromClips(estimator._tested, estimator._damaged)
    assert plain.estimate(clips(400, generator, topic=0.5)).recall < estimator.reference - 2


def test_search_is_hurt_when_recall_fell_by_ten_points(estimator):
    generator = np.random.default_rng(5)
    batches = [clips(200, generator, 1.0) for _ in range(20)]
    assert np.mean([batch.hits_V.mean() for batch in batches]) < estimator.reference / 100 - 0.08
    assert all(estimated(estimator.estimate(batch), estimator.reference).is_hurt for batch in batches)


def test_estimate_without_one_kind_of_damage_is_the_estimate_of_the_others(estimator):
    batch = clips(100, np.random.default_rng(6), 1.0)
    others = {kind: some for kind, some in estimator._damaged.items() if kind != "b"}
    assert estimator.without("b").estimate(batch) == RecallFromClips(estimator._tested, others).estimate(batch)


def test_lower_end_allows_a_fall_as_much_larger_as_that_of_the_damage_underestimated_most():
    """Clips of kind b are not strange, and are not found."""
    generator = np.random.default_rng(7)
    tested, hidden = clips(600, generator), clips(60, generator, 0.3)
    hidden = Clips(hidden.strange_VL, hidden.vectors_VD, hidden.groups_V, np.zeros(60))
    found = RecallFromClips(tested, {"a": clips(60, generator, 2.0), "b": hidden})
    assert found.factor > 5
    batch = clips(200, generator, 1.0)
    assert found.estimate(batch).low < found.reference - 5 * (found.reference - found.estimate(batch).recall)


def test_chance_is_larger_when_clips_of_a_group_are_alike(estimator):
    values, groups = np.repeat(np.random.default_rng(8).normal(size=50), 4), np.repeat(np.arange(50), 4)
    assert likeness(values, groups) == pytest.approx(1, abs=0.1)
    alone = estimator._error(1.0, np.arange(200))
    assert alone == pytest.approx(200**-0.5)
    assert alone <= estimator._error(1.0, groups) <= 2 * alone


def test_nothing_is_learned_when_every_clip_is_found_or_there_are_few():
    generator = np.random.default_rng(9)
    some = clips(60, generator)
    found = Clips(some.strange_VL, some.vectors_VD, some.groups_V, np.ones(60))
    assert not can_fit(found, {"a": found, "b": found})
    assert not can_fit(some, {"a": some})
    assert not can_fit(clips(5, generator), {"a": some, "b": some})
    assert can_fit(found, {"a": some, "b": some})
