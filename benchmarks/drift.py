"""The drift report: its false alarm rate, how often it detects damaged batches, its error in R@1 without labels.

    python benchmarks/drift.py [--quick]

Needs a finished `make repro` on Scenes. Batches are drawn from the held-out clips that the reference does not use.
Their frames are damaged in several ways and degrees and encoded again. `fresh_difference` is the R@1 of new, unchanged
batches (Scenes of other seeds) minus the R@1 of the reference. `fresh_called_worse` is the share of these batches for
which the report says that R@1 has fallen. `report_seconds` is the time of the stage on data/incoming.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import shipped_params, table, write_result
from PIL import Image, ImageFilter

from hcmi.config import Params, load_params
from hcmi.drift import (
    Profile,
    Reference,
    Scores,
    combined_scores,
    compare,
    drift,
    estimate_recall,
    judge,
    query_columns,
    recall_at_1,
)
from hcmi.model import encode_texts, load_retriever
from hcmi.progress import track
from hcmi.scenes import write_batch
from hcmi.shards import ShardReader, pick_frames
from hcmi.types import VideoTokens

BATCH = 100


def brighter(frames, degree, generator):
    return frames + 120 * degree


def darker(frames, degree, generator):
    return frames * (1 - 0.8 * degree)


def noisy(frames, degree, generator):
    return frames + 80 * degree * generator.standard_normal(frames.shape)


def blurred(frames, degree, generator):
    blur = ImageFilter.GaussianBlur(5 * degree)
    flat = frames.reshape(-1, *frames.shape[-3:]).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in flat]).reshape(frames.shape)


def covered(frames, degree, generator):
    side = int(0.8 * degree * frames.shape[2])
    frames = frames.copy()
    for clip in frames:
        top, left = generator.integers(0, frames.shape[2] - side + 1, 2)
        clip[:, top:top + side, left:left + side] = 128
    return frames


def mixed(frames, degree, generator):
    return (1 - 0.5 * degree) * frames + 0.5 * degree * frames[generator.permutation(len(frames))]


DAMAGE = {"brighter": brighter, "darker": darker, "noisy": noisy, "blurred": blurred, "covered": covered,
          "mixed": mixed}


class World:
    """The reference, and the held-out clips that it does not use."""

    def __init__(self, seed: int = 0):
        self.model = load_retriever("models/hcmi")
        self.generator = np.random.default_rng(seed)
        self.reference = Reference(self.model, "export", "data/shards", self.generator)
        self.reader = ShardReader("data/shards", "test")
        used = {clip.video_id for clip in self.reference.sample.clips}
        self.left = [row for row, clip in enumerate(self.reader.clips) if clip.video_id not in used]

    def batch(self, damage=None, degree: float = 0.0) -> tuple[Profile, Scores]:
        """Profile and scores of a batch of unused clips. Pixel columns are left out: they would show the damage."""
        rows = self.generator.choice(self.left, BATCH, replace=False)
        frames = np.stack([self.reader.frames(row, pick_frames(int(self.reader.num_stored[row]),
                                                               self.model.config.num_frames, None)) for row in rows])
        if damage is not None:
            frames = np.clip(damage(frames.astype(np.float32), degree, self.generator), 0, 255).astype(np.uint8)
        captions = [str(self.generator.choice(self.reader.clips[row].captions)) for row in rows]
        videos, texts = self.encode(frames), encode_texts(self.model, captions)
        scores = Scores(combined_scores(self.model, texts, videos),
                        combined_scores(self.model, texts, self.reference.gallery))
        columns = query_columns(np.diagonal(scores.clips_NN), scores.gallery_NG, self.reference.temperature)
        columns["caption_words"] = [float(len(caption.split())) for caption in captions]
        return Profile(columns, {"video_embedding": videos.video_BD.numpy(),
                                 "caption_embedding": texts.sentence_BD.numpy()}), scores

    @torch.inference_mode()
    def encode(self, frames_BTHXC: np.ndarray) -> VideoTokens:
        frames = self.model.processor.frames(torch.from_numpy(frames_BTHXC))
        return self.model.encode_videos(frames, torch.ones(frames_BTHXC.shape[:2], dtype=torch.bool))

    def drifted(self, profile: Profile, rate: float) -> bool:
        return any(shift.drifted for shift in compare(self.reference.profile, profile, rate, self.generator))


def fresh_differences(world: World, params: Params, count: int) -> tuple[list[float], list[bool]]:
    """R@1 of new batches minus R@1 of the reference, and whether the report calls a fall more than chance."""
    differences, worse = [], []
    for seed in track(range(1000, 1000 + count), "new batches", unit="batch"):
        with TemporaryDirectory() as work:
            write_batch(params.dataset.scenes, seed, "scenes_same", Path(work) / f"seed_{seed}")
            report = judge(Path(work) / f"seed_{seed}", world.reference, params, "data/shards")
        differences.append(report.measured - report.expected)
        worse.append(report.difference[1] < 0)
    return differences, worse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer batches")
    quick = parser.parse_args().quick
    params, world = load_params(shipped_params()), World()
    rate, repeats = params.drift.false_alarm_rate, 3 if quick else 20
    calm = [world.batch()[0] for _ in track(range(50 if quick else 500), "batches without drift", unit="batch")]
    false_alarms = float(np.mean([world.drifted(profile, rate) for profile in calm]))
    rows, errors, covered_by, powers = [], [], [], []
    for name, damage in track(DAMAGE.items(), "damaged batches", unit="kind"):
        for degree in (0.25, 0.5, 1.0):
            found = [world.batch(damage, degree) for _ in range(repeats)]
            power = float(np.mean([world.drifted(profile, rate) for profile, _ in found]))
            truth = [recall_at_1(scores) for _, scores in found]
            guesses = [estimate_recall(scores, world.reference.scores, world.generator) for _, scores in found]
            errors += [abs(guess.recall - true) for guess, true in zip(guesses, truth, strict=True)]
            covered_by += [guess.low <= true <= guess.high for guess, true in zip(guesses, truth, strict=True)]
            rows.append((name, degree, round(np.mean(truth), 1), round(np.mean([g.recall for g in guesses]), 1), power))
            powers += [power] if degree == 1.0 else []
    print(table(("damage", "degree", "R@1", "R@1 without labels", "called drift"), rows))
    differences, worse = fresh_differences(world, params, repeats)
    with TemporaryDirectory() as work:
        started = time.perf_counter()
        drift(incoming_dir="data/incoming", model_dir="models/hcmi", export_dir="export", shards_dir="data/shards",
              out_dir=Path(work) / "report", params=params)
        seconds = time.perf_counter() - started
        size = (Path(work) / "report" / "index.html").stat().st_size / 1e6
    write_result("drift", {"false_alarm_rate": false_alarms, "min_power": min(powers),
                           "label_free_mae": float(np.mean(errors)), "label_free_coverage": float(np.mean(covered_by)),
                           "fresh_difference": float(np.mean(differences)),
                           "fresh_called_worse": float(np.mean(worse)),
                           "report_seconds": round(seconds, 1), "html_mb": round(size, 2)}, quick=quick)


if __name__ == "__main__":
    main()
