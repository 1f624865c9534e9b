"""The vocabulary of Scenes: events, steps and meanings, and which split may show them.

A clip shows a sequence of steps. A step is one event or two at once. An event is "a <colour> <shape> <action>".
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import TypeVar

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SHAPES = ("circle", "square", "triangle", "ring", "star", "cross", "heart", "moon")
ACTIONS = ("slides left", "slides right", "slides up", "slides down", "grows", "shrinks",
           "fades in", "fades out", "blinks", "jumps", "loops", "splits")
WORDS = {"colour": COLOURS, "shape": SHAPES, "action": ACTIONS}

# The share of all sets of events that each split may show, with any seed. So the events of a test clip never occur
# together in a training clip, in any order.
SPLIT_SHARES = {"train": 0.66, "val": 0.07, "incoming": 0.07, "test": 0.20}

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """One shape that does one thing. `order` is the number of its step, which two events of one step share."""

    colour: str
    shape: str
    action: str
    order: int = 0
    start_s: float = 0.0
    end_s: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape} {self.action}"


Steps = tuple[tuple[Event, ...], ...]


def pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def draw(rng: Random, items: list[T]) -> T:
    """Pick one and remove it from the list."""
    return items.pop(int(rng.random() * len(items)))


def between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def meaning_of(steps: Steps) -> str:
    """The steps in order, the events of each in alphabetical order: "blue ring grows & red star blinks > ..."."""
    return " > ".join(" & ".join(sorted(event.name for event in step)) for step in steps)


def split_of(steps: Steps) -> str:
    """The split that may show these events together, in any order and any number of times."""
    names = sorted({event.name for step in steps for event in step})
    place = int(digest("|".join(names)), 16) / 16**16
    for split, share in SPLIT_SHARES.items():
        place -= share
        if place < 0:
            return split
    return "test"


def parts_of(steps: Steps) -> set[str]:
    """Every meaning that is true of a clip with these steps: the whole, and what remains when events are left out."""
    choices = [[()] + [(event,) for event in step] + ([step] if len(step) == 2 else []) for step in steps]
    return {meaning_of(tuple(step for step in chosen if step)) for chosen in product(*choices)} - {""}
