"""The files that hold a training run while it is under way, and what is written when.

A run has a folder of its own in the folder of checkpoints, named by the hash of its data and parameters, so that no run
overwrites another one's. It holds the last two checkpoints, `step_00000120_best_0003.safetensors`, and the weights of
the best epoch that these two name, `best_0003.safetensors`. Each file appears whole, the weights before the checkpoint
that names them. A process that is killed at any moment therefore leaves a checkpoint with everything it needs.
"""

import hashlib
import json
import re
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from hcmi.config import ModelConfig, TrainConfig
from hcmi.errors import HcmiError, ModelError
from hcmi.model import HcmiModel
from hcmi.shards import TrainLoader
from hcmi.train.state import Progress, TrainingState, copied
from hcmi.train.state_file import read_state, write_state

CHECKPOINT_SECONDS = 300        # between two checkpoints within an epoch
MAX_SHARE = 0.02                # of the run's time that checkpoints may take
KEPT = 2
NAME = re.compile(r"step_(\d{8,})(?:_best_(\d{4,}))?\.safetensors")
# what may differ when a run is continued: it decides where and how fast the same is computed
ELSEWHERE = {"device", "num_workers", "num_processes", "micro_batch", "compile", "activation_checkpointing"}


def run_identity(shards_dir: str | Path, model_config: ModelConfig, config: TrainConfig, towers: str) -> str:
    """Hash of everything a checkpoint depends on: data, model and training parameters.

    `towers`: `towers_hash` of a pretrained backbone, because its folder may hold another one the next time; else empty.
    """
    index = hashlib.sha256((Path(shards_dir) / "index.parquet").read_bytes()).hexdigest()
    parts = [index, model_config.model_dump(), config.model_dump(exclude=ELSEWHERE), *filter(None, [towers])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run. Leaving the `with` block waits for the write that is in flight.

    Tensors are copied on the calling thread. A thread of its own writes the copies, one state at a time. What it raises
    is raised by the next call of any method.
    """

    def __init__(self, folder: str | Path, identity: str):
        self.folder, self.identity = Path(folder, identity[:12]), identity
        self.best: dict[str, Tensor] = {}       # weights of the best epoch so far, on the CPU
        self._best_on_disk = -1                 # the epoch whose weights this run has written or continued from
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        self._saved_at, self._cost = time.monotonic(), 0.0

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self.finish()
        except HcmiError:
            if kind is None:        # else the error that is under way is the one to report
                raise
        finally:
            self._writer.shutdown()

    def due(self, epoch_ends: bool = False) -> bool:
        """Whether to save now: at the end of an epoch or after some minutes, unless that takes too much of the time."""
        if self._writing is not None and self._writing.done():
            self.finish()
        waited = time.monotonic() - self._saved_at
        return waited >= self._cost / MAX_SHARE and (epoch_ends or waited > CHECKPOINT_SECONDS)

    def keep_best(self, model: HcmiModel) -> None:
        """Remember the weights; the next checkpoint writes them."""
        self.best = copied(model.state_dict())

    def save(self, model: HcmiModel, optimizers: Sequence[Optimizer], loader: TrainLoader, progress: Progress) -> None:
        """Write the state in the background, after the write before it has ended."""
        started = time.monotonic()
        self.finish()
        state = TrainingState.copy_of(model, optimizers, loader, progress)
        self._writing = self._writer.submit(self._write, state, progress.step, progress.best_epoch, self.best)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started

    def finish(self) -> None:
        """Wait until what was saved is on disk. Raises: MachineError when it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._cost += writing.result()

    def newest(self) -> TrainingState | None:
        """The state to continue from; None when this run has none. Its best weights are then in `best`.

        When the newest checkpoint is damaged, the one before it is taken, with a note.
        Raises: ModelError when there are checkpoints and none of them can be used.
        """
        names = self._names()
        if not names:
            self._note_other_runs()
            return None
        refused: list[ModelError] = []
        for name in names[:KEPT]:
            try:
                state = self._read(name)
            except ModelError as error:
                refused.append(error)
                continue
            if refused:
                warnings.warn(f"{refused[0]} Training continues from the checkpoint before it, {name}.", stacklevel=3)
            return state
        raise ModelError(f"{refused[0]} Remove the folder {self.folder} to train from the start.")

    def last_good(self, step: int) -> str:
        """The newest checkpoint on disk up to a step, for a message."""
        with suppress(HcmiError):
            self.finish()
        return next((str(self.folder / name) for name in self._past(step)), "none")

    def clear(self) -> None:
        """Remove what this run has written. Checkpoints go first, so that none is left without its best weights."""
        self.finish()
        for pattern in ("step_*", "best_*", ".*.tmp"):
            for path in sorted(self.folder.glob(pattern)):
                path.unlink(missing_ok=True)
        with suppress(OSError):     # there is none, or it holds a file of somebody else
            self.folder.rmdir()

    def _names(self) -> list[str]:
        """Of the checkpoints, newest first."""
        return sorted((path.name for path in self.folder.glob("step_*") if NAME.fullmatch(path.name)), key=_numbers,
                      reverse=True)

    def _best_file(self, epoch: int) -> Path:
        return self.folder / f"best_{epoch:04}.safetensors"

    def _read(self, name: str) -> TrainingState:
        tensors, values = read_state(self.folder / name)
        if values["identity"] != self.identity:
            raise ModelError(f"checkpoint {self.folder / name}: need one of these data and parameters, got one of "
                             f"others.")
        best_epoch = values["progress"]["best_epoch"]
        best: dict[str, Tensor] = {}
        if best_epoch >= 0:         # a lost one is found here, and not after the last epoch
            best, described = read_state(self._best_file(best_epoch))
            if described["identity"] != self.identity:
                raise ModelError(f"checkpoint {self._best_file(best_epoch)}: need weights of these data and "
                                 f"parameters, got those of others.")
        self.best, self._best_on_disk = best, best_epoch
        return TrainingState(str(self.folder / name), tensors, values)

    def _write(self, state: TrainingState, step: int, best_epoch: int, best: dict[str, Tensor]) -> float:
        """Runs in the thread. Returns the processor seconds it took; waiting for the disk does not hold up training."""
        started = time.thread_time()
        name = f"step_{step:08}"
        if best_epoch >= 0:
            name += f"_best_{best_epoch:04}"
            if best_epoch != self._best_on_disk:
                write_state(self._best_file(best_epoch), best, {"identity": self.identity})
                self._best_on_disk = best_epoch
        write_state(self.folder / f"{name}.safetensors", state.tensors, {**state.values, "identity": self.identity})
        self._remove_old(step)
        return time.thread_time() - started

    def _past(self, step: int) -> list[str]:
        """Checkpoints up to a step. A later one is damaged: this run has continued from one before it."""
        return [name for name in self._names() if _numbers(name)[0] <= step]

    def _remove_old(self, step: int) -> None:
        kept = self._past(step)[:KEPT]
        for name in set(self._names()) - set(kept):
            (self.folder / name).unlink(missing_ok=True)
        needed = {self._best_file(_numbers(name)[1]) for name in kept}
        for path in set(self.folder.glob("best_*")) - needed:
            path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.tmp"):     # of writers that were killed; this one has nothing open
            path.unlink(missing_ok=True)

    def _note_other_runs(self) -> None:
        place = self.folder.parent
        others = [path.parent.name for path in place.glob("*/step_*")]
        others += [name for name in ("last.pt",) if (place / name).exists()]
        if others:
            warnings.warn(f"{place}: need a checkpoint of these data and parameters ({self.folder.name}) to continue, "
                          f"got those of other runs: {', '.join(dict.fromkeys(others))}. Training starts from "
                          f"the beginning and leaves them alone. Remove them to free space.", stacklevel=4)


def _numbers(name: str) -> tuple[int, int]:
    """Step and best epoch in the name of a checkpoint; -1 when it has no best epoch."""
    found = NAME.fullmatch(name)
    assert found, f"{name} is not the name of a checkpoint"
    return int(found.group(1)), int(found.group(2) or -1)
