"""What the clips of Scenes show and say: events, their order and times, captions; everything is known, nothing drawn.

A clip is a row of steps; a step is one event or two at the same time; an event is "a <colour> <shape> <action>".
Everything is a pure function of (seed, split, index): asking for more clips never changes the former ones, and only
`random.Random.random()` is drawn from, whose stream is the same in every Python. Pixels are in `draw.py`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from random import Random
from typing import Any, TypeVar

from hcmi.config import ScenesConfig
from hcmi.errors import ConfigError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SHAPES = ("circle", "square", "triangle", "ring", "star", "cross", "heart", "moon")
ACTIONS = ("slides left", "slides right", "slides up", "slides down", "grows", "shrinks",
           "fades in", "fades out", "blinks", "jumps", "loops", "splits")
NEIGHBOURS = ("colour", "shape", "action", "order")
WORDS = {"colour": COLOURS, "shape": SHAPES, "action": ACTIONS}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

# Share of all sets of events that each split may draw from, whatever the seed: no training seed ever meets the
# events of any test clip together, in any order.
SPLIT_SHARES = {"train": 0.66, "val": 0.07, "incoming": 0.07, "test": 0.20}
PAIR_RATE = 0.2                 # of the steps, where two events are left: both at the same time ("while")
NEW_POPULAR_RATE = 0.02         # of the training duplicates: copy a clip that had none before; the rest copy those
EVENT_SECONDS = (0.85, 1.25)
GAP_SECONDS = (0.0, 0.15)
SINGLE_WEIGHT = 0.5             # one-event clips, against 1 for each other number: there are only 768 meanings of them

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """One shape doing one thing. `order` is the number of its step; two events of one step share it."""

    colour: str
    shape: str
    action: str
    order: int = 0
    start_s: float = 0.0
    end_s: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape} {self.action}"

    @property
    def phrase(self) -> str:
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.name}"


Steps = tuple[tuple[Event, ...], ...]


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


def pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def meaning_of(steps: Steps) -> str:
    """Steps in order, the events of a step in alphabetical order: "blue ring grows & red star blinks > ..."."""
    return " > ".join(" & ".join(sorted(event.name for event in step)) for step in steps)


def split_of(steps: Steps) -> str:
    """The split that may show this set of events, whatever their order."""
    names = sorted(event.name for step in steps for event in step)
    place = int(digest("|".join(names)), 16) / 16**16
    for split, share in SPLIT_SHARES.items():
        place -= share
        if place < 0:
            return split
    return "test"


def parts_of(steps: Steps) -> set[str]:
    """Every meaning that is true of a clip with these steps: itself and whatever leaving events out gives."""
    choices = [[()] + [(event,) for event in step] + ([step] if len(step) == 2 else []) for step in steps]
    return {meaning_of(tuple(step for step in chosen if step)) for chosen in product(*choices)} - {""}


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


def change_word(rng: Random, steps: Steps, kind: str) -> Steps:
    """The same steps but for one word: the colour, shape or action of one event."""
    where = pick(rng, [(s, e) for s, step in enumerate(steps) for e in range(len(step))])
    old = steps[where[0]][where[1]]
    word = pick(rng, [w for w in WORDS[kind] if w != getattr(old, kind)])
    new = Event(**{**asdict(old), kind: word})
    return tuple(tuple(new if (s, e) == where else event for e, event in enumerate(step))
                 for s, step in enumerate(steps))


def swap_order(rng: Random, steps: Steps) -> Steps:
    """The same steps, two of them in each other's place."""
    first = int(rng.random() * len(steps))
    second = pick(rng, [s for s in range(len(steps)) if s != first])
    swapped = list(steps)
    swapped[first], swapped[second] = steps[second], steps[first]
    return tuple(swapped)


def neighbour(rng: Random, steps: Steps, kind: str) -> Steps:
    """Steps that differ from these in one colour, shape or action, or in the order of two steps."""
    if kind == "order":
        return swap_order(rng, steps) if len(steps) >= 2 else steps
    return change_word(rng, steps, kind)


class _Meanings:
    """Draws the meanings of one split, one after the other, none of them twice but for training duplicates."""

    MAX_PLANS, TRIES = 100, 60

    def __init__(self, split: str, config: ScenesConfig):
        self.split, self.config = split, config
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
            num_events = _draw_count(rng, self.config.max_events)
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


def _draw_count(rng: Random, max_events: int) -> int:
    if rng.random() * (SINGLE_WEIGHT + max_events - 1) < SINGLE_WEIGHT:
        return 1
    return 2 + int(rng.random() * (max_events - 1))


# ---------------------------------------------------------------------------------------------------------- wording

def _step_phrase(rng: Random, step: tuple[Event, ...]) -> str:
    if len(step) == 1:
        return step[0].phrase
    first, second = step if rng.random() < 0.5 else step[::-1]
    return f"{first.phrase} while {second.phrase}"


def _then(rng: Random, steps: Steps) -> str:
    # a comma where a "while" is near: without it "a while b then c" could be read two ways
    comma = "," if any(len(step) == 2 for step in steps) else ""
    return f"{comma} then ".join(_step_phrase(rng, step) for step in steps)


def _first(rng: Random, steps: Steps) -> str:
    phrases = [_step_phrase(rng, step) for step in steps]
    return "first " + ", then ".join(phrases[:-1]) + ", and finally " + phrases[-1]


def _before(rng: Random, steps: Steps) -> str:
    return " before ".join(_step_phrase(rng, step) for step in steps)


def _after(rng: Random, steps: Steps) -> str:
    return " after ".join(_step_phrase(rng, step) for step in steps[::-1])


def _happen(rng: Random, steps: Steps) -> str:
    count = sum(len(step) for step in steps)
    return f"{NUMBERS[count]} thing{'s happen' if count > 1 else ' happens'}: {_then(rng, steps)}"


def _clip_of(rng: Random, steps: Steps) -> str:
    return f"a clip in which {_then(rng, steps)}"


def _there_is(rng: Random, steps: Steps) -> str:
    event = steps[0][0]
    return f"there is {event.phrase.removesuffix(event.action)}that {event.action}"


def _while_first(rng: Random, steps: Steps) -> str:
    first, second = steps[0] if rng.random() < 0.5 else steps[0][::-1]
    return f"while {first.phrase}, {second.phrase}"


def _together(rng: Random, steps: Steps) -> str:
    first, second = steps[0] if rng.random() < 0.5 else steps[0][::-1]
    return f"{first.phrase} and {second.phrase} at the same time"


def wordings(steps: Steps) -> tuple[Callable[[Random, Steps], str], ...]:
    """The wordings that say these steps without any second reading."""
    if len(steps) == 1:
        own = (_there_is,) if len(steps[0]) == 1 else (_while_first, _together)
        return (_then, _happen, _clip_of, *own)
    if any(len(step) == 2 for step in steps):
        return (_then, _first, _happen, _clip_of)
    return (_then, _first, _before, _happen, _clip_of, *((_after,) if len(steps) == 2 else ()))


def _watch(rng: Random, steps: Steps) -> str:
    return "watch how " + "; next ".join(_step_phrase(rng, step) for step in steps)


def _whereupon(rng: Random, steps: Steps) -> str:
    return "in this footage " + ", whereupon ".join(_step_phrase(rng, step) for step in steps)


def _afterwards(rng: Random, steps: Steps) -> str:
    return "here " + "; afterwards ".join(_step_phrase(rng, step) for step in steps)


def _recording(rng: Random, steps: Steps) -> str:
    return "this recording shows that " + " and later ".join(_step_phrase(rng, step) for step in steps)


UNSEEN_WORDINGS = (_watch, _whereupon, _afterwards, _recording)      # never in a training caption


def captions_for(rng: Random, steps: Steps, count: int, unseen: bool = False) -> tuple[str, ...]:
    """`count` different captions, at most one of each wording."""
    left, chosen = list(UNSEEN_WORDINGS if unseen else wordings(steps)), list[str]()
    while left and len(chosen) < count:
        chosen.append(left.pop(int(rng.random() * len(left)))(rng, steps))
    return tuple(chosen)


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
              captions: tuple[str, ...] | None = None, **tags: str) -> SceneClip:
    """Times, captions and tags for steps already chosen; `rng` decides them."""
    events, num_frames = place_in_time(rng, steps, config.fps)
    meaning, shifted = meaning_of(steps), split == "scenes_shifted"
    return SceneClip(
        video_id=video_id, split=split, style="shifted" if shifted else "plain", meaning=meaning,
        captions=captions or captions_for(rng, steps, config.captions_per_clip, unseen=shifted),
        num_frames=num_frames, duration_s=round(num_frames / config.fps, 6),
        pixel_seed=f"{seed}/{video_id}", events=events,
        tags={"meaning": digest(meaning), "num_events": str(len(events)),
              "while": "yes" if len(events) > len(steps) else "no", **tags})


def scene_clips(config: ScenesConfig, split: str, seed: int, count: int) -> Iterator[SceneClip]:
    """The first `count` clips of a split: train, val, test, scenes_same or scenes_shifted.

    Captions and meanings of val and test are true of one clip only, not even of a part of another. In train,
    `config.duplicate_rate` of the clips repeat the meaning of an earlier one (tag near=duplicate), mostly of a few
    popular ones, as everyday videos do; equal tags["meaning"] is the truth for label denoising.

    Raises: ConfigError when there are not enough different meanings.
    """
    meanings = _Meanings(split, config)
    for index in range(count):
        rng = Random(f"{seed}/{split}/{index}")
        steps, near = meanings.next(rng)
        yield make_clip(f"{split}_{index:06d}", split, steps, rng, config, seed, near=near)
