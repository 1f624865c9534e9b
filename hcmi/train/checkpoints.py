"""The files that hold a training run while it is under way.

`last.pt` is what an interrupted run continues from; `best.pt` holds the weights of the best epoch so far.
"""

import hashlib
import json
import pickle
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from hcmi.config import ModelConfig, TrainConfig
from hcmi.errors import ModelError
from hcmi.files import atomic_file
from hcmi.model import HcmiModel
from hcmi.shards import TrainLoader
from hcmi.train.state import Progress

CHECKPOINT_SECONDS = 300        # between two checkpoints within an epoch
FORMAT = 3                      # of last.pt; raise it when what it holds, or how the loader stores its state, changes
NEXT_STEP = "Remove last.pt and best.pt to train from the start."
OTHER_VERSION = f"Another version of hcmi wrote it. {NEXT_STEP}"


def run_identity(shards_dir: str | Path, model_config: ModelConfig, config: TrainConfig) -> str:
    """Hash of everything a checkpoint depends on: data, model and training parameters."""
    index = hashlib.sha256((Path(shards_dir) / "index.parquet").read_bytes()).hexdigest()
    where = {"device", "num_workers"}       # may differ when the run is continued
    parts = [index, model_config.model_dump(), config.model_dump(exclude=where)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """`last.pt` and `best.pt` in a folder outside the pipeline's outputs. Each is replaced as a whole."""

    def __init__(self, folder: str | Path, identity: str):
        self.last, self.best = Path(folder, "last.pt"), Path(folder, "best.pt")
        self.identity = identity
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def save(self, model: HcmiModel, optimizers: Sequence[Optimizer], loader: TrainLoader, progress: Progress) -> None:
        state = {"format": FORMAT, "identity": self.identity, "model": model.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                 "loader": loader.state_dict(), "progress": vars(progress)}
        _save(state, self.last)
        self.saved_at = time.monotonic()

    def save_best(self, model: HcmiModel) -> None:
        _save(model.state_dict(), self.best)

    def restore(self, model: HcmiModel, optimizers: Sequence[Optimizer], loader: TrainLoader,
                progress: Progress) -> bool:
        """Load `last.pt` and return True; False when there is none, or it is of other data or parameters.

        Raises: ModelError when it is damaged, was written by another version of hcmi, or `best.pt` is damaged or lost.
        """
        if not self.last.exists():
            return False
        state = _load(self.last)
        if state.get("identity") != self.identity:
            return False
        if state.get("format") != FORMAT:
            raise ModelError(f"checkpoint {self.last}: need format {FORMAT}, got {state.get('format', 1)}. "
                             f"{OTHER_VERSION}")
        _check_shapes(self.last, model.state_dict(), state["model"])
        if state["progress"]["best_epoch"] >= 0:
            self._best_weights(model)       # a lost one is found here, and not after the last epoch
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        loader.load_state_dict(state["loader"])
        vars(progress).update(state["progress"])
        return True

    def load_best(self, model: HcmiModel) -> None:
        model.load_state_dict(self._best_weights(model))

    def _best_weights(self, model: HcmiModel) -> dict[str, Tensor]:
        weights = _load(self.best)
        _check_shapes(self.best, model.state_dict(), weights)
        return weights

    def clear(self) -> None:
        for path in (self.last, self.best):
            path.unlink(missing_ok=True)


def _check_shapes(path: Path, needed: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    for name in sorted(needed.keys() | saved.keys()):
        need, got = (tuple(state[name].shape) if name in state else None for state in (needed, saved))
        if need != got:
            raise ModelError(f"checkpoint {path}, tensor {name}: need shape {need}, got {got}. {OTHER_VERSION}")


def _save(state: dict, path: Path) -> None:
    with atomic_file(path) as temporary, open(temporary, "wb") as file:     # given a path, torch hides what failed
        torch.save(state, file)


def _load(path: Path) -> dict:
    """What `_save` wrote. Raises: ModelError when the file is missing, damaged or something else."""
    found: object = "another or a damaged file" if path.exists() else "no such file"
    if zipfile.is_zipfile(path):        # torch reads anything else as a bare pickle, which can raise any error
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError) as error:
            found = " ".join(str(error).split())[:200]
    if not isinstance(found, dict):
        raise ModelError(f"checkpoint {path}: need a file that `hcmi train` wrote, got: {found}. {NEXT_STEP}")
    return found
