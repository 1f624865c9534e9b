"""New clips of Scenes for `drift.py`: drawn, decoded, damaged, and put into groups."""

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd

from hcmi.config import Params
from hcmi.dataset import read_folder, write_manifest
from hcmi.drift import damage
from hcmi.drift.profile import CLIP_COLUMNS, clip_columns
from hcmi.scenes import scene_clips
from hcmi.scenes.sampling import captions_for
from hcmi.scenes.write import write_captions, write_videos
from hcmi.shards import ShardReader, pick_frames, write_shards
from hcmi.types import Clip

CACHE = Path(tempfile.gettempdir()) / "hcmi-bench-drift"
BATCH, FRAMES = 200, 12
PLAIN_SEEDS, ODD_SEEDS = range(201, 211), {"shapes": (301, 302), "motions": (401, 402)}
NEW_SHAPES = dict(zip(("circle", "square", "triangle", "ring", "star", "cross", "heart", "moon"),
                      ("diamond", "arrow", "bolt", "hourglass") * 2, strict=True))
NEW_ACTIONS = ("zigzags", "bounces", "swings", "pulses", "flips", "spirals")


def groups_of(captions: list[str]) -> np.ndarray:
    """Clips of one number differ from another of them in at most one word, apart from the order and joining words."""
    joining = {"a", "an", "clip", "in", "which", "then", "before", "while", "two", "things", "happen", "first", "after",
               "that", "and", "the", "at", "same", "time", "as"}
    words = [Counter(word.strip(",.:") for word in caption.split() if word.strip(",.:") not in joining)
             for caption in captions]
    groups = np.arange(len(captions))
    for row, some in enumerate(words):
        for other in range(row):
            if sum((some - words[other]).values()) <= 1 and sum((words[other] - some).values()) <= 1:
                groups[groups == groups[row]] = groups[other]
    return np.unique(groups, return_inverse=True)[1]


def pixels_of(clips: list[Clip], frames: np.ndarray) -> tuple[pd.DataFrame, list[np.ndarray]]:
    picks = pick_frames(FRAMES, 4)
    rows = [{"duration_s": clip.end_s - clip.start_s, "width": 128.0, "height": 128.0, **clip_columns(some[picks])}
            for clip, some in zip(clips, frames, strict=True)]
    columns = [name for name in CLIP_COLUMNS if name in rows[0]]
    return pd.DataFrame(rows, columns=columns, dtype=float), [some[FRAMES // 2] for some in frames]


def load_clips(kind: str, seed: int, params: Params, count: int = BATCH) -> tuple[list[Clip], np.ndarray]:
    """Clips of Scenes and 12 frames of each, as the shards keep them; from CACHE when they are there."""
    path = CACHE / f"{kind}_{seed}_{count}"
    if not path.with_suffix(".npz").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            rows, frames = draw_clips(kind, seed, params, count, Path(work))
        path.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, frames=frames)
        path.with_suffix(".part").rename(path.with_suffix(".npz"))
    rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz")) as stored:
        return [Clip.from_row(row) for row in rows], stored["frames"]


def draw_clips(kind: str, seed: int, params: Params, count: int, work: Path) -> tuple[list[dict], np.ndarray]:
    scenes = [changed(clip, kind) for clip in scene_clips(params.dataset.scenes, "scenes_same", seed, count)]
    scenes = [replace(clip, video_id=f"{kind}{seed}_{clip.video_id}") for clip in scenes]
    for _ in write_videos(scenes, work / "videos", params.dataset.scenes, len(scenes)):
        pass
    write_captions(work / "captions.csv", scenes)
    clips = [replace(clip, split="test") for clip in read_folder(work, params.dataset)[0]]
    write_manifest(clips, work / "manifest.parquet")
    write_shards(manifest_path=work / "manifest.parquet", out_dir=work / "shards", config=params.shards)
    reader = ShardReader(work / "shards", "test")
    frames = [reader.frames(row, pick_frames(int(reader.num_stored[row]), FRAMES)) for row in range(len(reader))]
    return [clip.to_row() for clip in reader.clips], np.stack(frames)


def damaged(frames: np.ndarray, kind: str, degree: float) -> np.ndarray:
    """`frozen`: the last frames are all the same; a clip of fewer events looks like that too."""
    if kind == "frozen":
        return frames[:, np.minimum(np.arange(FRAMES), int(FRAMES * (1 - degree)))]
    return damage(frames, kind, np.random.default_rng(0), degree)


def changed(clip, kind: str):
    """The clip with shapes or actions that the model has never seen, and captions that say so."""
    if kind == "plain":
        return clip
    rng = Random(f"{clip.video_id}/{kind}")
    events = tuple(replace(event, shape=NEW_SHAPES[event.shape]) if kind == "shapes" else
                   replace(event, action=NEW_ACTIONS[int(rng.random() * len(NEW_ACTIONS))]) for event in clip.events)
    steps = tuple(tuple(replace(event, order=0, start_s=0, end_s=0) for event in events if event.order == order)
                  for order in sorted({event.order for event in events}))
    return replace(clip, events=events, captions=captions_for(rng, steps, 3, "sentence"))
