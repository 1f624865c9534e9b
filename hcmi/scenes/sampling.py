"""Which clips Scenes has: steps are drawn for one clip after another, and get times, captions and tags.

Everything is a pure function of (seed, split, index), so asking for more clips never changes the first ones. Only
`random.Random.random()` is used, whose stream is the same in every version of Python. `render.py` makes the pixels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

from hcmi.config import ScenesConfig
from hcmi.errors import ConfigError
from hcmi.scenes.captions import captions_for, part_caption, phrase
from hcmi.scenes.vocabulary import (
    VOCABULARIES,
    Event,
    Steps,
    T,
    Vocabulary,
    between,
    briefs_of,
    digest,
    draw,
    meaning_of,
    parts_of,
    pick,
    shown_by,
    split_of,
)

PAIR_RATE = 0.2                 # of the steps for which two events are left: two events at the same time ("while")
NEW_POPULAR_RATE = 0.02         # of the training duplicates copy a clip that had none; the others copy one that had
EVENT_SECONDS = (0.85, 1.25)
GAP_SECONDS = (0.0, 0.15)
SINGLE_WEIGHT = 0.5             # of one-event clips, against 1 for each other number: they have few meanings


@dataclass(frozen=True)
class SceneClip:
    """Everything that is known about one clip; one line of annotation.jsonl."""

    video_id: str
    split: str
    captions: tuple[str, ...]
    meaning: str                # canonical: equal if and only if two clips show the same steps in the same order
    num_frames: int
    duration_s: float
    pixel_seed: str
    events: tuple[Event, ...]
    style: str = "plain"        # plain | shifted
    tags: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """A dict that is ready for JSON, with its keys in a fixed order. The `number` of an event is left out if 1."""
        events = [{key: value for key, value in asdict(event).items() if (key, value) != ("number", 1)}
                  for event in self.events]
        return {**asdict(self), "captions": list(self.captions), "events": events}


# -------------------------------------------------------------------------------------------------------- drawing steps

def random_event(rng: Random, vocabulary: Vocabulary) -> Event:
    event = Event(pick(rng, vocabulary.colours), pick(rng, vocabulary.shapes), pick(rng, vocabulary.actions))
    twins = vocabulary.twin_rate > 0 and rng.random() < vocabulary.twin_rate
    return replace(event, number=2) if twins else event


def random_steps(rng: Random, num_events: int, vocabulary: Vocabulary) -> Steps:
    steps: list[tuple[Event, ...]] = []
    left = num_events
    while left:
        first = random_event(rng, vocabulary)
        if left >= 2 and rng.random() < PAIR_RATE:
            second = random_event(rng, vocabulary)
            while second.kind == first.kind:
                second = random_event(rng, vocabulary)
            steps.append((first, second))
        else:
            steps.append((first,))
        left -= len(steps[-1])
    return tuple(steps)


def change_word(steps: Steps, where: tuple[int, int], kind: str, word: str | int) -> Steps:
    """The same steps with another colour, shape, action or number in the event `where` (indices of step and event)."""
    changes: dict[str, Any] = {kind: word}
    return tuple(tuple(replace(event, **changes) if (s, e) == where else event for e, event in enumerate(step))
                 for s, step in enumerate(steps))


def swap_order(rng: Random, steps: Steps) -> Steps:
    """The same steps with two of them exchanged."""
    first = pick(rng, range(len(steps)))
    second = pick(rng, [s for s in range(len(steps)) if s != first])
    swapped = list(steps)
    swapped[first], swapped[second] = steps[second], steps[first]
    return tuple(swapped)


def swap_number(rng: Random, steps: Steps) -> Steps:
    """The same steps with another event as two of a kind in place of one that was, if there are both sorts of events.

    Two of a kind in place of one would be no neighbour for a test: who sees two red rings sees a red ring too.
    """
    places = [(s, e) for s, step in enumerate(steps) for e in range(len(step))]
    ones, twos = ([(s, e) for s, e in places if steps[s][e].number == number] for number in (1, 2))
    if not ones or not twos:
        return steps
    return change_word(change_word(steps, pick(rng, ones), "number", 2), pick(rng, twos), "number", 1)


def neighbour(rng: Random, steps: Steps, kind: str, vocabulary: Vocabulary) -> Steps:
    """Steps that differ from these as one of `neighbours` says."""
    if kind == "order":
        return swap_order(rng, steps) if len(steps) >= 2 else steps
    if kind == "number":
        return swap_number(rng, steps)
    step, event = where = pick(rng, [(s, e) for s, step in enumerate(steps) for e in range(len(step))])
    old = getattr(steps[step][event], kind)
    return change_word(steps, where, kind, pick(rng, [word for word in vocabulary.words[kind] if word != old]))


def neighbours(vocabulary: Vocabulary) -> tuple[str, ...]:
    """How two clips may be near: in one colour, shape or action, the order, or which event is two of a kind."""
    return (*vocabulary.words, "order", *(("number",) if vocabulary.twin_rate else ()))


class _UsedMeanings:
    """The meanings of the clips that a split already has, and whether a further clip may be added.

    In training only equal meanings exclude each other. In the other splits no caption may be true of a second clip, not
    even of a part of it.
    """

    def __init__(self, split: str, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.events_of = "incoming" if split.startswith("scenes_") else split       # as `split_of` names it
        self.allows_parts = self.events_of == "train"
        self.whole: set[str] = set()        # meanings of the clips
        self.parts: set[str] = set()        # and of all their parts

    def add(self, steps: Steps) -> None:
        self.whole.add(meaning_of(steps))
        if not self.allows_parts:
            self.parts |= parts_of(steps)

    def allow(self, steps: Steps) -> bool:
        meaning = meaning_of(steps)
        if meaning in self.whole or split_of(steps) != self.events_of or not self.vocabulary.allows(steps):
            return False
        if self.allows_parts:
            return True
        # An event that may be a clip of this split by itself is in none of its longer clips. Otherwise such an event
        # would soon be a part of some clip, and no clip of one event would be left.
        several = sum(len(step) for step in steps) > 1
        if several and any(split_of(((event,),)) == self.events_of for step in steps for event in step):
            return False
        return meaning not in self.parts and self.whole.isdisjoint(parts_of(steps))


class StepSampler:
    """Draws the steps of the clips of one split, one clip after another.

    No meaning is drawn twice, except for the duplicates in training.
    """

    MAX_PLANS, TRIES = 100, 60

    def __init__(self, split: str, config: ScenesConfig, min_events: int = 1):
        self.split, self.config, self.min_events = split, config, min_events
        self.vocabulary = VOCABULARIES[config.version]
        self.used = _UsedMeanings(split, self.vocabulary)
        self.drawn: list[Steps] = []        # of all clips up to now
        self.popular: list[Steps] = []      # of the clips that have duplicates

    def next(self, rng: Random) -> tuple[Steps, str]:
        """The steps of the next clip, and its tag `near`: none, duplicate, or how it differs from an earlier clip.

        Raises: ConfigError when there are not enough different meanings.
        """
        if self.split == "train" and self.drawn and rng.random() < self.config.duplicate_rate:
            steps, near = self._duplicate(rng), "duplicate"
        else:
            steps, near = self._new(rng)
            self.used.add(steps)
        self.drawn.append(steps)
        return steps, near

    def _duplicate(self, rng: Random) -> Steps:
        if self.popular and rng.random() >= NEW_POPULAR_RATE:
            return pick(rng, self.popular)
        self.popular.append(pick(rng, self.drawn))
        return self.popular[-1]

    def _new(self, rng: Random) -> tuple[Steps, str]:
        for _ in range(self.MAX_PLANS):
            # The plan is kept over the tries. Otherwise plans that are easy to fulfil would be drawn more often.
            is_near = bool(self.drawn) and rng.random() < self.config.neighbour_rate
            near = pick(rng, neighbours(self.vocabulary)) if is_near else "none"
            num_events = _draw_num_events(rng, self.min_events, self.config.max_events)
            for _ in range(self.TRIES):
                if near == "none":
                    steps = random_steps(rng, num_events, self.vocabulary)
                else:
                    steps = neighbour(rng, pick(rng, self.drawn), near, self.vocabulary)
                if self.used.allow(steps):
                    return steps, near
        raise ConfigError(f"dataset.scenes: need more {self.split} clips of different meaning than there are with "
                          f"max_events={self.config.max_events}, got {len(self.drawn)}. Ask for fewer or longer clips.")


def _draw_num_events(rng: Random, low: int, high: int) -> int:
    """A number from `low` to `high`, all equally likely except for 1, which has `SINGLE_WEIGHT`."""
    if low == 1 and rng.random() * (SINGLE_WEIGHT + high - 1) < SINGLE_WEIGHT:
        return 1
    low = max(low, 2)
    return low + int(rng.random() * (high - low + 1))


# ------------------------------------------------------------------------------------------------------------ clips

def place_in_time(rng: Random, steps: Steps, fps: int) -> tuple[tuple[Event, ...], int]:
    """Give each step a stretch of whole frames. Returns the timed events and the number of frames of the clip."""
    events, frame = [], 0
    for order, step in enumerate(steps):
        frame += round(between(rng, *GAP_SECONDS) * fps) if order else 0
        end = frame + max(2, round(between(rng, *EVENT_SECONDS) * fps))
        times = {"order": order, "start_s": round(frame / fps, 6), "end_s": round(end / fps, 6)}
        events += [Event(**{**asdict(event), **times}) for event in step]
        frame = end
    return tuple(events), frame


def make_clip(video_id: str, split: str, steps: Steps, rng: Random, config: ScenesConfig, seed: int,
              wording: str = "", captions: tuple[str, ...] = (), **tags: str) -> SceneClip:
    """A clip that shows these steps; `rng` decides its times and captions. `wording`: by default `config.wording`."""
    events, num_frames = place_in_time(rng, steps, config.fps)
    meaning = meaning_of(steps)
    captions = captions or captions_for(rng, steps, config.captions_per_clip, wording or config.wording)
    if split == "train":
        captions += part_captions(rng, steps, config)
    return SceneClip(
        video_id=video_id, split=split, meaning=meaning, captions=captions,
        style="shifted" if split == "scenes_shifted" else "plain",
        num_frames=num_frames, duration_s=round(num_frames / config.fps, 6),
        pixel_seed=f"{seed}/{video_id}", events=events,
        tags={"meaning": digest(meaning), "num_events": str(len(events)),
              "while": "yes" if len(events) > len(steps) else "no", **tags})


def part_captions(rng: Random, steps: Steps, config: ScenesConfig) -> tuple[str, ...]:
    """Captions of a training clip that leave something out, as people do who have not seen it.

    Up to `config.part_captions` of them tell some steps that follow one another and not all, `config.event_captions` a
    single event of several, and `config.brief_captions` an event without its colour, shape or action. None is told
    twice. Two of a kind may also be told as one, which is true of them. Parts and events that another split may show
    by themselves are left out, since their captions belong to that split's clips.
    """
    events = tuple(dict.fromkeys(event for step in steps for event in step))
    told = dict.fromkeys(one for event in events for one in shown_by(event))
    runs = [steps[first:end] for first in range(len(steps)) for end in range(first + 1, len(steps) + 1)
            if end - first < len(steps)]
    singles: list[Steps] = [((event,),) for event in told if len(events) > 1]
    briefs = list(dict.fromkeys(brief for event in events for brief in briefs_of(event)))
    return (*(part_caption(rng, part) for part in _some(rng, filter(_trained_on, runs), config.part_captions)),
            *(part_caption(rng, part) for part in _some(rng, filter(_trained_on, singles), config.event_captions)),
            *(phrase(brief) for brief in _some(rng, briefs, config.brief_captions)))


def _trained_on(steps: Steps) -> bool:
    return split_of(steps) == "train"


def _some(rng: Random, items: Iterable[T], count: int) -> list[T]:
    """Up to `count` of the items, none of them twice, drawn at random."""
    left = list(items)
    return [draw(rng, left) for _ in range(min(count, len(left)))]


def scene_clips(config: ScenesConfig, split: str, seed: int, count: int) -> Iterator[SceneClip]:
    """The first `count` clips of a split: train, val, test, scenes_same or scenes_shifted.

    A caption of val and test is true of one clip only and not of a part of another. A train clip also has
    `part_captions`. In train, `config.duplicate_rate` of the clips have the meaning of an earlier one (tag
    near=duplicate), mostly of a few popular ones, as everyday videos do. Equal tags["meaning"] is the ground truth for
    label denoising.

    Raises: ConfigError when there are not enough different meanings.
    """
    sampler = StepSampler(split, config)
    for index in range(count):
        rng = Random(f"{seed}/{split}/{index}")
        steps, near = sampler.next(rng)
        wording = "unseen" if split == "scenes_shifted" else config.wording
        yield make_clip(f"{split}_{index:06d}", split, steps, rng, config, seed, wording, near=near)
