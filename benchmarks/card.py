"""What training and encoding reach on a GPU, for train_step.py: shares of its matrix peak, and clips a second.

Needs torch with Triton, transformers, pandas, pillow, pyarrow, webdataset, simplejpeg, pydantic, ruamel.yaml and tqdm,
and no video decoder: clips are random pictures. CLIP has the shape of ViT-B/32 or B/16 and random weights.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from common import shipped_params
from kernel import seconds
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
BATCH, FRAMES, WORDS, PIXELS, QUALITY = 128, 12, 32, 224, 90
NAMES = ("red", "green", "blue", "old", "new", "fast", "slow", "man", "dog", "cat", "car", "tree", "runs", "eats")
# What hcmi imports and this script does not use. Where one is missing, an empty module stands for it.
UNUSED = ("av", "dvclive", "matplotlib")


class StandIn(ModuleType):
    """Has every name: each is a new class, of which nothing is made here."""

    __path__: list[str] = []        # noqa: RUF012 a package: it has modules as well

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


class StandInFinder:
    """The last finder that is asked, so a package that is installed is found before."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, StandInFinder, is_package=True) if name.partition(".")[0] in UNUSED else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        pass


def card_figures(quick: bool, device_name: str = "cuda", pixels: int = PIXELS, batch: int = BATCH,
                 layers: int = 12) -> dict[str, float]:
    """All figures; other sizes are for a try without a GPU."""
    sys.path.insert(0, str(ROOT))
    sys.meta_path.append(StandInFinder)
    device, steps = torch.device(device_name), 10 if quick else 30
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="hcmi-card-") as work:
        shards = write_shards(Path(work), {"train": (2 if quick else 8) * batch}, pixels)
        for patch in (32, 16):
            model = clip_shaped(patch, device, pixels, layers)
            found = {f"{name}_b{patch}": value
                     for name, value in training(model, shards, device, steps, batch, patch == 32).items()}
            if patch == 32:
                found |= encoding(model, shards)
            print(found, file=sys.stderr, flush=True)       # if a time limit ends the script, these are known
            figures |= found
            del model
            torch.cuda.empty_cache()
    names = {"share_b32": "gpu_share_b32", "share_b16": "gpu_share_b16", "data_ratio_b32": "gpu_data_ratio"}
    return {names.get(name, f"gpu_{name}" if name != "encode_speedup" else name): value
            for name, value in figures.items()}


def captions(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(NAMES, WORDS - 2)) for _ in range(count)]


def clip_shaped(patch: int, device: torch.device, pixels: int, layers: int) -> Any:
    """A retriever with the parameters of params.yaml around a CLIP of that patch size."""
    from transformers import CLIPConfig

    from hcmi.config import load_params
    from hcmi.model import HcmiModel, multiply_patches
    from hcmi.model.modeling import HcmiConfig
    from hcmi.model.processor import HcmiProcessor

    section = load_params(shipped_params()).model
    towers = CLIPConfig(vision_config={"patch_size": patch, "image_size": pixels, "num_hidden_layers": layers},
                        text_config={"num_hidden_layers": layers, "vocab_size": 1000, "bos_token_id": 1,
                                     "eos_token_id": 2}, projection_dim=512)
    options = section.model_dump(exclude={"scratch"}) | {"backbone": "as if pretrained", "num_frames": FRAMES,
                                                         "num_words": WORDS}
    model = HcmiModel(HcmiConfig(towers=towers.to_dict(), **options)).train()
    model.processor = HcmiProcessor.from_captions(captions(100), 1000, WORDS, pixels)
    if device.type == "cuda":
        multiply_patches(model)
    return nn.Module.to(model, device)


def write_shards(folder: Path, splits: dict[str, int], pixels: int, num_captions: int = 1) -> Path:
    """Shards of random pictures, about 20 kB a frame at 224 pixels, with so many clips in each split."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import simplejpeg

    from hcmi.shards.existing_shards import ExistingShards
    from hcmi.shards.shard_file import ShardEntry, write_shard
    from hcmi.types import Clip
    from hcmi.video import Decoded

    generator, size = np.random.default_rng(0), (pixels // 4, pixels // 4, 3)

    def frames() -> Any:
        blocks = generator.integers(0, 256, (FRAMES, *size), np.uint8).repeat(4, 1).repeat(4, 2)
        jpegs = tuple(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), QUALITY) for frame in blocks)
        return Decoded(jpegs, tuple(map(float, range(FRAMES))), "none", FRAMES, pixels, pixels)

    tables = []
    for split, clips in splits.items():
        for start in range(0, clips, 256):
            names = [f"{split}{row}" for row in range(start, min(start + 256, clips))]
            texts = captions(len(names) * num_captions, start)
            entries = [ShardEntry(Clip(name, f"{name}.mp4", split, tuple(texts[row::len(names)]), 0.0, 1.0, 1.0,
                                       name, {}), name, frames) for row, name in enumerate(names)]
            tables.append(write_shard(folder / f"{split}-{start // 256:06d}.tar", entries,
                                      ExistingShards(folder / "none")))
    pq.write_table(pa.concat_tables(tables), folder / "index.parquet")
    return folder


def training(model: Any, shards: Path, device: torch.device, steps: int, batch_size: int, streamed: bool
             ) -> dict[str, float]:
    """Of a step on data in the GPU's memory: share of the matrix peak, clips/s; if `streamed`, shards over that."""
    from hcmi.config import load_params
    from hcmi.runtime import count_workers, pick_precision
    from hcmi.shards import ShardReader, TrainLoader
    from hcmi.train.optimizers import make_optimizers
    from hcmi.train.parts import Parts
    from hcmi.train.peak import matrix_peak, operations
    from hcmi.train.readback import Readback
    from hcmi.train.step import batch_loss, training_step

    config = load_params(shipped_params()).train
    precision, optimizers, readback = pick_precision("auto", device), make_optimizers(model, config), Readback()
    loader = TrainLoader(ShardReader(shards, "train"), batch_size, FRAMES, num_workers=count_workers("auto", device),
                         device=device)
    batch = next(iter(loader))
    step = operations(lambda: batch_loss(model, batch, config, "off", precision)[0].backward())
    parts = Parts.of(model)
    parts = parts.compiled() if device.type == "cuda" else parts

    def run(batches: Iterator[Any]) -> float:
        """Seconds a step."""
        started, number = time.perf_counter(), 0
        for number, each in enumerate(batches, 1):      # noqa: B007
            readback.add(training_step(model, optimizers, each, config, "off", precision, parts=parts))
        readback.rest()
        return (time.perf_counter() - started) / number

    run(iter([batch] * 5))
    before = matrix_peak(device, "bfloat16")
    in_memory = run(iter([batch] * steps))
    peak = (before + matrix_peak(device, "bfloat16")) / 2
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    figures = {"share": step / in_memory / peak, "clips_per_second": batch_size / in_memory,
               "memory_mb": memory, "tflop": step / 1e12, "peak_tflops": peak / 1e12}
    if not streamed:
        return figures
    epochs = max(1, steps // len(loader))

    def from_shards() -> Iterator[Any]:
        for _ in range(epochs):
            yield from loader

    run(iter(from_shards()))        # starts the workers
    from_disk, alone = run(from_shards()), seconds(lambda: sum(1 for _ in from_shards())) / (epochs * len(loader))
    return figures | {"data_ratio": in_memory / from_disk, "loader_clips_per_second": batch_size / alone}


def encoding(model: Any, shards: Path) -> dict[str, float]:
    """Clips/s of `encode_videos`, and over the plain way: decode in this thread, then towers in float32."""
    from hcmi.model import encode_videos
    from hcmi.shards import ShardReader, eval_batches

    reader = ShardReader(shards, "train")
    model.eval()

    clips = min(64, len(reader))

    @torch.inference_mode()
    def plainly() -> None:
        frames = np.stack([reader.frames(row, range(FRAMES)) for row in range(clips)])
        pixels = model.processor.frames(torch.from_numpy(frames).to(model.device))
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=model.device)
        model.encode_videos(pixels, mask).to("cpu")

    def whole() -> None:
        encode_videos(model, eval_batches(reader, 64, FRAMES), len(reader))

    plainly()
    plain = clips / min(seconds(plainly) for _ in range(3))
    whole()
    rate = len(reader) / seconds(whole)
    model.train()
    return {"encode_clips_per_second": rate, "encode_plain_clips_per_second": plain, "encode_speedup": rate / plain}
