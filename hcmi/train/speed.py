"""How fast training runs. These figures differ between equal runs, so no output that DVC compares may hold them."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from hcmi.files import atomic_file

Item = TypeVar("Item")
FIGURES = ("train/seconds", "train/clips_per_second", "train/waiting", "train/memory_mb", "train/share_of_peak")
FILE = "speed.tsv"


class Speed:
    """The clock of one epoch. `most`: clips a second that the device's arithmetic would allow."""

    def __init__(self, device: torch.device, most: float):
        self._device, self._started, self._waited, self._clips = device, time.monotonic(), 0.0, 0
        self._most = most

    def waiting_for(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches; the time until each is there counts as waiting."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - asked
            yield batch

    def count(self, clips: int) -> None:
        """Add the clips of a step, those of all ranks."""
        self._clips += clips

    def figures(self) -> dict[str, float]:
        """`train/seconds` so far, `train/clips_per_second`, `train/waiting` (share of the time), `train/memory_mb`, the
        most that this process has taken (on a GPU of its memory, else of the machine's), and `train/share_of_peak`."""
        seconds = time.monotonic() - self._started
        rate = self._clips / seconds
        return dict(zip(FIGURES, (seconds, rate, self._waited / seconds, _peak_mb(self._device), rate / self._most),
                        strict=True))


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def write_speed(folder: str | Path, history: Sequence[dict]) -> None:
    """A table beside DVC's outputs: the figures of each epoch."""
    lines = ["\t".join(["epoch", *(name.removeprefix("train/") for name in FIGURES)])]
    lines += ["\t".join([str(row["epoch"] + 1), *(f"{row[name]:.4g}" if name in row else "" for name in FIGURES)])
              for row in history]
    with atomic_file(Path(folder, FILE)) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def epoch_line(row: dict, epochs: int) -> str:
    """What a person wants to know of an epoch that has ended, in one line."""
    waiting = f", {row['train/waiting']:.0%} of the time waiting for data" if row["train/waiting"] > 0.02 else ""
    return (f"epoch {row['epoch'] + 1} of {epochs}: loss {row['train/loss']:.3f}, validation R@1 {row['val/R@1']:.1f} "
            f"% text to video, {row['val/v2t_R@1']:.1f} % video to text; {row['train/clips_per_second']:.0f} clips/s"
            f"{waiting}")
