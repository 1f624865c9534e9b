"""Scenes as files: H.264 videos, their annotation, and two batches that stand for newly arrived data.

`sampling.py` decides what a clip shows and what its captions say, `render.py` makes its pixels; both are pure functions
of the seed.
"""

import csv
import hashlib
import json
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np

from hcmi.config import ScenesConfig
from hcmi.errors import hold_interrupts
from hcmi.files import atomic_dir, project_path
from hcmi.progress import track
from hcmi.scenes.galleries import STANDARD, gallery, gallery_queries
from hcmi.scenes.render import render
from hcmi.scenes.sampling import SceneClip, scene_clips
from hcmi.types import Clip

BATCHES = ("scenes_same", "scenes_shifted")
# One thread and bitexact muxing, so that equal frames give equal bytes. ultrafast takes half the time of veryfast; the
# frames are small and soft, and look the same at this rate.
X264 = {"preset": "ultrafast", "crf": "24", "threads": "1"}


def encode(frames_NHXC: np.ndarray, path: str | Path, fps: int) -> None:
    """Write uint8 RGB frames as an H.264 mp4. Height and width must be even."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream("libx264", rate=fps, options=X264)
        stream.height, stream.width = frames_NHXC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames_NHXC:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


def write_videos(clips: Iterable[SceneClip], folder: Path, config: ScenesConfig, total: int,
                 description: str = "drawing") -> Iterator[tuple[SceneClip, str]]:
    """Render each clip into `folder`/<video_id>.mp4 on all cores; yield it with the sha256 of its file, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    job = partial(_write_video, folder=folder, config=config)
    with _workers() as run, track(total=total, description=description, unit="clip") as bar:
        for done in run(job, clips):
            bar.update(1)
            yield done


@contextmanager
def _workers():
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with hold_interrupts():         # the thread that replaces workers inherits the mask too
        # a worker must end when the pool does, whatever handler of SIGTERM it has inherited from a library
        pool = get_context().Pool(workers, signal.signal, (signal.SIGTERM, signal.SIG_DFL))
    with pool:
        yield partial(pool.imap, chunksize=8)


def _write_video(clip: SceneClip, folder: Path, config: ScenesConfig) -> tuple[SceneClip, str]:
    path = folder / f"{clip.video_id}.mp4"
    encode(render(clip, config), path, config.fps)
    return clip, hashlib.sha256(path.read_bytes()).hexdigest()


def write_scenes(config: ScenesConfig, seed: int, folder: str | Path) -> list[Clip]:
    """Write the data set to `folder` (videos/*.mp4, annotation.jsonl), completely or not at all.

    annotation.jsonl holds one `SceneClip` a line, sorted by video_id. Returns the clips of the manifest.

    Raises: ConfigError when there are not enough different meanings for so many clips.
    """
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    scenes = sorted((clip for split, count in counts.items() for clip in scene_clips(config, split, seed, count)),
                     key=lambda clip: clip.video_id)
    with atomic_dir(folder) as temporary:
        return _write_all(scenes, temporary, Path(folder), config, "drawing")


def write_gallery(name: str, folder: str | Path, config: ScenesConfig = STANDARD, split: str = "test") -> list[Clip]:
    """Write the gallery `name` of a split to `folder`: videos/, annotation.jsonl, queries.jsonl and captions.csv.

    queries.jsonl holds one `Query` a line: what is asked, and which clips are right. captions.csv is the table of the
    `folder` format, with the captions of all clips.

    Returns the clips of the manifest, all of that split. Raises: ConfigError, as `gallery` does.
    """
    scenes = gallery(name, config, split)
    with atomic_dir(folder) as temporary:
        clips = _write_all(scenes, temporary, Path(folder), config, f"drawing {name}")
        write_captions(temporary / "captions.csv", scenes, ("video", "caption", "split"))
        lines = (json.dumps(asdict(query), ensure_ascii=False) + "\n" for query in gallery_queries(name, config, split))
        (temporary / "queries.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return clips


def _write_all(scenes: list[SceneClip], folder: Path, final: Path, config: ScenesConfig, what: str) -> list[Clip]:
    """Write videos/ and annotation.jsonl to `folder`, which will become `final`."""
    rows = []
    with open(folder / "annotation.jsonl", "w", encoding="utf-8", newline="\n") as annotation:
        for clip, sha256 in write_videos(scenes, folder / "videos", config, len(scenes), what):
            annotation.write(annotation_line(clip))
            rows.append(Clip(clip.video_id, project_path(final / "videos" / f"{clip.video_id}.mp4"), clip.split,
                             clip.captions, 0.0, clip.duration_s, clip.duration_s, sha256, clip.tags))
    return rows


def annotation_line(clip: SceneClip) -> str:
    return json.dumps(clip.record(), ensure_ascii=False) + "\n"


def write_batch(config: ScenesConfig, seed: int, batch: str, folder: str | Path) -> None:
    """Write one of `BATCHES` in the `folder` format (videos/, captions.csv), completely or not at all."""
    scenes = list(scene_clips(config, batch, seed, config.num_incoming))
    with atomic_dir(folder) as temporary:
        for _ in write_videos(scenes, temporary / "videos", config, len(scenes), f"drawing {batch}"):
            pass
        write_captions(temporary / "captions.csv", scenes)


def write_captions(path: Path, scenes: Iterable[SceneClip], columns: tuple[str, ...] = ("video", "caption")) -> None:
    """Write the table of the `folder` format: one row a caption, with the clip's split if `columns` has it."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for clip in scenes:
            writer.writerows((f"{clip.video_id}.mp4", caption, clip.split)[:len(columns)] for caption in clip.captions)
