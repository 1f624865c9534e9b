from hcmi.scenes import Event
from hcmi.scenes.vocabulary import parts_of, split_of


def test_parts_are_every_way_to_leave_events_out_when_worked_by_hand():
    a, b, c = Event("red", "star", "jumps"), Event("blue", "ring", "grows"), Event("pink", "moon", "splits")
    assert parts_of(((a,), (b, c))) == {
        "red star jumps", "blue ring grows", "pink moon splits", "blue ring grows & pink moon splits",
        "red star jumps > blue ring grows", "red star jumps > pink moon splits",
        "red star jumps > blue ring grows & pink moon splits"}


def test_split_does_not_depend_on_order_when_events_are_the_same():
    a, b = Event("red", "star", "jumps"), Event("blue", "ring", "grows")
    assert split_of(((a,), (b,))) == split_of(((b,), (a,))) == split_of(((a, b),))
