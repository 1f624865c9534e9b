"""Training on kept features of frozen towers, compared with training through the towers, on a CPU.

The checkpoint has the shape of CLIP ViT-B/32 and random weights; this script makes it. Steps are on random clips of 12
frames of 224 pixels and one caption each, with the loss and the optimiser of training. Times are processor seconds of
one thread, which other work on the machine disturbs little. A step of a whole batch through the towers takes minutes.
Its time is put together: that of a small batch, and what the head takes more in the large one.

- `ratio`: time of a clip in an epoch through the frozen towers over that from kept features, at `batch_size`;
  `ratio_of_pairs`: the least and the largest of the pairs
- `through_towers_s`, `kept_s`: seconds a clip, medians; `kept_small_s`: the latter in the small batch
- `read_ms`: milliseconds to read the kept features of a clip, which `kept_s` contains
- `kept_kb_per_clip`: disk space of the features of 24 frames and a caption

    python benchmarks/kept_features.py [--quick] [--batch-size N] [--small N] [--pairs N] [--precision NAME]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import shipped_params, table, write_result
from zero_shot import save_checkpoint

NUM_FRAMES, STORED, SIZE, WORDS, CLIPS = 12, 24, 224, 32, 2
TEXT = "a man rides a horse"


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
        found.append(Clip(path.stem, str(path), "train", (TEXT,), 0.0, 2.0, 2.0,
                          hashlib.sha256(path.read_bytes()).hexdigest(), {}))
    write_manifest(found, folder / "manifest.parquet")
    config = load_params(shipped_params()).shards
    write_shards(manifest_path=folder / "manifest.parquet", out_dir=folder / "shards",
                 config=config.model_copy(update={"size": SIZE, "num_frames": STORED}))
    return folder / "shards"


def step_seconds(model, slots: tuple[int, ...], clips: int, config, precision: str) -> float:
    """Processor seconds a clip of a step on random frames, or on random features where `slots` are their bytes."""
    import torch

    from hcmi.shards import TrainBatch
    from hcmi.train import training_step
    from hcmi.train.tower_training import optimizers_of

    numbers = (clips, NUM_FRAMES, *slots)
    frames = (torch.randn(*numbers[:-1], slots[0] // 2).half().view(torch.uint8) if len(slots) == 1 else
              torch.randint(0, 256, numbers, dtype=torch.uint8))
    batch = TrainBatch(list(range(clips)), [[TEXT] * clips], frames,
                       torch.ones(clips, NUM_FRAMES, dtype=torch.bool))
    optimizers = optimizers_of(model, config)
    model.train()
    training_step(model, optimizers, batch, config, "off", precision)       # the first makes what later ones use again
    started = time.process_time()
    training_step(model, optimizers, batch, config, "off", precision)
    return (time.process_time() - started) / clips


def measure(root: Path, batch_size: int, small: int, pairs: int, precision: str) -> dict:
    import torch

    from hcmi.config import load_params
    from hcmi.model import new_retriever
    from hcmi.runtime import pick_precision, tune_allocator
    from hcmi.shards import ShardReader
    from hcmi.train.feature_files import features_folder
    from hcmi.train.kept_features import keep_features

    tune_allocator()
    torch.set_num_threads(1)
    params = load_params(shipped_params())
    precision = pick_precision(precision, torch.device("cpu"))
    config = params.train.model_copy(update={"towers": "frozen", "lr": 1e-4, "captions_per_clip": 1,
                                             "optimizer": "adamw"})
    section = params.model.model_copy(update={"backbone": str(root / "clip"), "num_words": WORDS,
                                              "num_frames": NUM_FRAMES})
    save_checkpoint(root / "clip")
    reader = ShardReader(make_shards(root, CLIPS), "train")
    torch.manual_seed(0)
    model = new_retriever(section, SIZE, [])
    head, (kept,) = keep_features(model, [reader], precision)
    size_bytes = sum(path.stat().st_size for path in features_folder().glob("*.npy"))
    place = np.empty((NUM_FRAMES, *kept.frame_shape), np.uint8)
    started = time.process_time()
    for number in range(1000):
        kept.read_into(number % CLIPS, range(0, STORED, STORED // NUM_FRAMES), place)
    read_s = (time.process_time() - started) / 1000
    found = []
    for _ in range(pairs):
        of_small, of_large = (read_s + step_seconds(head, kept.frame_shape, clips, config, precision)
                              for clips in (small, batch_size))
        through = step_seconds(model, reader.frame_shape, small, config, precision) - of_small + of_large
        found.append((through, of_large, of_small))
    ratios = [through / of_large for through, of_large, _ in found]
    medians = [statistics.median(times) for times in zip(*found, strict=True)]
    return {"batch_size": batch_size, "small": small, "bfloat16": int(precision == "bfloat16"), "pairs": pairs,
            "ratio": statistics.median(ratios), "ratio_of_pairs": (min(ratios), max(ratios)),
            "through_towers_s": medians[0], "kept_s": medians[1], "kept_small_s": medians[2], "read_ms": 1000 * read_s,
            "kept_kb_per_clip": size_bytes / CLIPS / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--small", type=int, default=4, help="clips of the step through the towers")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HCMI_CACHE"] = str(Path(place, "cache"))
        figures = measure(Path(place), options.batch_size, options.small, 1 if options.quick else options.pairs,
                          options.precision)
    print(table(["figure", "value"], figures.items()))
    print(write_result("kept_features", figures, options.quick))


if __name__ == "__main__":
    main()
