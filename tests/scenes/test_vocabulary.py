from itertools import combinations, product

from hcmi.scenes import Event
from hcmi.scenes.vocabulary import VOCABULARIES, parts_of, shown_by, split_of, wholes_of


def test_parts_are_every_way_to_leave_events_out_when_worked_by_hand():
    a, b, c = Event("red", "star", "jumps"), Event("blue", "ring", "grows"), Event("pink", "moon", "splits")
    assert parts_of(((a,), (b, c))) == {
        "red star jumps", "blue ring grows", "pink moon splits", "blue ring grows & pink moon splits",
        "red star jumps > blue ring grows", "red star jumps > pink moon splits",
        "red star jumps > blue ring grows & pink moon splits"}


def test_split_does_not_depend_on_order_when_events_are_the_same():
    a, b = Event("red", "star", "jumps"), Event("blue", "ring", "grows")
    assert split_of(((a,), (b,))) == split_of(((b,), (a,))) == split_of(((a, b),))


def test_a_clip_of_two_of_a_kind_shows_one_when_worked_by_hand():
    two, b = Event("red", "ring", "grows", number=2), Event("blue", "star", "jumps")
    assert shown_by(two) == (two, Event("red", "ring", "grows"))
    assert shown_by(b) == (b,)
    assert parts_of(((two,),)) == wholes_of(((two,),)) == {"two red rings grow", "red ring grows"}
    assert parts_of(((Event("red", "ring", "grows"),),)) == {"red ring grows"}
    assert wholes_of(((two, b),)) == {"blue star jumps & two red rings grow", "blue star jumps & red ring grows"}
    assert parts_of(((two, b),)) == wholes_of(((two, b),)) | {"two red rings grow", "red ring grows", "blue star jumps"}
    assert parts_of(((two,), (b,))) == {
        "two red rings grow > blue star jumps", "red ring grows > blue star jumps",
        "two red rings grow", "red ring grows", "blue star jumps"}


def slow_parts(steps):
    """Every subset of the events, with every number of shapes that each of them shows."""
    places = [(s, event) for s, step in enumerate(steps) for event in step]
    found = set()
    for size in range(1, len(places) + 1):
        for chosen in combinations(places, size):
            for numbers in product(*(range(1, event.number + 1) for _, event in chosen)):
                names = {}
                for (s, event), number in zip(chosen, numbers, strict=True):
                    one = Event(event.colour, event.shape, event.action, number=number)
                    names.setdefault(s, []).append(one.name)
                found.add(" > ".join(" & ".join(sorted(names[s])) for s in sorted(names)))
    return found


def test_parts_are_those_of_a_slow_count_when_several_events_are_two_of_a_kind():
    a, b = Event("red", "ring", "grows", number=2), Event("cyan", "cross", "slides up", number=2)
    c = Event("pink", "bolt", "spirals")
    for steps in (((a,), (b,), (c,)), ((a, b), (c,)), ((a,), (a,)), ((a, c), (b,), (a,))):
        assert parts_of(steps) == slow_parts(steps)
        assert wholes_of(steps) < parts_of(steps)


def test_split_is_the_same_for_one_and_two_of_a_kind():
    one, two, b = Event("red", "star", "jumps"), Event("red", "star", "jumps", number=2), Event("blue", "ring", "grows")
    assert split_of(((one,), (b,))) == split_of(((b, two),)) == split_of(((one,), (b,), (two,)))


def test_same_kind_twice_at_once_is_allowed_only_where_it_has_no_other_name():
    one, two, b = Event("red", "star", "jumps"), Event("red", "star", "jumps", number=2), Event("blue", "ring", "grows")
    for step in ((one, one), (one, two), (two, two)):
        assert VOCABULARIES[1].allows((step,))
        assert not VOCABULARIES[2].allows(((b,), step))
    assert VOCABULARIES[2].allows(((one,), (two, b), (one,)))


def test_second_vocabulary_adds_to_the_first():
    for kind, words in VOCABULARIES[1].words.items():
        more = VOCABULARIES[2].words[kind]
        assert more[:len(words)] == words
        assert len(set(more)) == len(more) == {"colour": 12, "shape": 12, "action": 18}[kind]
