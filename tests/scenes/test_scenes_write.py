"""Videos, annotation and batches as files."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import av
import numpy as np
import pytest
from import_graph import ROOT
from scene_clips_world import CONFIG

from hcmi.errors import ConfigError
from hcmi.scenes import scene_clips, write_batch, write_scenes
from hcmi.scenes.render import render
from hcmi.scenes.write import encode


def file_hashes(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_film_is_h264_with_the_same_pixels_when_read_back(tmp_path):
    clip = next(scene_clips(CONFIG, "test", 0, 1))
    frames = render(clip, CONFIG)
    encode(frames, tmp_path / "a.mp4", 12)
    encode(frames, tmp_path / "b.mp4", 12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.average_rate) == ("h264", 128, 12)
        back = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    assert back.shape == frames.shape
    assert np.mean((back.astype(float) - frames) ** 2) < 40


def test_files_are_byte_identical_when_parameters_are_equal(tmp_path):
    rows = write_scenes(CONFIG, 0, tmp_path / "a")
    write_scenes(CONFIG, 0, tmp_path / "b")
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    assert Counter(row.split for row in rows) == {"train": 6, "val": 2, "test": 4}
    lines = [json.loads(line) for line in (tmp_path / "a" / "annotation.jsonl").read_text().splitlines()]
    assert [line["video_id"] for line in lines] == [row.video_id for row in rows]
    assert [row.video_id for row in rows] == sorted(row.video_id for row in rows)
    for line, row in zip(lines, rows, strict=True):
        assert row.sha256 == file_hashes(tmp_path / "a")[f"videos/{row.video_id}.mp4"]
        assert (row.duration_s, row.captions) == (line["duration_s"], tuple(line["captions"]))
        assert set(line["events"][0]) == {"colour", "shape", "action", "order", "start_s", "end_s"}


def test_nothing_is_left_behind_when_the_parameters_cannot_be_met(tmp_path):
    with pytest.raises(ConfigError, match="need more train clips"):
        write_scenes(CONFIG.model_copy(update={"max_events": 1, "num_train": 2000}), 0, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_shifted_batch_is_bright_and_has_other_wordings_than_the_same(tmp_path):
    brightness = {}
    for batch in ("scenes_same", "scenes_shifted"):
        write_batch(CONFIG, 0, batch, tmp_path / batch)
        assert len(list((tmp_path / batch / "videos").iterdir())) == 3
        brightness[batch] = np.mean([render(clip, CONFIG).mean() for clip in scene_clips(CONFIG, batch, 0, 3)])
    assert brightness["scenes_shifted"] > brightness["scenes_same"] + 80
    text = (tmp_path / "scenes_shifted" / "captions.csv").read_text()
    assert text.startswith("video,caption\n")
    assert not re.search(r"a clip in which|things? happen| then | before ", text)


PROGRAM = """
import os, signal, threading, time
from hcmi.scenes.write import _workers

def stick(_):
    open("begun", "w").close()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

signal.signal(signal.SIGTERM, lambda *_: None)
with _workers() as run:
    run(stick, [1])
    while not os.path.exists("begun"):
        time.sleep(0.01)
"""


def test_workers_that_are_stuck_end_when_a_library_has_set_a_handler_of_sigterm(tmp_path):
    subprocess.run([sys.executable, "-c", PROGRAM], timeout=120, check=True, cwd=tmp_path,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
