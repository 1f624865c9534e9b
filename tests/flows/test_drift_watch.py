"""flows.drift_watch: which batch is the newest, and that nothing but pinned artefacts is read.

The report itself, made by the flow on real artefacts, is in tests/test_pipeline.py.
"""

import os
from pathlib import Path

import pytest

from flows import drift_watch
from flows.stages import reproduce


def batch(incoming: Path, name: str, when: float) -> None:
    (incoming / name / "videos").mkdir(parents=True)
    video = incoming / name / "videos" / "a.mp4"
    video.write_bytes(b"x")
    os.utime(video, (when, when))


def test_newest_batch_is_the_last_changed_when_folders_are_many(tmp_path):
    batch(tmp_path, "b", 2000)
    batch(tmp_path, "c", 1000)
    batch(tmp_path, "a", 2000)
    batch(tmp_path, ".hidden", 3000)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("no batch")
    assert drift_watch.newest_batch(tmp_path) == "b"     # of two that changed together, the last by name


def test_newest_batch_says_what_to_do_when_there_is_none(tmp_path):
    for incoming in (tmp_path, tmp_path / "missing"):
        with pytest.raises(drift_watch.WatchError) as failure:
            drift_watch.newest_batch(incoming)
        assert str(failure.value) == f"{incoming}: need a batch (a folder with videos/), found none. Copy one there."


def test_check_pinned_refuses_what_the_lock_does_not_pin(toy, monkeypatch):
    monkeypatch.setattr(drift_watch, "PINNED", ("one",))
    with pytest.raises(drift_watch.WatchError) as failure:
        drift_watch.check_pinned()
    assert str(failure.value) == ("one.txt: need what dvc.lock pins, got something else or nothing. "
                                  "Run `make repro` or `dvc checkout`.")
    reproduce("one")
    drift_watch.check_pinned()
