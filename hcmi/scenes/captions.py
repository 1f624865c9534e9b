"""The captions of Scenes: several wordings of each meaning, none of them ambiguous.

A caption describes the whole clip, in the order of time unless its words say otherwise.
"""

from collections.abc import Callable
from random import Random

from hcmi.scenes.vocabulary import LEFT_OUT, Event, Steps, draw, pick

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def phrase(event: Event) -> str:
    """The words of an event: "an orange ring grows", "two orange rings grow", "something orange grows"."""
    if event.number == 2:
        return event.name
    if event.shape == LEFT_OUT["shape"]:
        return f"something {event.colour} {event.action}"
    return f"{'an' if event.name[0] in 'aeiou' else 'a'} {event.name}"


def step_phrase(rng: Random, step: tuple[Event, ...]) -> str:
    if len(step) == 1:
        return phrase(step[0])
    first, second = step if rng.random() < 0.5 else step[::-1]
    return f"{phrase(first)} while {phrase(second)}"


def _then(rng: Random, steps: Steps) -> str:
    # a comma next to a "while": without it "a while b then c" would be ambiguous
    comma = "," if any(len(step) == 2 for step in steps) else ""
    return f"{comma} then ".join(step_phrase(rng, step) for step in steps)


def _first(rng: Random, steps: Steps) -> str:
    phrases = [step_phrase(rng, step) for step in steps]
    return "first " + ", then ".join(phrases[:-1]) + ", and finally " + phrases[-1]


def _before(rng: Random, steps: Steps) -> str:
    return " before ".join(step_phrase(rng, step) for step in steps)


def _after(rng: Random, steps: Steps) -> str:
    return " after ".join(step_phrase(rng, step) for step in steps[::-1])


def things_happen(rng: Random, steps: Steps) -> str:
    count = sum(len(step) for step in steps)
    return f"{NUMBERS[count]} thing{'s happen' if count > 1 else ' happens'}: {_then(rng, steps)}"


def _clip_of(rng: Random, steps: Steps) -> str:
    return f"a clip in which {_then(rng, steps)}"


def _there_is(rng: Random, steps: Steps) -> str:
    event = steps[0][0]
    words = phrase(event).split()
    return f"there {'is' if event.number == 1 else 'are'} {' '.join(words[:3])} that {' '.join(words[3:])}"


def _while_first(rng: Random, steps: Steps) -> str:
    first, second = steps[0] if rng.random() < 0.5 else steps[0][::-1]
    return f"while {phrase(first)}, {phrase(second)}"


def _together(rng: Random, steps: Steps) -> str:
    first, second = steps[0] if rng.random() < 0.5 else steps[0][::-1]
    return f"{phrase(first)} and {phrase(second)} at the same time"


def wordings(steps: Steps) -> tuple[Callable[[Random, Steps], str], ...]:
    """The wordings that describe these steps without ambiguity."""
    if len(steps) == 1:
        own = (_there_is,) if len(steps[0]) == 1 else (_while_first, _together)
        return (_then, things_happen, _clip_of, *own)
    if any(len(step) == 2 for step in steps):
        return (_then, _first, things_happen, _clip_of)
    return (_then, _first, _before, things_happen, _clip_of, *((_after,) if len(steps) == 2 else ()))


def part_caption(rng: Random, steps: Steps) -> str:
    """A caption of these steps that is true of a longer clip too: without their number, and without a last one."""
    return pick(rng, [say for say in wordings(steps) if say not in (things_happen, _first)])(rng, steps)


def _watch(rng: Random, steps: Steps) -> str:
    return "watch how " + "; next ".join(step_phrase(rng, step) for step in steps)


def _whereupon(rng: Random, steps: Steps) -> str:
    return "in this footage " + ", whereupon ".join(step_phrase(rng, step) for step in steps)


def _afterwards(rng: Random, steps: Steps) -> str:
    return "here " + "; afterwards ".join(step_phrase(rng, step) for step in steps)


def _recording(rng: Random, steps: Steps) -> str:
    return "this recording shows that " + " and later ".join(step_phrase(rng, step) for step in steps)


UNSEEN_WORDINGS = (_watch, _whereupon, _afterwards, _recording)      # never in a training caption


# --------------------------------------------------------------------------------------------------------- paragraphs

def _sentences(rng: Random, steps: Steps, first: str, middle: str, last: str) -> str:
    openings = [first, *[middle] * (len(steps) - 2), last] if len(steps) > 1 else [first]
    return " ".join(f"{opening} {step_phrase(rng, step)}." for opening, step in zip(openings, steps, strict=True))


def _story(rng: Random, steps: Steps) -> str:
    return _sentences(rng, steps, "First", "Then", "Finally")


def _at_first(rng: Random, steps: Steps) -> str:
    return _sentences(rng, steps, "At first", "After that", "In the end")


def _numbered(rng: Random, steps: Steps) -> str:
    return " ".join(f"Scene {NUMBERS[number]}: {step_phrase(rng, step)}." for number, step in enumerate(steps, start=1))


def _counted(rng: Random, steps: Steps) -> str:
    count = sum(len(step) for step in steps)
    return f"{NUMBERS[count].capitalize()} thing{'s happen' if count > 1 else ' happens'}. {_story(rng, steps)}"


PARAGRAPHS = (_story, _at_first, _numbered, _counted)


def captions_for(rng: Random, steps: Steps, count: int, style: str = "sentence") -> tuple[str, ...]:
    """Up to `count` captions, each in another wording of a style: sentence, paragraph or unseen."""
    left, chosen = list({"unseen": UNSEEN_WORDINGS, "paragraph": PARAGRAPHS}.get(style) or wordings(steps)), list[str]()
    while left and len(chosen) < count:
        chosen.append(draw(rng, left)(rng, steps))
    return tuple(chosen)
