"""Which films Scenes has: meanings drawn one after the other, each given times, captions and tags; nothing is painted.

Everything is a pure function of (seed, split, index): asking for more clips never changes the former ones, and only
`random.Random.random()` is drawn from, whose stream is the same in every Python. Pixels are in `draw.py`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

from hcmi.config import ScenesConfig
from hcmi.errors import ConfigError
from hcmi.scenes.captions import captions_for, part_caption
from hcmi.scenes.vocabulary import (
    ACTIONS,
    COLOURS,
    SHAPES,
    WORDS,
    Event,
    Steps,
    between,
    digest,
    draw,
    meaning_of,
    parts_of,
    pick,
    split_of,
)

NEIGHBOURS = ("colour", "shape", "action", "order")
PAIR_RATE = 0.2                 # of the steps, where two events are left: both at the same time ("while")
NEW_POPULAR_RATE = 0.02         # of the training duplicates: copy a clip that had none before; the rest copy those
EVENT_SECONDS = (0.85, 1.25)
GAP_SECONDS = (0.0, 0.15)
SINGLE_WEIGHT = 0.5             # one-event clips, against 1 for each other number: there are only 768 meanings of them


@dataclass(frozen=True)
class SceneClip:
    """All that is known about one clip; one line of annotation.jsonl."""

    video_id: str
    split: str
    captions: tuple[str, ...]
    meaning: str                # canonical: equal exactly when two clips show the same steps in the same order
    num_frames: int
    duration_s: float
    pixel_seed: str
    events: tuple[Event, ...]
    style: str = "plain"        # plain | shifted
    tags: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """JSON-ready, keys in a fixed order."""
        return {**asdict(self), "captions": list(self.captions), "events": [asdict(e) for e in self.events]}


# ------------------------------------------------------------------------------------------------ drawing meanings

def random_event(rng: Random) -> Event:
    return Event(pick(rng, COLOURS), pick(rng, SHAPES), pick(rng, ACTIONS))


def random_steps(rng: Random, num_events: int, pair_rate: float = PAIR_RATE) -> Steps:
    steps: list[tuple[Event, ...]] = []
    left = num_events
    while left:
        first = random_event(rng)
        if left >= 2 and rng.random() < pair_rate:
            second = random_event(rng)
            while second.name == first.name:
                second = random_event(rng)
            steps.append((first, second))
        else:
            steps.append((first,))
        left -= len(steps[-1])
    return tuple(steps)


def change_word(steps: Steps, where: tuple[int, int], kind: str, word: str) -> Steps:
    """The same steps but for one word: the colour, shape or action of the event `where` (step, event in the step)."""
    changes: dict[str, Any] = {kind: word}
    return tuple(tuple(replace(event, **changes) if (s, e) == where else event for e, event in enumerate(step))
                 for s, step in enumerate(steps))


def swap_order(rng: Random, steps: Steps) -> Steps:
    """The same steps, two of them in each other's place."""
    first = pick(rng, range(len(steps)))
    second = pick(rng, [s for s in range(len(steps)) if s != first])
    swapped = list(steps)
    swapped[first], swapped[second] = steps[second], steps[first]
    return tuple(swapped)


def neighbour(rng: Random, steps: Steps, kind: str) -> Steps:
    """Steps that differ from these in one colour, shape or action, or in the order of two steps."""
    if kind == "order":
        return swap_order(rng, steps) if len(steps) >= 2 else steps
    step, event = where = pick(rng, [(s, e) for s, step in enumerate(steps) for e in range(len(step))])
    old = getattr(steps[step][event], kind)
    return change_word(steps, where, kind, pick(rng, [word for word in WORDS[kind] if word != old]))


class Meanings:
    """Draws the meanings of one split, one after the other, none of them twice but for training duplicates."""

    MAX_PLANS, TRIES = 100, 60

    def __init__(self, split: str, config: ScenesConfig, min_events: int = 1):
        self.split, self.config, self.min_events = split, config, min_events
        self.bucket = "incoming" if split.startswith("scenes_") else split
        self.strict = self.bucket != "train"     # no caption true of a second clip, not even as a part of it
        self.taken: dict[str, int] = {}
        self.true: set[str] = set()
        self.drawn: list[Steps] = []
        self.popular: list[Steps] = []

    def next(self, rng: Random) -> tuple[Steps, str]:
        """Steps and their `near` tag: none, duplicate, or the kind of neighbour of an earlier clip."""
        if self.split == "train" and self.drawn and rng.random() < self.config.duplicate_rate:
            new = not self.popular or rng.random() < NEW_POPULAR_RATE
            steps, near = pick(rng, self.drawn if new else self.popular), "duplicate"
            self.popular += [steps] if new else []
        else:
            steps, near = self._unseen(rng)
            self.taken[meaning_of(steps)] = len(self.drawn)
            if self.strict:
                self.true |= parts_of(steps)
        self.drawn.append(steps)
        return steps, near

    def _unseen(self, rng: Random) -> tuple[Steps, str]:
        for _ in range(self.MAX_PLANS):
            # the plan is kept over the tries, so that what is easily found is not drawn more often
            near = pick(rng, NEIGHBOURS) if self.drawn and rng.random() < self.config.neighbour_rate else "none"
            num_events = _draw_count(rng, self.min_events, self.config.max_events)
            for _ in range(self.TRIES):
                if near == "none":
                    steps = random_steps(rng, num_events)
                else:
                    steps = neighbour(rng, pick(rng, self.drawn), near)
                if self._fits(steps):
                    return steps, near
        raise ConfigError(f"dataset.scenes: need more {self.split} clips of different meaning than there are with "
                          f"max_events={self.config.max_events}, got {len(self.drawn)}. Ask for fewer or longer clips.")

    def _fits(self, steps: Steps) -> bool:
        meaning = meaning_of(steps)
        if meaning in self.taken or split_of(steps) != self.bucket:
            return False
        if not self.strict:
            return True
        several = sum(len(step) for step in steps) > 1
        # events that may stand alone in this split never appear in its longer clips, or none would be left to
        if several and any(split_of(((event,),)) == self.bucket for step in steps for event in step):
            return False
        return meaning not in self.true and not any(part in self.taken for part in parts_of(steps))


def _draw_count(rng: Random, low: int, high: int) -> int:
    """Every number from `low` to `high` is equally likely, but for 1."""
    if low == 1 and rng.random() * (SINGLE_WEIGHT + high - 1) < SINGLE_WEIGHT:
        return 1
    low = max(low, 2)
    return low + int(rng.random() * (high - low + 1))


# ------------------------------------------------------------------------------------------------------------ clips

def place_in_time(rng: Random, steps: Steps, fps: int) -> tuple[tuple[Event, ...], int]:
    """Give each step its own stretch of whole frames; returns the timed events and the number of frames."""
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
    """Times, captions and tags for steps already chosen; `rng` decides them. Wording: the configured one by default."""
    events, num_frames = place_in_time(rng, steps, config.fps)
    meaning = meaning_of(steps)
    captions = captions or captions_for(rng, steps, config.captions_per_clip, wording or config.wording)
    if split == "train":
        captions += part_captions(rng, steps, config.part_captions)
    return SceneClip(
        video_id=video_id, split=split, meaning=meaning, captions=captions,
        style="shifted" if split == "scenes_shifted" else "plain",
        num_frames=num_frames, duration_s=round(num_frames / config.fps, 6),
        pixel_seed=f"{seed}/{video_id}", events=events,
        tags={"meaning": digest(meaning), "num_events": str(len(events)),
              "while": "yes" if len(events) > len(steps) else "no", **tags})


def part_captions(rng: Random, steps: Steps, count: int) -> tuple[str, ...]:
    """Up to `count` captions of different parts of a training clip: steps that follow one another, but not all.

    Parts that another split may show are left out: their captions are for that split's clips.
    """
    parts = [steps[first:end] for first in range(len(steps)) for end in range(first + 1, len(steps) + 1)
             if end - first < len(steps) and split_of(steps[first:end]) == "train"]
    chosen: list[Steps] = []
    while parts and len(chosen) < count:
        chosen.append(draw(rng, parts))
    return tuple(part_caption(rng, part) for part in chosen)


def scene_clips(config: ScenesConfig, split: str, seed: int, count: int) -> Iterator[SceneClip]:
    """The first `count` clips of a split: train, val, test, scenes_same or scenes_shifted.

    Captions and meanings of val and test are true of one clip only, not even of a part of another. Of train clips
    `config.part_captions` captions tell a part, the way people search: whoever types one event has not seen the rest.
    In train,
    `config.duplicate_rate` of the clips repeat the meaning of an earlier one (tag near=duplicate), mostly of a few
    popular ones, as everyday videos do; equal tags["meaning"] is the truth for label denoising.

    Raises: ConfigError when there are not enough different meanings.
    """
    meanings = Meanings(split, config)
    for index in range(count):
        rng = Random(f"{seed}/{split}/{index}")
        steps, near = meanings.next(rng)
        wording = "unseen" if split == "scenes_shifted" else config.wording
        yield make_clip(f"{split}_{index:06d}", split, steps, rng, config, seed, wording, near=near)
