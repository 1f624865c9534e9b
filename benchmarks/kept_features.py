"""Training on kept features of frozen towers, compared with training through the towers.

The checkpoint has the shape of CLIP ViT-B/32 and random weights; this script makes it, and shards of random films of
224 pixels. The training loader reads an epoch as pixels, which pass the frozen towers in every step, and as features,
which `train.towers: frozen` computes once. Both have the same batches, loss and optimisers.

- `ratio`: seconds of an epoch through the towers over those of an epoch from kept features; `ratio_of_pairs`: the least
  and the largest of the pairs
- `through_towers_s`, `kept_s`: seconds a clip, medians; `once_s`: seconds a clip to compute what is kept
- `kept_mb_per_clip`: disk space of the features of a clip's stored frames and captions
- `validation_ratio`: the same ratio for encoding a split for validation

    python benchmarks/kept_features.py [--quick] [--clips N] [--pairs N]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import table, write_result
from zero_shot import save_checkpoint

NUM_FRAMES, STORED, SIZE, WORDS, CAPTIONS = 12, 24, 224, 32, 1
TEXTS = ("a man rides a horse", "two people cook", "a dog runs on a beach", "a car drives through a city at night")


def write_film(path: Path, number: int) -> Path:
    """Two seconds of random blocks, different ones for each number."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=12)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for blocks in np.random.default_rng(number).integers(0, 256, (2 * 12, 7, 7, 3), dtype=np.uint8):
            picture = blocks.repeat(SIZE // 7, 0).repeat(SIZE // 7, 1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def make_shards(folder: Path, clips: int) -> Path:
    """Shards of such films, made by the stage."""
    import hashlib

    from hcmi.config import load_params
    from hcmi.dataset import write_manifest
    from hcmi.shards import write_shards
    from hcmi.types import Clip

    found = []
    for number in range(clips):
        path = write_film(folder / f"film_{number:05}.mp4", number)
        found.append(Clip(path.stem, str(path), "train", (TEXTS[number % len(TEXTS)] + f" {number}",), 0.0, 2.0, 2.0,
                          hashlib.sha256(path.read_bytes()).hexdigest(), {}))
    write_manifest(found, folder / "manifest.parquet")
    config = load_params(Path(__file__).resolve().parents[1] / "params.yaml").shards
    write_shards(manifest_path=folder / "manifest.parquet", out_dir=folder / "shards",
                 config=config.model_copy(update={"size": SIZE, "num_frames": STORED}))
    return folder / "shards"


def epoch_seconds(model, reader, config, precision: str) -> float:
    """Seconds of one epoch's steps, a clip."""
    from hcmi.shards import TrainLoader
    from hcmi.train import training_step
    from hcmi.train.tower_training import optimizers_of

    optimizers = optimizers_of(model, config)
    loader = TrainLoader(reader, config.batch_size, NUM_FRAMES, num_workers=0, num_captions=CAPTIONS)
    model.train()
    started = time.perf_counter()
    clips = 0
    for batch in loader:
        training_step(model, optimizers, batch, config, "off", precision)
        clips += len(batch.rows)
    return (time.perf_counter() - started) / clips


def seconds_of(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(root: Path, clips: int, pairs: int) -> dict:
    import torch

    from hcmi.config import load_params
    from hcmi.evaluate import encode_split
    from hcmi.model import new_retriever
    from hcmi.runtime import pick_precision, tune_allocator
    from hcmi.shards import ShardReader
    from hcmi.train.feature_files import features_folder
    from hcmi.train.kept_features import encode_clips, keep_features

    tune_allocator()
    params = load_params(Path(__file__).resolve().parents[1] / "params.yaml")
    precision = pick_precision("auto", torch.device("cpu"))
    config = params.train.model_copy(update={"towers": "frozen", "batch_size": min(32, clips), "lr": 1e-4,
                                             "captions_per_clip": CAPTIONS, "optimizer": "adamw"})
    section = params.model.model_copy(update={"backbone": str(root / "clip"), "num_words": WORDS,
                                              "num_frames": NUM_FRAMES})
    save_checkpoint(root / "clip")
    reader = ShardReader(make_shards(root, clips), "train")
    torch.manual_seed(0)
    model = new_retriever(section, SIZE, [])
    made = []
    once_s = seconds_of(lambda: made.append(keep_features(model, [reader], precision))) / clips
    head, (kept,) = made[0]
    size_bytes = sum(path.stat().st_size for path in features_folder().glob("*.npy"))
    epoch_seconds(head, kept, config, precision)        # the first epoch warms up
    found = [(epoch_seconds(model, reader, config, precision),
              statistics.median(epoch_seconds(head, kept, config, precision) for _ in range(5))) for _ in range(pairs)]
    model.eval()
    whole_s = seconds_of(lambda: encode_split(model, reader, 32))
    from_kept_s = min(seconds_of(lambda: encode_clips(head.eval(), kept)) for _ in range(3))
    ratios = [through / of_kept for through, of_kept in found]
    return {"clips": clips, "pairs": pairs, "ratio": statistics.median(ratios),
            "ratio_of_pairs": (min(ratios), max(ratios)),
            "through_towers_s": statistics.median(through for through, _ in found),
            "kept_s": statistics.median(of_kept for _, of_kept in found), "once_s": once_s,
            "kept_mb_per_clip": size_bytes / clips / 1e6, "validation_ratio": whole_s / from_kept_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of 8 clips")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HCMI_CACHE"] = str(Path(place, "cache"))
        figures = measure(Path(place), 8 if options.quick else options.clips, 1 if options.quick else options.pairs)
    print(table(["figure", "value"], figures.items()))
    print(write_result("kept_features", figures, options.quick))


if __name__ == "__main__":
    main()
