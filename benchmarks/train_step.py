"""How close a training run comes to the arithmetic of its steps.

    python benchmarks/train_step.py [--device cpu|cuda] [--quick]

On a CPU, parameters of params.yaml, batches of 64 clips of random pictures, one thread unless said otherwise. Each
figure is the median of ratios of runs that took turns; `cpu`: of CPU seconds of the process, which other work on the
machine changes little; `wall`: of wall seconds, which it changes.

- engine_ratio (cpu): the training loop over a bare loop of the same forward and backward pass and update.
- data_ratio (wall): the loop on data in memory, over the same loop from shards with one loader process.
- gradcache_time_ratio (cpu), gradcache_memory_ratio: micro-batches of 32 clips over the whole batch of 512, which needs
  8 GB; memory is what a process takes beyond the model and data, so its small constant parts count too.
- ranks2_ratio (wall): clips/s of two processes with a thread each over those of one process with two threads.
- checkpoint_share: of the time of a short run, what its checkpoints took.
- features_speedup: not measured here.

On a GPU, see card.py: gpu_share_*: share of the measured matrix peak; gpu_data_ratio: as data_ratio, on the GPU;
encode_speedup: encoding over decoding and encoding by turns in float32. They are in train_step_cuda.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import card_figures, write_shards
from common import shipped_params, table, write_result

ROOT = Path(__file__).resolve().parents[1]
ON_CPU = ("engine_ratio", "data_ratio", "gradcache_time_ratio", "gradcache_memory_ratio", "checkpoint_share",
          "ranks2_ratio", "features_speedup")
ON_GPU = ("gpu_share_b32", "gpu_share_b16", "gpu_data_ratio", "encode_speedup")
MICRO_BATCH, BATCH, SIZE, CAPTIONS = 32, 512, 64, 6


class InMemory:
    """Stands for a loader: the same batches again and again."""

    epoch, batch, world_size = 0, 1, 1

    def __init__(self, reader: Any, batches: list[Any], steps: int):
        self.reader, self.batches, self.steps, self.batch_size = reader, batches, steps, len(batches[0].rows)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return (self.batches[number % len(self.batches)] for number in range(self.steps))


@dataclass(frozen=True)
class Loops:
    """A model with its optimisers, and the loops over batches that are compared."""

    model: Any
    optimizers: Any
    config: Any
    precision: str
    loader: Any
    batches: list[Any]

    @classmethod
    def over(cls, shards: Path) -> "Loops":
        """With the parameters of params.yaml."""
        from hcmi.config import load_params
        from hcmi.runtime import pick_precision
        from hcmi.shards import ShardReader, TrainLoader
        from hcmi.train.optimizers import make_optimizers
        from hcmi.train.preflight import RunData, model_of_run

        params, device = load_params(shipped_params()), torch.device("cpu")
        config, reader = params.train.model_copy(update={"micro_batch": 0}), ShardReader(shards, "train")
        loader = TrainLoader(reader, config.batch_size, params.model.num_frames, num_workers=1,
                             num_captions=config.captions_per_clip)
        model = model_of_run(RunData.of([reader]), params.model, config, device).train()
        return cls(model, make_optimizers(model, config), config, pick_precision("auto", device), loader,
                   [batch for batch, _ in zip(loader, range(2), strict=False)])

    def bare(self, steps: int) -> None:
        """Forward pass, loss, backward pass and update, and nothing else."""
        from hcmi.model import bucketed_similarities
        from hcmi.train.objective import total_loss

        model = self.model
        for number in range(steps):
            batch = self.batches[number % len(self.batches)]
            ids_QW, mask_QW = model.processor.texts([text for texts in batch.captions for text in texts])
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
                videos = model.encode_videos(model.processor.frames(batch.frames_BTHXC), batch.frame_mask_BT)
                levels, sentence_QD = bucketed_similarities(model, ids_QW, mask_QW, videos)
            total, _ = total_loss(model, levels, sentence_QD, self.config, None, "off")
            model.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
            for optimizer in self.optimizers:
                optimizer.step()

    def in_memory(self, steps: int) -> None:
        """The training loop, given batches that are there."""
        self._engine(InMemory(self.loader.reader, self.batches, steps))

    def from_shards(self) -> None:
        """The training loop, given an epoch of the loader."""
        self.loader.epoch = 0
        self._engine(self.loader)

    def _engine(self, given: Any) -> None:
        from hcmi.progress import track
        from hcmi.ranks import ALONE
        from hcmi.train import stage
        from hcmi.train.checkpoints import Checkpoints
        from hcmi.train.state import Progress

        with (tempfile.TemporaryDirectory() as folder, Checkpoints(folder, "none") as checkpoints,
              track(description="train", total=len(given), unit="step", shown=False) as bar):
            progress = Progress.start(len(given.reader), self.model.head.dim)
            run = stage.Run(self.model, self.optimizers, given, progress, checkpoints, self.config, self.precision,
                            None, 0, ALONE, 1.0)
            stage.train_epoch(run, 0, bar)


def compared(shards: Path, steps: int, rounds: int) -> dict[str, float]:
    """The figures of loops that take turns."""
    loops = Loops.over(shards)
    return {"engine_ratio": turns(lambda: loops.in_memory(steps), lambda: loops.bare(steps), rounds, time.process_time),
            "data_ratio": turns(lambda: loops.in_memory(len(loops.loader)), loops.from_shards, rounds,
                                time.perf_counter)}


def turns(one: Callable[[], None], other: Callable[[], None], rounds: int, clock: Callable[[], float]) -> float:
    """Median of the ratios of what `one` and `other` take, after one round that is not counted."""
    ratios = []
    for number in range(rounds + 1):
        taken = []
        for work in (one, other) if number % 2 else (other, one):
            started = clock()
            work()
            taken.append(clock() - started)
        ratios.append(taken[0] / taken[1] if number % 2 else taken[1] / taken[0])
    return float(np.median(ratios[1:]))


def gradcache(rounds: int, quick: bool) -> dict[str, float]:
    """A step in micro-batches over one of the whole batch: ratios of CPU seconds and of memory."""
    micro_batch, batch = (str(size // 8 if quick else size) for size in (MICRO_BATCH, BATCH))
    ratios: dict[str, list[float]] = {"seconds": [], "peak_mb": []}
    for _ in range(rounds):
        pair = []
        for part in (micro_batch, "0"):
            done = subprocess.run([sys.executable, str(Path(__file__).with_name("step.py")), "hcmi", "cpu", "small",
                                   part, batch], check=True, capture_output=True, text=True)
            pair.append(json.loads(done.stdout.splitlines()[-1]))
        for name, values in ratios.items():
            values.append(pair[0][name] / pair[1][name])
    return {"gradcache_time_ratio": float(np.median(ratios["seconds"])),
            "gradcache_memory_ratio": float(np.median(ratios["peak_mb"]))}


def whole_runs(shards: Path, work: Path, epochs: int, rounds: int) -> dict[str, float]:
    """Two ranks over one process, and the share of checkpoints in the latter's time."""
    from hcmi.config import load_params
    from hcmi.train import train
    from hcmi.train.checkpoints import Checkpoints

    params, spent = load_params(shipped_params()), [0.0]
    save, write = Checkpoints.save, Checkpoints._write

    def timed_save(*arguments: Any) -> None:
        started = time.perf_counter()
        save(*arguments)
        spent[0] += time.perf_counter() - started

    def timed_write(*arguments: Any) -> float:
        taken = write(*arguments)
        spent[0] += taken
        return taken

    def clips_per_second(processes: int, name: str) -> tuple[float, float]:
        folder = work / name
        config = params.train.model_copy(update={"epochs": epochs, "num_processes": processes, "num_workers": 1})
        started = time.perf_counter()
        train(shards_dir=shards, model_dir=folder / "model", metrics_dir=folder, checkpoint_dir=folder / "checkpoints",
              model_config=params.model, config=config)
        rows = [line.split("\t") for line in (folder / "speed.tsv").read_text().splitlines()]
        at = rows[0].index("clips_per_second")
        return float(np.median([float(row[at]) for row in rows[1:]])), time.perf_counter() - started

    ratios, shares = [], []
    torch.set_num_threads(2)
    for number in range(rounds):
        Checkpoints.save, Checkpoints._write, spent[0] = timed_save, timed_write, 0.0  # type: ignore[method-assign]
        alone, seconds = clips_per_second(1, f"one{number}")
        Checkpoints.save, Checkpoints._write = save, write  # type: ignore[method-assign]
        shares.append(spent[0] / seconds)
        ratios.append(clips_per_second(2, f"two{number}")[0] / alone)
    return {"ranks2_ratio": float(np.median(ratios)), "checkpoint_share": float(np.median(shares))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds")
    options = parser.parse_args()
    figures: dict[str, Any] = dict.fromkeys(ON_CPU + ON_GPU if options.device == "cpu" else ON_GPU)
    if options.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("benchmarks/train_step.py: need a CUDA device for --device cuda, got none. Run it on a machine "
                     "with a GPU.")
        figures |= card_figures(options.quick)
    else:
        steps, rounds = (2, 1) if options.quick else (4, 5)
        with tempfile.TemporaryDirectory(prefix="hcmi-train-step-") as work:
            torch.set_num_threads(1)
            shards = Path(work, "shards")
            shards.mkdir()
            write_shards(shards, {"train": 256 if options.quick else 512, "val": 50}, SIZE, CAPTIONS)
            figures |= compared(shards, steps, rounds)
            figures |= gradcache(1 if options.quick else 2, options.quick)
            figures |= whole_runs(shards, Path(work), 1 if options.quick else 2, 1 if options.quick else 2)
    rows = [(name, "not measured" if value is None else value) for name, value in figures.items()]
    print(table(["figure", "value"], rows))
    print(write_result("train_step" if options.device == "cpu" else "train_step_cuda", figures, options.quick))


if __name__ == "__main__":
    main()
