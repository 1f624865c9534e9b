"""Query logs: the same words pass, others and unanswered ones are named, broken ones get a line."""

import json

import numpy as np
import pytest
from search_world import searchable_model

from hcmi.drift import BatchReport, Reference
from hcmi.drift.judging import judge
from hcmi.drift.queries import _nothing_found, judge_queries, read_queries
from hcmi.errors import DataError
from hcmi.incoming import Verdict


@pytest.fixture(scope="module")
def reference(world) -> Reference:
    root, _ = world
    return Reference(searchable_model(), root / "export", root / "shards", np.random.default_rng(0))


def judged(tmp_path, reference: Reference, rows: list[dict]) -> BatchReport:
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = BatchReport("log")
    judge_queries(report, path, reference, 0.01, np.random.default_rng(0))
    return report


def test_queries_like_the_tested_captions_are_ok(tmp_path, reference):
    report = judged(tmp_path, reference, [{"query": caption, "found": 3} for caption in
                                          reference.sample.captions[::2]])
    assert report.verdict == "ok"
    assert report.why == "25 queries like the captions that the model was tested on."
    assert report.to_record()["queries"] == 25


def test_other_words_and_unanswered_queries_are_named(tmp_path, reference):
    rows = [{"query": f"eine Katze springt {number}", "found": 0 if number < 5 else 3} for number in range(30)]
    report = judged(tmp_path, reference, rows)
    assert report.verdict == "changed"
    assert [cause.name for cause in report.causes] == ["nothing found", "unknown words"]
    assert "5 of 30 queries found nothing." in report.why
    assert "Translate" in report.advice


@pytest.mark.parametrize(("unanswered", "causes"), [(2, []), (3, ["nothing found"])])
def test_nothing_found_needs_three_queries_as_every_cause_does(unanswered, causes):
    found = _nothing_found([{"query": "a", "found": 0 if row < unanswered else 3} for row in range(12)])
    assert [cause.name for cause in [found] if cause] == causes


def test_a_log_without_a_line_is_told_to_collect_queries(tmp_path, world, reference):
    root, params = world
    (tmp_path / "queries.jsonl").write_text("\n")
    report = judge(tmp_path, reference, params, root / "shards")
    assert (report.verdict, report.advice) == (
        "cannot tell", "Correct what the report names, or collect more queries, and run again.")
    assert report.why.startswith("The log has 0 queries; a verdict needs 10")
    action = Verdict.of({"batches": [report.to_record()]}, report.name).action
    assert (action.todo, "it is a query log" in action.said) == ("", True), "it said how to add the log to the index"


def test_few_queries_give_no_verdict(tmp_path, reference):
    report = judged(tmp_path, reference, [{"query": "a ring"}] * 3)
    assert (report.verdict, report.reason) == ("cannot tell", "too few")


@pytest.mark.parametrize(("text", "message"), [
    ('{"query": "a"}\n{"words": "b"}\n', r'row 2: need \{"query": "\.\.\."\}, got'), ("no json\n", "row 1: need JSON"),
    ('{"query": "a"}\n' + "[" * 200_000 + "\n", "row 2: need JSON, got: maximum recursion depth exceeded"),
    ('\n{"query": "half an emoji \\ud83d"}\n', "row 2: need"),
    ('{"query": "\udce9"}\n', "need a readable file in UTF-8")])
def test_broken_logs_get_one_line(tmp_path, text, message):
    path = tmp_path / "queries.jsonl"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        read_queries(path)


def test_logs_may_have_a_byte_order_mark_and_empty_lines(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('\ufeff{"query": "a red car"}\r\n\r\n{"query": "a blue one"}\n\n', encoding="utf-8")
    assert [row["query"] for row in read_queries(path)] == ["a red car", "a blue one"]


def test_log_beside_videos_lets_no_video_in_unjudged(tmp_path, world, reference):
    root, params = world
    (tmp_path / "queries.jsonl").write_text('{"query": "a ring"}\n' * 40)
    assert judge(tmp_path, reference, params, root / "shards").num_queries == 40
    (tmp_path / "a.mp4").write_bytes(b"anything")
    found = judge(tmp_path, reference, params, root / "shards")
    assert (found.verdict, found.num_queries) == ("cannot tell", 0)
    assert "need videos or queries.jsonl, got both. Move queries.jsonl to a folder of its own." in found.trouble
