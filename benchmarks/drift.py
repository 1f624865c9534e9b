"""The drift report's verdicts, measured: false alarms, power for each kind of change, R@1 without labels, cost.

    python benchmarks/drift.py [--quick]

Needs a finished `make repro` on Scenes. New clips of other seeds are drawn, decoded and encoded once; they are kept in
CACHE, so a run that was stopped goes on. Each batch is judged as `hcmi drift` judges it, with all columns. A batch "as
delivered" is made of whole groups: a clip comes with all the clips that differ from it in one word or in their order,
which are 30 % of what Scenes delivers. Half of the batches are compared with one draw of the tested clips and half with
another.

For power, the clips of a kind replace as many unchanged ones as make R@1 fall by 10 points in the mean. `hurt` and
`changed` count only the batches whose R@1 did fall by 8 to 12. Harmless are the kinds and degrees in HARMLESS.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import torch
from common import shipped, shipped_params, table, write_result
from PIL import Image, ImageFilter

from hcmi.config import Params, load_params
from hcmi.dataset import read_folder, write_manifest
from hcmi.drift import BatchReport, Reference, Sample, Scores, conclude, estimate_recall, recall_at_1
from hcmi.drift.history import most_by_chance, point_of, slow_changes
from hcmi.drift.profile import CLIP_COLUMNS, clip_columns
from hcmi.evaluate import wilson
from hcmi.index import round_trip
from hcmi.model import concatenate, encode_texts
from hcmi.progress import track
from hcmi.scenes import scene_clips
from hcmi.scenes.sampling import captions_for
from hcmi.scenes.write import write_captions, write_videos
from hcmi.shards import ShardReader, pick_frames, write_shards
from hcmi.types import Clip, VideoTokens

CACHE = Path(tempfile.gettempdir()) / "hcmi-bench-drift"
BATCH, FRAMES = 200, 12
PLAIN_SEEDS, ODD_SEEDS = range(201, 211), {"shapes": (301, 302), "motions": (401, 402)}
NEW_SHAPES = dict(zip(("circle", "square", "triangle", "ring", "star", "cross", "heart", "moon"),
                      ("diamond", "arrow", "bolt", "hourglass") * 2, strict=True))
NEW_ACTIONS = ("zigzags", "bounces", "swings", "pulses", "flips", "spirals")


def blurred(frames, degree, generator):
    flat = frames.reshape(-1, *frames.shape[-3:]).astype(np.uint8)
    blur = ImageFilter.GaussianBlur(degree)
    return np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in flat]).reshape(frames.shape)


def covered(frames, degree, generator):
    side, frames = int(degree * frames.shape[2]), frames.copy()
    for clip in frames:
        top, left = generator.integers(0, frames.shape[2] - side + 1, 2)
        clip[:, top:top + side, left:left + side] = 128
    return frames


def zoomed(frames, degree, generator):
    size = frames.shape[2]
    kept = int(size * (1 - degree))
    first = (size - kept) // 2
    flat = frames.reshape(-1, *frames.shape[-3:]).astype(np.uint8)[:, first:first + kept, first:first + kept]
    return np.stack([np.asarray(Image.fromarray(frame).resize((size, size))) for frame in flat]).reshape(frames.shape)


DAMAGE = {
    "brighter": lambda frames, degree, generator: frames * (1 + degree),
    "darker": lambda frames, degree, generator: frames * (1 - degree),
    "noisy": lambda frames, degree, generator: frames + 255 * degree * generator.standard_normal(frames.shape),
    "paler": lambda frames, degree, generator: (1 - degree) * frames + degree * frames.mean(-1, keepdims=True),
    "mixed": lambda frames, degree, generator: (1 - degree) * frames + degree * np.roll(frames, 1, axis=0),
    "frozen": lambda frames, degree, generator: frames[:, np.minimum(np.arange(FRAMES), int(FRAMES * (1 - degree)))],
    "blurred": blurred, "covered": covered, "zoomed": zoomed}
HARMFUL = {"brighter": 1.0, "darker": 0.5, "noisy": 0.5, "paler": 0.75, "mixed": 0.45, "frozen": 0.55, "blurred": 5.0,
           "covered": 0.35, "zoomed": 0.5}
HARMLESS = {"brighter": 0.05, "darker": 0.1, "blurred": 0.7, "noisy": 0.03, "paler": 0.1}


class Pool:
    """Clips with everything that a batch can be made of: tokens, captions, texts, pixel columns and groups."""

    def __init__(self, clips: list[Clip], frames: np.ndarray, reference: Reference):
        self.clips = clips
        self.videos = round_trip(encode(frames, reference), reference.precision)
        self.captions = [clip.captions[0] for clip in clips]
        self.texts = encode_texts(reference.model, self.captions)
        self.pixels, self.middle = pixels_of(clips, frames)
        self.groups = groups_of(self.captions)

    def sample(self, rows: np.ndarray, with_captions: bool = True) -> Sample:
        rows = np.asarray(rows)
        captioned = np.arange(len(rows)) if with_captions else np.arange(0)
        return Sample([self.clips[row] for row in rows], self.pixels.iloc[rows].reset_index(drop=True),
                      [self.middle[row] for row in rows], self.videos[rows], captioned,
                      [self.captions[row] for row in rows] if with_captions else [],
                      self.texts[rows] if with_captions else None)

    def delivered(self, generator: np.random.Generator, size: int = BATCH) -> np.ndarray:
        """Rows of whole groups, in random order, until there are `size`."""
        order = np.argsort(generator.random(self.groups.max() + 1)[self.groups], kind="stable")
        return order[:size]


def joined(lists: Iterable[list]) -> list:
    return list(chain.from_iterable(lists))


def together(samples: list[Sample]) -> Sample:
    """One sample of several, in which every clip or none has a caption."""
    first = samples[0]
    size = sum(map(len, samples))
    return Sample(joined(some.clips for some in samples),
                  pd.concat([some.pixels for some in samples], ignore_index=True),
                  joined(some.middle_frames for some in samples), concatenate([some.videos for some in samples]),
                  np.arange(size if first.captions else 0), joined(some.captions for some in samples),
                  concatenate([some.texts for some in samples]) if first.captions else None)


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
    picks = pick_frames(FRAMES, 4, None)
    rows = [{"duration_s": clip.end_s - clip.start_s, "width": 128.0, "height": 128.0, **clip_columns(some[picks])}
            for clip, some in zip(clips, frames, strict=True)]
    columns = [name for name in CLIP_COLUMNS if name in rows[0]]
    return pd.DataFrame(rows, columns=columns, dtype=float), [some[FRAMES // 2] for some in frames]


@torch.inference_mode()
def encode(frames: np.ndarray, reference: Reference) -> VideoTokens:
    parts = []
    for start in range(0, len(frames), 50):
        pixels = reference.model.processor.frames(torch.from_numpy(np.ascontiguousarray(frames[start:start + 50])))
        parts.append(reference.model.encode_videos(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool)))
    return concatenate(parts)


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
    frames = [reader.frames(row, pick_frames(int(reader.num_stored[row]), FRAMES, None)) for row in range(len(reader))]
    return [clip.to_row() for clip in reader.clips], np.stack(frames)


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


class World:
    """Two references with different draws of the tested clips, and the judge."""

    def __init__(self, params: Params):
        from hcmi.model import load_retriever

        self.rate, self.generator = params.drift.false_alarm_rate, np.random.default_rng(0)
        model, reader = load_retriever(shipped("models/hcmi")), ShardReader(shipped("data/shards"), "test")
        row_of = {clip.video_id: row for row, clip in enumerate(reader.clips)}
        self.references = []
        for seed in (0, 1):
            reference = Reference(model, shipped("export"), shipped("data/shards"), np.random.default_rng(seed))
            rows = [row_of[clip.video_id] for clip in reference.sample.clips]
            frames = np.stack([reader.frames(row, pick_frames(int(reader.num_stored[row]), FRAMES, None))
                               for row in rows])
            pixels, _ = pixels_of(reference.sample.clips, frames)       # from the same frames as the pools'
            reference.sample = replace(reference.sample, pixels=pixels)
            reference.profile = reference._profile(reference.sample, reference.scores)
            self.references.append(reference)

    def judge(self, sample: Sample, number: int = 0) -> tuple[BatchReport, Scores | None]:
        reference = self.references[number % 2]
        report = BatchReport("made", sample=sample, num_found=len(sample))
        report.profile, scores = reference.profile_of(sample)
        conclude(report, scores, reference, self.rate, self.generator)
        return report, scores


def is_alarm(report: BatchReport) -> bool:
    return report.verdict in ("changed", "search hurt")


def interval(hits: list[bool]) -> list[float]:
    return wilson(sum(hits), len(hits)) if hits else [0.0, 1.0]


def measure_false_alarms(world: World, plain: Pool, count: int) -> tuple[list[BatchReport], list[bool]]:
    reports = [world.judge(plain.sample(plain.delivered(world.generator)), number)[0]
               for number in track(range(count), "unchanged batches", unit="batch")]
    return reports, [is_alarm(report) for report in reports]


def measure_harmless(world: World, clips: list[Clip], frames: np.ndarray, count: int) -> dict[str, list[bool]]:
    found = {}
    for kind, degree in track(HARMLESS.items(), "harmless kinds", unit="kind"):
        pool = Pool(clips, damaged(frames, kind, degree), world.references[0])
        found[kind] = [world.judge(pool.sample(pool.delivered(world.generator, BATCH // 2)), number)[0].verdict ==
                       "search hurt" for number in range(count)]
    return found


def damaged(frames: np.ndarray, kind: str, degree: float) -> np.ndarray:
    changed = DAMAGE[kind](frames.astype(np.float32), degree, np.random.default_rng(0))
    return np.clip(changed, 0, 255).astype(np.uint8)


def measure_power(world: World, plain: Pool, pools: dict[str, Pool], count: int) -> tuple[list[tuple], list[tuple]]:
    """Rows of the table, and (R@1, estimate) of each kind."""
    rows, estimates = [], []
    base = recall_of(world, plain)
    for kind, pool in track(pools.items(), "harmful kinds", unit="kind"):
        recall, (estimate, truth) = recall_of(world, pool), estimate_of(world, pool)
        estimates.append((kind, truth, estimate))
        share = min(1.0, 10 / max(base - recall, 1e-6))
        hurt, alarms, alone = [], [], []
        for number in range(count):
            size = round(share * BATCH)
            odd = pool.sample(world.generator.permutation(len(pool.clips))[:size])
            sample = together([odd, plain.sample(plain.delivered(world.generator, BATCH - size))]) if size < BATCH \
                else odd
            report, _ = world.judge(sample, number)
            silent, _ = world.judge(replace(sample, captioned=np.arange(0), captions=[], texts=None), number)
            if report.measured is not None and 8 <= -report.measured.change <= 12:
                hurt.append(report.verdict == "search hurt")
                alarms.append(is_alarm(report))
                alone.append(is_alarm(silent))
        rows.append((kind, round(recall, 1), round(100 * share), len(hurt), mean(hurt), mean(alarms), mean(alone)))
    return rows, estimates


def mean(values: list[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def recall_of(world: World, pool: Pool) -> float:
    return recall_at_1(world.references[0].profile_of(pool.sample(np.arange(min(len(pool.clips), 400))))[1])


def estimate_of(world: World, pool: Pool):
    scores = world.references[0].profile_of(pool.sample(np.arange(min(len(pool.clips), 200))))[1]
    return estimate_recall(scores, world.references[0].temperature), recall_at_1(scores)


def measure_histories(reports: list[BatchReport], rate: float, generator: np.random.Generator) -> float:
    """Share of 40 histories of 50 of these unchanged batches that report anything."""
    points = [point_of(report.to_record(), "2026-01-01") for report in reports]
    said = 0
    for _ in range(40):
        chosen = [points[row] for row in generator.integers(0, len(points), 50)]
        alarms = sum(point.verdict not in ("ok", "cannot tell") for point in chosen)
        said += bool(slow_changes(chosen)) or alarms > most_by_chance(50, rate)
    return said / 40


def measure_cost(world: World, plain: Pool) -> tuple[float, float]:
    """CPU seconds and MB of the report on 2,000 clips with a caption each, embeddings given and libraries loaded."""
    from hcmi.drift.page import render
    from hcmi.drift.stage import _add_evidently, _evidently_library

    reference = world.references[0]
    _add_evidently(world.judge(plain.sample(np.arange(50)))[0], reference)      # loads Evidently
    rows = world.generator.permutation(len(plain.clips))[:600]                  # what the stage draws of 2,000
    started = time.process_time()
    report, _ = world.judge(plain.sample(np.sort(rows)))
    _add_evidently(report, reference)
    page = render({"batches": [1], "reference": {"clips": 600}, "false_alarm_rate": 0.01}, [report], reference.profile,
                  {}, _evidently_library([report]), "data/incoming")
    return time.process_time() - started, len(page) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer batches")
    quick = parser.parse_args().quick
    params = load_params(shipped_params())
    world = World(params)
    reference = world.references[0]
    drawn = [load_clips("plain", seed, params) for seed in (PLAIN_SEEDS[:3] if quick else PLAIN_SEEDS)]
    plain = Pool(joined(clips for clips, _ in drawn), np.concatenate([frames for _, frames in drawn]), reference)
    reports, alarms = measure_false_alarms(world, plain, 24 if quick else 300)
    histories = measure_histories(reports, world.rate, world.generator)
    clips, frames = drawn[0]
    harmless = measure_harmless(world, clips, frames, 2 if quick else 20)
    kinds = list(HARMFUL.items())[:3] if quick else list(HARMFUL.items())
    pools = {kind: Pool(clips, damaged(frames, kind, degree), reference) for kind, degree in kinds}
    for kind, seeds in ODD_SEEDS.items():
        odd = [load_clips(kind, seed, params) for seed in (seeds[:1] if quick else seeds)]
        pools[kind] = Pool(joined(some for some, _ in odd), np.concatenate([some for _, some in odd]), reference)
    rows, estimates = measure_power(world, plain, pools, 3 if quick else 30)
    headers = ("kind", "R@1 of the kind", "share, %", "batches", "hurt", "changed", "changed without captions")
    print(table(headers, rows))
    between = [(found.recall - truth, found.low <= truth <= found.high, found.high - found.low)
               for _, truth, found in estimates if 10 <= truth <= 90]
    errors, holds, widths = (np.array(values, float) for values in zip(*between, strict=True))
    seconds, size = measure_cost(world, plain)
    hurt = joined(harmless.values())
    write_result("drift", {
        "batches": len(alarms), "false_alarm_rate": mean(alarms), "false_alarm_rate_ci95": interval(alarms),
        "unchanged_called_hurt": mean([report.verdict == "search hurt" for report in reports]),
        "harmless_called_hurt": mean(hurt), "harmless_called_hurt_ci95": interval(hurt),
        "history_false_alarm_rate": histories,
        "min_power_hurt": float(np.nanmin([row[4] for row in rows])),
        "min_power_changed": float(np.nanmin([row[5] for row in rows])),
        "min_power_changed_no_captions": float(np.nanmin([row[6] for row in rows])),
        "label_free_mae": float(np.abs(errors).mean()), "label_free_bias": float(errors.mean()),
        "label_free_coverage": float(holds.mean()), "label_free_width": float(widths.mean()),
        "report_cpu_seconds": round(seconds, 1), "html_mb": round(size, 2)}, quick=quick)


if __name__ == "__main__":
    main()
