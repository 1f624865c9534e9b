"""Fixed test sets of Scenes, each of which measures one thing: words, order, number, length, wording, parts or size.

A gallery is a list of clips, and a list of queries with their right answers. The events of one clip occur together in
no training set of Scenes, with any seed. Clips with the same tag `group` are hard to tell apart; clips of different
groups are similar only by chance. A test pins the version and the hashes, so that figures stay comparable over the
years.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random

from hcmi.config import ScenesConfig
from hcmi.errors import ConfigError
from hcmi.scenes.captions import phrase, things_happen
from hcmi.scenes.sampling import SceneClip, StepSampler, change_word, make_clip, random_event, random_steps, scene_clips
from hcmi.scenes.vocabulary import (
    VOCABULARIES,
    Event,
    Steps,
    Vocabulary,
    briefs_of,
    draw,
    meaning_of,
    parts_of,
    pick,
    shown_by,
    split_of,
    wholes_of,
)

SEED = 0
# The galleries are made with these parameters, whatever params.yaml has. Published figures name the version.
STANDARD = ScenesConfig(version=1, num_train=4000, num_val=300, num_test=1000, num_incoming=200, max_events=4,
                        captions_per_clip=3, part_captions=1, event_captions=4, brief_captions=1, wording="sentence",
                        duplicate_rate=0.1, neighbour_rate=0.3, width=128, height=128, fps=12)
# A model for the gallery `long` is trained with these: dataset.scenes.max_events=6, dataset.scenes.wording=paragraph.
LONG = STANDARD.model_copy(update={"max_events": 6, "wording": "paragraph"})
LONG_FROM = 4
SPLITS = ("test", "val")
MAX_DRAWS = 20_000      # of one group, before a split is found to have too few meanings

Group = list[tuple[Steps, str]]         # of each clip: its steps and its tag `near`
# The first four are the first clips of one split, so each of them holds the clips of the one before it.
SIZES = {"main": 1000, "event": 1000, "brief": 1000, "crowd": 10000,
         "attribute": 600, "order": 600, "count": 400, "long": 600, "paraphrase": 600}
TWIN_SIZES = {"number": 600}            # of version 2 only


@dataclass(frozen=True)
class Query:
    """What is asked of a gallery, and every clip that is a right answer; one line of queries.jsonl."""

    text: str
    right: tuple[str, ...]      # video_ids, at least one


def gallery(name: str, config: ScenesConfig = STANDARD, split: str = "test") -> list[SceneClip]:
    """The clips of a gallery, all of one split. Only version, frame size and rate of `config` are used.

    Published figures are of split `test`. The galleries of split `val` are drawn in the same way, and are there to
    choose settings on.

    - main: the clips of the standard data set, 1,000 in either split
    - event: the clips of `main`, asked for by single events
    - brief: the clips of `main`, asked for by two of the colour, shape and action of an event
    - crowd: the clips of `main` and 9,000 more of the same split, asked for by the captions of `main`
    - attribute: groups of 4 that differ in one word of one event
    - order: groups of 6, three events in all their orders
    - count: groups of 4 with one to four events, either the same event repeated or one more each time; the captions say
      how many
    - number: groups of 3, the same three events of which another one is two of a kind; of version 2 only
    - long: 4 to 6 events, captions in paragraphs
    - paraphrase: wordings that no training caption has

    Raises: ConfigError for an unknown name or split, and for a split with too few meanings (`count` of `val`).
    """
    sizes = {**SIZES, **(TWIN_SIZES if config.version == 2 else {})}
    if name not in sizes:
        raise ConfigError(f"gallery: need one of {', '.join(sizes)}, got {name!r}. Choose one of them.")
    if split not in SPLITS:
        raise ConfigError(f"gallery {name}: need a split that no model is trained on, {' or '.join(SPLITS)}, "
                          f"got {split!r}. Choose one of them.")
    own = {"version": config.version, "width": config.width, "height": config.height, "fps": config.fps}
    base = (LONG if name == "long" else STANDARD).model_copy(update=own)
    if name in ("main", "event", "brief", "crowd"):
        return list(scene_clips(base, split, SEED, sizes[name]))
    if name in GROUPS:
        found = _grouped(name, sizes[name], config.version, split)
    else:
        sampler = StepSampler(split, base, min_events=LONG_FROM if name == "long" else 1)
        found = ((rng, *sampler.next(rng), str(i)) for i, rng in enumerate(_rngs(name, sizes[name], config.version)))
    clips = []
    for index, (rng, steps, near, group) in enumerate(found):
        captions = (things_happen(rng, steps),) if name == "count" else ()
        clips.append(make_clip(f"{name}_{index:06d}", split, steps, rng, base, SEED, captions=captions,
                               wording="unseen" if name == "paraphrase" else "", near=near, group=group))
    return clips


def gallery_queries(name: str, config: ScenesConfig = STANDARD, split: str = "test") -> list[Query]:
    """The queries of a gallery: its captions, each of them true of one clip only; three galleries have others.

    Only the version of `config` matters.

    - event: as `event_queries` says
    - brief: as `brief_queries` says
    - crowd: the captions of `main`, none of which is true of any of the 9,000 other clips

    Raises: ConfigError, as `gallery` does.
    """
    if name in ("event", "brief"):
        ask = event_queries if name == "event" else brief_queries
        return ask({clip.video_id: clip.events for clip in gallery(name, config, split)})
    return [Query(caption, (clip.video_id,)) for clip in gallery("main" if name == "crowd" else name, config, split)
            for caption in clip.captions]


def event_queries(shown: Mapping[str, Sequence[Event]]) -> list[Query]:
    """A query for each of the `single_events` of each clip. Every clip that shows such an event is right.

    A clip of two of a kind shows one of them too.

    `shown`: video_id -> the events of the clip. Two clips that show the same event give two equal queries.
    """
    clips_of = _clips_of(shown, shown_by)
    return [Query(phrase(event), clips_of[phrase(event)])
            for events in shown.values() for event in single_events(events)]


def brief_queries(shown: Mapping[str, Sequence[Event]]) -> list[Query]:
    """A query for each event with its colour, shape or action left out; equal ones once, in the order of the alphabet.

    Every clip of which the query is true is right.
    """
    return [Query(text, right) for text, right in sorted(_clips_of(shown, briefs_of).items())]


def _clips_of(shown: Mapping[str, Sequence[Event]], told_by: Callable[[Event], Iterable[Event]],
              ) -> dict[str, tuple[str, ...]]:
    """Text -> the clips with an event that may be told like this."""
    clips_of: dict[str, list[str]] = defaultdict(list)
    for video_id, events in shown.items():
        for text in {phrase(told) for event in events for told in told_by(event)}:
            clips_of[text].append(video_id)
    return {text: tuple(video_ids) for text, video_ids in clips_of.items()}


def single_events(events: Sequence[Event]) -> list[Event]:
    """The events that a clip is asked for: those of a kind that no other event of it has, if it has several events."""
    times = Counter(event.kind for event in events)
    return [event for event in events if len(events) > 1 and times[event.kind] == 1]


def _rngs(name: str, count: int, version: int) -> Iterator[Random]:
    return (Random(f"{version}/{SEED}/{name}/{index}") for index in range(count))


def _grouped(name: str, count: int, version: int, split: str) -> Iterator[tuple[Random, Steps, str, str]]:
    """Generator, steps, tag `near` and tag `group` of each clip."""
    make, size = GROUPS[name]
    vocabulary = VOCABULARIES[version]
    true_of = wholes_of if name == "count" else parts_of    # captions that say how many are not true of less than all
    whole: set[str] = set()         # meanings of the clips
    all_parts: set[str] = set()     # and all that is true of them
    for number, rng in enumerate(_rngs(name, count // size, version)):
        for _ in range(MAX_DRAWS):
            group = make(rng, number, vocabulary, split)
            meanings = {meaning_of(steps) for steps, _ in group}
            parts = {part for steps, _ in group for part in true_of(steps)}
            fresh = not (meanings & all_parts or parts & whole)
            allowed = all(split_of(steps) == split and vocabulary.allows(steps) for steps, _ in group)
            if len(meanings) == size and fresh and allowed:
                break
        else:
            raise ConfigError(f"gallery {name}, split {split}: need {count // size} groups, got {number}: the split "
                              "has too few meanings. Choose the split test, or another gallery.")
        whole |= meanings
        all_parts |= parts
        for steps, near in group:
            yield rng, steps, near, str(number)


def _attribute(rng: Random, number: int, vocabulary: Vocabulary, split: str) -> Group:
    kind = tuple(vocabulary.words)[number % len(vocabulary.words)]
    steps = random_steps(rng, 1 + int(rng.random() * 3), vocabulary)
    where = pick(rng, [(s, e) for s, step in enumerate(steps) for e in range(len(step))])
    group: Group = [(steps, kind)]
    words = [word for word in vocabulary.words[kind] if word != getattr(steps[where[0]][where[1]], kind)]
    while words and len(group) < 4:
        changed = change_word(steps, where, kind, draw(rng, words))
        if split_of(changed) == split:
            group.append((changed, kind))
    return group


def _order(rng: Random, number: int, vocabulary: Vocabulary, split: str) -> Group:
    events = [random_event(rng, vocabulary) for _ in range(3)]
    return [(tuple((event,) for event in order), "order") for order in permutations(events)]


def _number(rng: Random, number: int, vocabulary: Vocabulary, split: str) -> Group:
    events = [replace(random_event(rng, vocabulary), number=1) for _ in range(3)]
    return [(tuple((replace(event, number=1 + (place == twins)),) for place, event in enumerate(events)), "number")
            for twins in range(3)]


def _count(rng: Random, number: int, vocabulary: Vocabulary, split: str) -> Group:
    """One event repeated, or another one each time; it is drawn again until the clip may be in the split."""
    repeated = number % 2 == 1
    steps: Steps = ()
    group: Group = []
    for _ in range(4):
        longer: Steps = (*steps, *steps[:1]) if repeated and steps else (*steps, (random_event(rng, vocabulary),))
        while split_of(longer) != split:
            longer = (*steps, (random_event(rng, vocabulary),))
        steps = longer
        group.append((steps, "repeat" if repeated else "more"))
    return group


GROUPS: dict[str, tuple[Callable[[Random, int, Vocabulary, str], Group], int]] = {
    "attribute": (_attribute, 4), "order": (_order, 6), "count": (_count, 4), "number": (_number, 3)}
