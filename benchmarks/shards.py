"""The `shards` stage against an ideal loop, OpenCV, and itself: after an addition, with bad files, at a million rows.

Clips are 320 x 240, 375 frames, H.264 as x264 makes it by default; 24 frames of 224 x 224 are stored of each.

- ideal_ratio: clips a second of `hcmi shards` over a loop that only decodes (decord), resizes and encodes, in as many
  processes, and writes nothing
- opencv_ratio: the same over one process that seeks to the same frames with OpenCV and reads them, and no more
- incremental_ratio: time of `hcmi shards` after 1 % more videos over its time for all
- faults_ratio: time for 180 good clips and 20 bad ones over that for the good ones. The bad: 6 transport streams on
  which decord's get_batch never returns, 11 broken or empty files, 3 that take longer than the deadline (1 s)
- tarwriter_share_64, tarwriter_share_224: CPU seconds that webdataset's TarWriter takes for the shards of clips of 4
  seconds, 12 frames of 64 or 224 pixels each, over the CPU seconds of the whole stage that wrote them; median of rounds
- million_rows_memory_mb: the larger peak memory of `hcmi dataset` on a captions.csv of a million rows and of
  `hcmi shards` on a manifest of a million clips

The other times are of whole processes, the best of three runs in turn; `incremental_ratio` divides by a single run.

    python benchmarks/shards.py [--quick]
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import av
import numpy as np
import simplejpeg
from common import shipped_params, table, write_result
from PIL import Image
from webdataset import TarWriter

from hcmi.dataset import write_manifest
from hcmi.types import Clip

ROOT = Path(__file__).resolve().parents[1]
SIZE, NUM_FRAMES, QUALITY = 224, 24, 90
LENGTH, FPS = 375, 25
# not getrusage: its peak starts at that of the process that made this one
PEAK = """import sys; from hcmi.cli import main
try: main(sys.argv[1:])
finally: print('peak', open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"""


def write_video(path: Path, seed: int, length: int = LENGTH, width: int = 320, height: int = 240,
                options: dict[str, str] | None = None) -> Path:
    """A camera that moves at random over a picture with fine and coarse detail and some noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (12, 16, 3), np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    scene = scene.astype(np.int16) + generator.integers(-20, 20, scene.shape, np.int16)
    steps = np.cumsum(generator.normal(0, 1.5, (length, 2)), axis=0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", options or {}
        for x, y in steps:
            left, top = int(width / 2 + x) % width, int(height / 2 + y) % height
            noise = generator.integers(-3, 3, (height, width, 1), np.int16)
            picture = scene[top:top + height, left:left + width] + noise
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_videos(folder: Path, count: int, different: int, length: int = LENGTH) -> list[Path]:
    """`count` files, of which `different` have different pictures."""
    folder.mkdir()
    made = [write_video(folder / f"v{number:05d}.mp4", number, length) for number in range(different)]
    for number in range(different, count):
        made.append(Path(shutil.copy(made[number % different], folder / f"v{number:05d}.mp4")))
    return made


def make_bad(folder: Path, good: Path) -> list[Path]:
    """20 files on which plain readers hang or give up, or which they read for minutes."""
    folder.mkdir()
    streams = [write_video(folder / f"stream{number}.ts", number) for number in range(6)]
    content = good.read_bytes()
    broken = []
    for number in range(11):
        path = folder / f"broken{number}.mp4"
        path.write_bytes([b"", b"no video", content[:len(content) * number // 12]][number % 3])
        broken.append(path)
    endless = write_video(folder / "endless0.mp4", 0, 40, 4096, 2304, {"preset": "ultrafast", "g": "1000"})
    return [*streams, *broken, endless, *(Path(shutil.copy(endless, folder / f"endless{n}.mp4")) for n in (1, 2))]


def spread(available: int) -> list[int]:
    return [(2 * part + 1) * available // (2 * NUM_FRAMES) for part in range(NUM_FRAMES)]


def ideal(path: Path) -> int:
    """Decode, resize, encode; the result is thrown away."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    total = 0
    for picture in reader.get_batch(spread(len(reader))).asnumpy():
        height, width = picture.shape[:2]
        image = Image.fromarray(picture).resize((SIZE * width // height, SIZE), Image.Resampling.BICUBIC)
        left = (image.width - SIZE) // 2
        square = np.asarray(image.crop((left, 0, left + SIZE, SIZE)))
        total += len(simplejpeg.encode_jpeg(square, QUALITY, "RGB", "420"))
    return total


def opencv(path: Path) -> int:
    """What most research code does."""
    import cv2

    reader = cv2.VideoCapture(str(path))
    read = 0
    for index in spread(int(reader.get(cv2.CAP_PROP_FRAME_COUNT))):
        reader.set(cv2.CAP_PROP_POS_FRAMES, index)
        read += reader.read()[0]
    assert read == NUM_FRAMES
    return read


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Stage:
    """`hcmi shards` as a separate process, on manifests written here."""

    def __init__(self, folder: Path, **changes):
        self.folder = folder
        text = shipped_params().read_text(encoding="utf-8")
        for key, value in {"size": SIZE, "num_frames": NUM_FRAMES, "quality": QUALITY, "max_skip_fraction": 0.5,
                           "num_workers": 0, **changes}.items():
            section = text.index("\nshards:")
            text = text[:section] + re.sub(rf"(\n  {key}:) \S+", rf"\1 {value}", text[section:], count=1)
        folder.mkdir(exist_ok=True)
        (folder / "params.yaml").write_text(text, encoding="utf-8")

    def clear(self) -> None:
        shutil.rmtree(self.folder / "shards", ignore_errors=True)

    def manifest(self, videos: list[Path]) -> None:
        clips = [Clip(path.stem, str(path), "train", ("a clip",), 0.0, 0.0, LENGTH / FPS,
                      hashlib.sha256(path.name.encode()).hexdigest(), {}) for path in videos]
        write_manifest(sorted(clips, key=lambda clip: clip.video_id), self.folder / "manifest.parquet")

    def run(self, verb: str = "shards", *more: str) -> dict:
        options = ["--manifest", str(self.folder / "manifest.parquet"), "--out", str(self.folder / "shards")]
        command = [sys.executable, "-c", PEAK, verb, "--params", str(self.folder / "params.yaml"), "--json"]
        done = subprocess.run([*command, *(more or options)], check=True, capture_output=True, text=True, cwd=ROOT)
        peak = int(re.findall(r"peak (\d+)", done.stderr)[-1])
        return {**json.loads(done.stdout), "peak_mb": peak / 1024}


def speed(folder: Path, videos: list[Path], rounds: int = 3) -> dict[str, float]:
    """Clips a second of the stage, the ideal loop and OpenCV, measured in turn."""
    stage = Stage(folder)
    stage.manifest(videos)
    times: dict[str, list[float]] = {"stage": [], "ideal": [], "opencv": []}
    some = videos[:max(4, len(videos) // 25)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(ideal, videos[:8])         # started and warm
        for _ in range(rounds):
            stage.clear()
            times["ideal"].append(seconds(lambda: sum(pool.imap_unordered(ideal, videos))) / len(videos))
            times["stage"].append(seconds(stage.run) / len(videos))
            times["opencv"].append(seconds(lambda: [opencv(path) for path in some]) / len(some))
    stage.clear()
    return {name: 1 / min(values) for name, values in times.items()}


def incremental(folder: Path, videos: list[Path], rounds: int = 3) -> tuple[float, float]:
    """Seconds for all but 1 %, and for the rest after it; the rest is removed again between rounds."""
    stage = Stage(folder)
    added = max(1, len(videos) // 101)
    without, more = [], []
    for _ in range(rounds):
        stage.manifest(videos[:-added])
        without.append(seconds(stage.run))
        stage.manifest(videos)
        start = time.perf_counter()
        assert stage.run()["decoded"] == added
        more.append(time.perf_counter() - start)
    stage.clear()
    return without[0], min(more)


def tarwriter_share(folder: Path, videos: list[Path], size: int, rounds: int = 5) -> float:
    """The part of the stage's CPU seconds that TarWriter takes."""
    stage = Stage(folder, size=size, num_frames=12)
    stage.manifest(videos)
    shares = []
    for _ in range(rounds):
        stage.clear()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        stage.run()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        stage_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        shares.append(write_again(folder / "shards", folder / "again.tar") / stage_seconds)
    stage.clear()
    return median(shares)


def write_again(shards: Path, path: Path) -> float:
    """CPU seconds for writing the members of all shards with TarWriter, one call a member as the stage does."""
    used = 0.0
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = [(*item.name.split(".", 1), tar.extractfile(item).read()) for item in tar]
        start = time.process_time()
        with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
            for key, ending, content in members:
                writer.write({"__key__": key, ending: content})
        used += time.process_time() - start
        assert path.read_bytes() == shard.read_bytes()
    return used


def faults(folder: Path, videos: list[Path], rounds: int = 3) -> tuple[float, float]:
    """Seconds for 180 good clips, and for those and 20 bad ones."""
    stage = Stage(folder, decode_timeout_s=1)
    bad = make_bad(folder / "bad", videos[0])
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for with_bad in times:
            stage.clear()
            stage.manifest([*videos[:180], *(bad if with_bad else [])])
            start = time.perf_counter()
            summary = stage.run()
            times[with_bad].append(time.perf_counter() - start)
            assert summary["num_clips"] == 180 + 6 * with_bad, summary
            assert sum(summary["skipped"].values()) == 14 * with_bad, summary
    stage.clear()
    return min(times[False]), min(times[True])


def million_clips(videos: list[Path], rows: int) -> Iterator[Clip]:
    """As many clips as rows, of the same few files, so that the time goes into rows."""
    for number in range(rows):
        video = videos[number % len(videos)]
        caption = f"caption number {number} of a clip that says some words"
        yield Clip(f"clip{number:07d}", str(video), "train", (caption,), 0.0, 0.0, 0.04,
                   hashlib.sha256(video.name.encode()).hexdigest(), {})


def memory(folder: Path, rows: int) -> tuple[float, float]:
    """Peak memory in MB of `hcmi dataset` on a captions file of `rows` rows, and of `hcmi shards` on as many clips."""
    stage = Stage(folder, size=16, num_frames=1, max_clips_per_shard=10_000)
    source = folder / "own"
    (source / "videos").mkdir(parents=True)
    first = write_video(source / "videos/v00000.mp4", 0, 1, 32, 32)
    for number in range(1, rows // 50):
        os.link(first, source / f"videos/v{number:05d}.mp4")
    with open(source / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption"])
        for number in range(rows):
            writer.writerow([f"v{number % (rows // 50):05d}.mp4", f"caption number {number} of a video in some words"])
    params = folder / "params.yaml"
    text = params.read_text(encoding="utf-8").replace("name: scenes", "name: folder", 1)
    params.write_text(text.replace("path: data/raw/scenes", f"path: {source}", 1), encoding="utf-8")
    outs = {name: str(folder / "made" / name) for name in ("manifest", "generated", "incoming")}
    dataset = stage.run("dataset", *(f"--{name}={path}" for name, path in outs.items()))["peak_mb"]
    videos = sorted((source / "videos").iterdir())[:500]
    write_manifest(million_clips(videos, rows), folder / "manifest.parquet")
    summary = stage.run()
    assert summary["num_clips"] == rows
    return dataset, summary["peak_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer clips and rows")
    quick = parser.parse_args().quick
    count, rows = (200, 50_000) if quick else (2020, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="hcmi-shards-") as name:
        folder = Path(name)
        videos = make_videos(folder / "videos", count, 20 if quick else 40)
        rate = speed(folder / "speed", videos[:count * 2 // 5])
        full, more = incremental(folder / "incremental", videos)
        good, with_bad = faults(folder / "faults", videos)
        short = make_videos(folder / "short", count // 10, 10, length=4 * FPS)
        shares = {f"tarwriter_share_{size}": tarwriter_share(folder / "tarwriter", short, size) for size in (64, 224)}
        dataset_mb, shards_mb = memory(folder / "memory", rows)
    figures = {"ideal_ratio": rate["stage"] / rate["ideal"], "opencv_ratio": rate["stage"] / rate["opencv"],
               "incremental_ratio": more / full, "faults_ratio": with_bad / good,
               **shares, "million_rows_memory_mb": None if quick else max(dataset_mb, shards_mb)}
    rates = {name: f"{value:.1f} clips/s" for name, value in rate.items()}
    print(table(["figure", "of", "over", "ratio", "target"], [
        ("ideal_ratio", rates["stage"], rates["ideal"], figures["ideal_ratio"], ">= 0.9"),
        ("opencv_ratio", rates["stage"], rates["opencv"], figures["opencv_ratio"], ">= 5"),
        ("incremental_ratio", f"{more:.2f} s", f"{full:.2f} s", figures["incremental_ratio"], "<= 0.03"),
        ("faults_ratio", f"{with_bad:.2f} s", f"{good:.2f} s", figures["faults_ratio"], "<= 1.3"),
        *((name, "TarWriter", "whole stage", share, "<= 0.1") for name, share in shares.items())]))
    print(f"memory at {rows:,} rows: dataset {dataset_mb:.0f} MB, shards {shards_mb:.0f} MB (target <= 1000 MB)")
    print(write_result("shards", figures, quick))


if __name__ == "__main__":
    main()
