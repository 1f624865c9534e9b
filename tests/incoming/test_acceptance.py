"""What follows from a verdict, and the list of accepted batches."""

from pathlib import Path

import pytest

from hcmi.dataset import file_contents, read_accepted
from hcmi.drift.queries import LOG
from hcmi.errors import DataError
from hcmi.incoming import (
    ACTIONS,
    SEARCHED,
    Ledger,
    Verdict,
    accept_judged,
    accept_named,
    action,
    find_batches,
    judge_new,
    look,
    searched_batches,
    worst,
)
from hcmi.types import Clip
from hcmi.video import sha256


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
    searched = searched_batches(path)
    return [(entry.batch, searched.get(entry.content) == entry.batch) for entry in read_accepted(path)]


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


def usable(folder: Path) -> None:
    pass


def test_named_batches_are_accepted_whatever_their_verdict(tmp_path):
    incoming, path = tmp_path / "incoming", tmp_path / "accepted.json"
    for name in ("a", "b"):
        put(incoming, name)
    ledger = Ledger(tmp_path)
    judge(incoming, ledger, a="search hurt")
    accept_judged(incoming, ledger, path)
    assert [entry.verdict for entry in accept_named(incoming, ledger, path, ["a", "b"], usable)] == [
        "search hurt, by hand", "not judged, by hand"]
    assert listed(path) == [("a", True), ("b", True)]
    assert [entry.verdict for entry in read_accepted(path)] == ["search hurt", "not judged, by hand"]
    with pytest.raises(DataError, match="need a batch called 'z', got a, b"):
        accept_named(incoming, ledger, path, ["z"], usable)


def test_training_data_stays_as_it_was_when_a_batch_is_only_made_searchable(tmp_path):
    """The stage `dataset` depends on the list: with the same bytes `dvc repro` has nothing to do."""
    incoming, path = tmp_path / "incoming", tmp_path / "accepted.json"
    put(incoming, "a")
    ledger = Ledger(tmp_path)
    judge(incoming, ledger, a="search hurt")
    accept_judged(incoming, ledger, path)
    before = path.read_bytes()
    accept_named(incoming, ledger, path, ["a"], usable)
    assert path.read_bytes() == before
    assert listed(path) == [("a", True)]
    assert accept_named(incoming, ledger, path, ["a"], usable) == []


def test_a_broken_list_of_searched_batches_is_said_in_one_line(tmp_path):
    path = tmp_path / "accepted.json"
    for broken in ("{", "[1]"):
        path.with_name(SEARCHED).write_text(broken)
        with pytest.raises(DataError, match=r"searched\.json: need a list of batches, got something else"):
            searched_batches(path)


# which batches are judged

def test_a_verdict_is_kept_when_it_is_final_and_the_batch_did_not_change(tmp_path):
    def report(name: str) -> Verdict:
        asked.append(name)
        if name == "changing":
            put(tmp_path / "incoming", name, f"grown {len(asked)}")
        return Verdict("ok", "So it is.", final=name != "machine")

    def again(**options: bool) -> list[str]:
        asked.clear()
        verdicts, growing = judge_new(find_batches(tmp_path / "incoming"), Ledger(tmp_path), report, 0, **options)
        assert (list(verdicts), growing) == (asked, [])
        return list(asked)

    asked: list[str] = []
    for name in ("changing", "kept", "machine"):
        put(tmp_path / "incoming", name)
    assert again() == ["changing", "kept", "machine"]
    assert again() == ["changing", "machine"]
    assert again(again=True) == ["changing", "kept", "machine"]


def grow(incoming: Path, name: str) -> None:
    (incoming / name / "later.mp4").write_text("later")


def clips(incoming: Path, name: str) -> list[Clip]:
    return [Clip(path.stem, str(path), "train", (), 0.0, 1.0, 1.0, sha256(path), {})
            for path in sorted((incoming / name).glob("*.mp4"))]


def test_files_that_join_an_accepted_batch_are_no_part_of_it_before_they_are_judged(tmp_path):
    incoming, path, ledger = tmp_path / "incoming", tmp_path / "accepted.json", Ledger(tmp_path)
    for name in ("a", "b", "c"):
        put(incoming, name)
    judge(incoming, ledger, a="ok", b="ok", c="ok")
    assert len(accept_judged(incoming, ledger, path)) == 3
    for name in ("a", "b", "c"):
        grow(incoming, name)
    assert accept_judged(incoming, ledger, path) == []
    for entry in read_accepted(path):
        assert [clip.video_id for clip in entry.of(clips(incoming, entry.batch))] == ["a"]
    judge(incoming, ledger, a="changed", b="search hurt", c="cannot tell")
    assert [entry.batch for entry in accept_judged(incoming, ledger, path)] == ["a", "b"]
    assert accept_judged(incoming, ledger, path) == []
    # what search may not have of `b` is trained on, and what it has of it stays
    used = [(batch, searched, [clip.video_id for clip in entry.of(clips(incoming, batch))])
            for entry, (batch, searched) in zip(read_accepted(path), listed(path), strict=True)]
    assert sorted(used) == [("a", True, ["a", "later"]), ("b", False, ["a", "later"]), ("b", True, ["a"]),
                            ("c", True, ["a"])]


def test_batch_that_changes_while_it_is_accepted_is_left_to_its_next_verdict(tmp_path, monkeypatch):
    incoming, path, ledger = tmp_path / "incoming", tmp_path / "accepted.json", Ledger(tmp_path)
    put(incoming, "a")
    judge(incoming, ledger, a="ok")

    def files(folder: Path) -> list[str]:
        grow(incoming, "a")
        return file_contents(folder)

    monkeypatch.setattr("hcmi.incoming.acceptance.file_contents", files)
    assert accept_judged(incoming, ledger, path) == []
    assert read_accepted(path) == []


def test_query_log_is_reported_and_nothing_follows(tmp_path):
    incoming, path, ledger = tmp_path / "incoming", tmp_path / "accepted.json", Ledger(tmp_path)
    (incoming / "log").mkdir(parents=True)
    (incoming / "log" / LOG).write_text('{"query": "a red car"}\n')
    judge(incoming, ledger, log="ok")
    assert accept_judged(incoming, ledger, path) == []
    record = {"batch": "log", "verdict": "changed", "why": "", "reason": "", "queries": 1}
    found = Verdict.of({"batches": [record]}, "log").action
    assert (found.state, found.search, found.train, found.retrain) == ("Changed", False, False, False)
    assert "it is a query log" in found.said


def test_batch_is_found_in_its_report_when_its_name_cannot_be_printed():
    record = {"batch": "caf\\xe9", "verdict": "ok", "why": "", "reason": ""}
    assert Verdict.of({"batches": [record]}, "caf\udce9").word == "ok"


def test_batch_is_accepted_when_its_name_is_no_utf8(tmp_path):
    incoming, ledger = tmp_path / "incoming", Ledger(tmp_path)
    put(incoming, "caf\udce9", "a film")
    judge(incoming, ledger, **{"caf\udce9": "ok"})
    assert [entry.batch for entry in accept_judged(incoming, ledger, tmp_path / "accepted.json")] == ["caf\udce9"]
    assert listed(tmp_path / "accepted.json") == [("caf\udce9", True)]
