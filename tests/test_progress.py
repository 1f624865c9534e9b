"""Progress in a log: lines of text, few of them, and never a bar."""

import io
import sys

from hcmi import progress
from hcmi.progress import track


def lines(monkeypatch, work) -> list[str]:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    work()
    return log.getvalue().splitlines()


def test_a_log_gets_one_line_at_the_end_when_the_work_is_short(monkeypatch):
    def work() -> None:
        with track(description="train", total=100, unit="step") as bar:
            for step in range(100):
                bar.update(1)
                bar.set_postfix(loss=float(step))      # tqdm draws at each of these

    assert lines(monkeypatch, work) == ["train: 100 of 100 steps, 00:00 so far, 00:00 left, loss=99"]


def test_a_log_names_one_file_and_bytes_as_they_are(monkeypatch):
    found = lines(monkeypatch, lambda: (list(track(["a"], "probe", unit="file")),
                                        list(track(range(9), "reading captions", unit="B"))))
    assert [line.partition(",")[0] for line in found] == ["probe: 1 of 1 file", "reading captions: 9 of 9 B"]


def test_a_log_gets_each_line_once_when_the_work_is_long(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    found = lines(monkeypatch, lambda: list(track(iter(range(3)), "index", total=3, unit="batch")))
    assert [line.partition(",")[0] for line in found] == [f"index: {n} of 3 batches" for n in (1, 2, 3)]
    assert not any(mark in "".join(found) for mark in "\r█|%")


def test_a_log_says_where_the_work_stopped_when_it_failed(monkeypatch):
    def work() -> None:
        bar = track(total=5, description="part")
        bar.update(2)
        bar.close()
        bar.close()

    assert lines(monkeypatch, work) == ["part: 2 of 5 items, 00:00 so far, 00:00 left"]
