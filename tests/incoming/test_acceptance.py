"""What follows from a verdict, and the list of accepted batches."""

import json
from pathlib import Path

import pytest

from hcmi.errors import DataError
from hcmi.incoming import ACTIONS, Ledger, accept_judged, accept_named, action, find_batches, look, worst


@pytest.mark.parametrize(("verdict", "state", "search", "train", "retrain"), [
    ("ok", "Completed", True, True, False), ("changed", "Changed", True, True, False),
    ("search hurt", "SearchHurt", False, True, True), ("cannot tell", "CannotTell", False, False, False),
    ("unreadable", None, False, False, False), ("anything else", None, False, False, False)])
def test_action_of_each_verdict(verdict, state, search, train, retrain):
    found = action(verdict)
    assert (found.state, found.search, found.train, found.retrain) == (state, search, train, retrain)


def test_run_ends_as_its_worst_batch():
    assert worst([]) == "Completed"
    assert worst(["Changed", "SearchHurt", "CannotTell"]) == "SearchHurt"
    assert {one.state for one in ACTIONS.values()} <= {worst([one.state]) for one in ACTIONS.values()}


def put(incoming: Path, name: str, content: str | None = None) -> None:
    (incoming / name).mkdir(parents=True, exist_ok=True)
    (incoming / name / "a.mp4").write_text(content or name)


def judge(incoming: Path, ledger: Ledger, **verdicts: str) -> None:
    for folder in find_batches(incoming):
        if folder.name in verdicts:
            ledger.record(ledger.content(folder, look(folder)), folder.name, verdicts[folder.name])


def test_batches_that_the_pipeline_makes_are_not_accepted(tmp_path):
    for name in ("scenes_same", "scenes_shifted", "mine"):
        put(tmp_path / "incoming", name)
    ledger = Ledger(tmp_path)
    judge(tmp_path / "incoming", ledger, scenes_same="ok", scenes_shifted="search hurt", mine="ok")
    accepted = accept_judged(tmp_path / "incoming", ledger, tmp_path / "accepted.json")
    assert [entry.batch for entry in accepted] == ["mine"]


def listed(path: Path) -> list[tuple[str, bool]]:
    return [(entry["batch"], entry["searched"]) for entry in json.loads(path.read_text())]


def test_batches_are_accepted_once_and_as_they_are_now(tmp_path):
    incoming, path = tmp_path / "incoming", tmp_path / "accepted.json"
    for name in ("a", "b", "c", "d"):
        put(incoming, name)
    ledger = Ledger(tmp_path)
    judge(incoming, ledger, a="ok", b="search hurt", c="cannot tell")
    assert [entry.batch for entry in accept_judged(incoming, ledger, path)] == ["a", "b"]
    assert listed(path) == [("a", True), ("b", False)]
    before = path.read_bytes()
    assert accept_judged(incoming, Ledger(tmp_path), path) == []
    assert path.read_bytes() == before
    put(incoming, "a", "grown")
    assert accept_judged(incoming, ledger, path) == []          # not judged as it is now
    judge(incoming, ledger, a="changed")
    assert [entry.verdict for entry in accept_judged(incoming, ledger, path)] == ["changed"]
    assert listed(path) == [("b", False), ("a", True)]


def test_named_batches_are_accepted_whatever_their_verdict(tmp_path):
    incoming, path = tmp_path / "incoming", tmp_path / "accepted.json"
    for name in ("a", "b"):
        put(incoming, name)
    ledger = Ledger(tmp_path)
    judge(incoming, ledger, a="search hurt")
    accept_judged(incoming, ledger, path)
    assert [entry.verdict for entry in accept_named(incoming, ledger, path, ["a", "b"])] == [
        "search hurt, by hand", "not judged, by hand"]
    assert listed(path) == [("a", True), ("b", True)]
    with pytest.raises(DataError, match="need a batch called 'z', got a, b"):
        accept_named(incoming, ledger, path, ["z"])
