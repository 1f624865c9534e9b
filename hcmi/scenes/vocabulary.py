"""The vocabularies of Scenes: events, steps and meanings, and which split may show them.

A clip shows a sequence of steps. A step is one event or two at once. An event is "a <colour> <shape> <action>", or two
of a kind: "two <colour> <shapes> <act>".
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import TypeVar

# The share of all sets of events that each split may show, with any seed. So the events of a test clip never occur
# together in a training clip, in any order.
SPLIT_SHARES = {"train": 0.66, "val": 0.07, "incoming": 0.07, "test": 0.20}

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """One shape that does one thing, or two of a kind that do it at once.

    `order` is the number of its step, which two events of one step share. `number`: how many shapes there are, 1 or 2.
    """

    colour: str
    shape: str
    action: str
    order: int = 0
    start_s: float = 0.0
    end_s: float = 0.0
    number: int = 1

    @property
    def kind(self) -> str:
        """The words of one shape, however many there are."""
        return " ".join(filter(None, (self.colour, self.shape, self.action)))

    @property
    def name(self) -> str:
        if self.number == 1:
            return self.kind
        verb, _, direction = self.action.partition(" ")
        shapes = self.shape + ("es" if self.shape.endswith("s") else "s")
        return f"two {self.colour} {shapes} {verb.removesuffix('s')} {direction}".rstrip()


Steps = tuple[tuple[Event, ...], ...]


@dataclass(frozen=True)
class Vocabulary:
    """What the events of one version of Scenes may be. `twin_rate`: the share of the events that are two of a kind."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    actions: tuple[str, ...]
    twin_rate: float = 0.0

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        return {"colour": self.colours, "shape": self.shapes, "action": self.actions}

    def allows(self, steps: Steps) -> bool:
        """Whether no step has two events of the same kind, if that would be two of a kind (or three)."""
        return not self.twin_rate or all(len({event.kind for event in step}) == len(step) for step in steps)


FIRST = Vocabulary(
    colours=("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    shapes=("circle", "square", "triangle", "ring", "star", "cross", "heart", "moon"),
    actions=("slides left", "slides right", "slides up", "slides down", "grows", "shrinks",
             "fades in", "fades out", "blinks", "jumps", "loops", "splits"))
VOCABULARIES = {        # version -> vocabulary
    1: FIRST,
    2: Vocabulary(
        colours=(*FIRST.colours, "cyan", "lime", "brown", "magenta"),
        shapes=(*FIRST.shapes, "diamond", "arrow", "bolt", "hourglass"),
        actions=(*FIRST.actions, "zigzags", "bounces", "swings", "pulses", "flips", "spirals"),
        twin_rate=0.25)}


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
    """The split that may show these events together, in any order, any number of times, one or two of a kind."""
    names = sorted({event.kind for step in steps for event in step})
    place = int(digest("|".join(names)), 16) / 16**16
    for split, share in SPLIT_SHARES.items():
        place -= share
        if place < 0:
            return split
    return "test"


# What stands in an event for a word that is left out: "a ring grows", "something red grows", "a red ring".
LEFT_OUT = {"colour": "", "shape": "thing", "action": ""}


def briefs_of(event: Event) -> tuple[Event, ...]:
    """The event told without its colour, shape or action, as a search may tell it; two of a kind are told as one."""
    one = replace(event, number=1)
    return (replace(one, colour=LEFT_OUT["colour"]), replace(one, shape=LEFT_OUT["shape"]),
            replace(one, action=LEFT_OUT["action"]))


def shown_by(event: Event) -> tuple[Event, ...]:
    """The event itself, and one shape alone if the event is two of a kind: who sees two red rings sees a red ring."""
    return (event,) if event.number == 1 else (event, replace(event, number=1))


def wholes_of(steps: Steps) -> set[str]:
    """Every meaning that is true of a clip with these steps and names all its events."""
    choices = [list(product(*map(shown_by, step))) for step in steps]
    return {meaning_of(chosen) for chosen in product(*choices)}


def parts_of(steps: Steps) -> set[str]:
    """Every meaning that is true of a clip with these steps: the wholes, and what remains when events are left out."""
    choices = [[tuple(filter(None, chosen)) for chosen in product(*((None, *shown_by(event)) for event in step))]
               for step in steps]
    return {meaning_of(tuple(step for step in chosen if step)) for chosen in product(*choices)} - {""}
