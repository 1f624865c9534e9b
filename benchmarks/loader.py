"""The training loader compared with bare JPEG decoding and with decoding the videos in each epoch.

- jpeg_ratio: clips/s of the loader over those of bare JPEG decoding: the same bytes, already in memory, the same
  decoder, results thrown away; one process each
- jpeg_ratio_workers: the loader with workers on all cores over bare decoding on all cores
- opencv_ratio: the loader over what much research code does: decode the video files in each epoch with OpenCV, which
  seeks to each frame; one process each

Videos are Scenes clips of 320x240 at 25 frames/s, frames have 224 pixels, as pretrained towers take them;
`--videos FOLDER` takes real videos. Figures with `_small` are the same for Scenes as in params.yaml, where building the
batch is a larger part of the work.

Both sides of a ratio alternate in one run; a ratio is the median over the rounds.

    python benchmarks/loader.py [--quick] [--videos FOLDER]
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import cv2
import pyarrow.parquet as pq
import simplejpeg
import torch
from common import shipped_params, table, write_result

from hcmi.config import DatasetConfig, Params, load_params
from hcmi.dataset import read_folder, write_manifest
from hcmi.scenes import write_scenes
from hcmi.shards import ShardReader, TrainLoader, write_shards
from hcmi.types import Clip

ROOT = Path(__file__).resolve().parents[1]
NUM_FRAMES, BATCH_SIZE = 12, 32
LARGE = 224     # pixels
LARGE_VIDEOS = {"width": 320, "height": 240, "fps": 25}


def make_clips(videos: Path | None, config: DatasetConfig, folder: Path, count: int) -> list[Clip]:
    """Clips of real videos in the `folder` format, or generated ones, all in the split `train`."""
    if videos:
        clips, _ = read_folder(videos, config)
    else:
        scenes = config.scenes.model_copy(update={"num_train": count, "num_val": 1, "num_test": 1})
        clips = [clip for clip in write_scenes(scenes, config.seed, folder) if clip.split == "train"]
    return [replace(clip, split="train") for clip in clips[:count]]


def make_shards(clips: list[Clip], folder: Path, params: Params, size: int) -> Path:
    """Shards with only the frames that training uses, so that bare decoding gets exactly the same bytes."""
    write_manifest(sorted(clips, key=lambda clip: clip.video_id), folder / "manifest.parquet")
    config = params.shards.model_copy(update={"size": size, "num_frames": NUM_FRAMES, "executor": "local"})
    write_shards(manifest_path=folder / "manifest.parquet", out_dir=folder / f"shards{size}", config=config)
    return folder / f"shards{size}"


def read_jpegs(shards: Path) -> list[list[bytes]]:
    """The frames of each clip, as files."""
    jpegs = []
    for row in pq.read_table(shards / "index.parquet").to_pylist():
        data = (shards / row["shard"]).read_bytes()
        jpegs.append([data[offset:offset + size]
                      for offset, size in zip(row["frame_offsets"], row["frame_sizes"], strict=True)])
    return jpegs


def decode_all(jpegs: list[list[bytes]]) -> None:
    for clip in jpegs:
        for jpeg in clip:
            simplejpeg.decode_jpeg(jpeg)


def decode_on_all_cores(jpegs: list[list[bytes]], cores: int) -> float:
    """Seconds, without the start of the processes."""
    context = multiprocessing.get_context("fork")
    begin, done = context.Barrier(cores + 1), context.Barrier(cores + 1)

    def work(part: int) -> None:
        begin.wait()
        decode_all(jpegs[part::cores])
        done.wait()
    processes = [context.Process(target=work, args=(part,)) for part in range(cores)]
    for process in processes:
        process.start()
    begin.wait()
    started = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds


def decode_with_opencv(clips: list[Clip], size: int) -> None:
    """Seek to the middle of each of 12 equal parts, resize, crop, as CLIP4Clip and many others do."""
    for clip in clips:
        video = cv2.VideoCapture(str(ROOT / clip.path))
        fps, frames = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
        first, last = clip.start_s * fps, min(clip.end_s * fps, frames)
        for part in range(NUM_FRAMES):
            video.set(cv2.CAP_PROP_POS_FRAMES, int(first + (part + 0.5) * (last - first) / NUM_FRAMES))
            read, frame = video.read()
            if not read:
                continue
            height, width = frame.shape[:2]
            scale = size / min(height, width)
            frame = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (round(width * scale), round(height * scale)),
                               interpolation=cv2.INTER_CUBIC)
            top, left = (frame.shape[0] - size) // 2, (frame.shape[1] - size) // 2
            frame[top:top + size, left:left + size].copy()
        video.release()


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    result = function()
    return result if isinstance(result, float) else time.perf_counter() - started


def some_epochs(loader: TrainLoader, epochs: int) -> None:
    for _ in range(epochs):
        for _ in loader:
            pass


def alternate(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, function in contenders.items():
            used = seconds(function)
            if number:
                taken[name].append(used)
    return taken


def measure(clips: list[Clip], folder: Path, params: Params, size: int, quick: bool) -> dict[str, float]:
    """Clips/s of each way (medians), and ratios to the loader (medians over rounds)."""
    shards = make_shards(clips, folder, params, size)
    reader, jpegs, cores = ShardReader(shards, "train"), read_jpegs(shards), len(os.sched_getaffinity(0))
    alone, workers = (TrainLoader(reader, BATCH_SIZE, NUM_FRAMES, num_workers=number) for number in (0, cores))
    epochs = max(1, (256 if quick else 1024) // len(clips))
    few = clips[:len(clips) // 16]
    done = dict.fromkeys(("loader", "workers"), epochs * len(alone) * alone.batch_size) | {"opencv": len(few)}
    taken = alternate({
        "bare": lambda: decode_all(jpegs), "loader": lambda: some_epochs(alone, epochs),
        "bare on all cores": lambda: decode_on_all_cores(jpegs, cores), "workers": lambda: some_epochs(workers, epochs),
        "opencv": lambda: decode_with_opencv(few, size)}, rounds=3 if quick else 9)
    rates = {name: [done.get(name, len(jpegs)) / used for used in taken[name]] for name in taken}

    def ratio(name: str, other: str) -> float:
        return median(mine / theirs for mine, theirs in zip(rates[name], rates[other], strict=True))
    return {**{name: median(values) for name, values in rates.items()}, "jpeg_ratio": ratio("loader", "bare"),
            "jpeg_ratio_workers": ratio("workers", "bare on all cores"), "opencv_ratio": ratio("loader", "opencv")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    parser.add_argument("--videos", type=Path, help="real videos with captions.csv instead of Scenes clips")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params(shipped_params())
    large_scenes = params.dataset.scenes.model_copy(update=LARGE_VIDEOS)
    found = {}
    for kind, size, scenes in (("large", LARGE, large_scenes), ("small", params.shards.size, params.dataset.scenes)):
        with tempfile.TemporaryDirectory(prefix="loader-") as folder:
            config = params.dataset.model_copy(update={"scenes": scenes})
            clips = make_clips(arguments.videos, config, Path(folder) / "videos", 64 if arguments.quick else 256)
            found[kind] = measure(clips, Path(folder), params, size, arguments.quick)
    print(table(["clips/s", f"{LARGE} pixels", f"{params.shards.size} pixels"],
                [[name, value, found["small"][name]] for name, value in found["large"].items()]))
    ratios = [name for name in found["large"] if "ratio" in name]
    figures = {f"{name}{suffix}": found[kind][name] for kind, suffix in (("large", ""), ("small", "_small"))
               for name in ratios}
    if arguments.videos:
        print("real videos: not written to results/, whose figures are of Scenes")
    else:
        write_result("loader", figures, arguments.quick)


if __name__ == "__main__":
    main()
