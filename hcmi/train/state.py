"""What a training run is made of beside its parameters: its progress, and the state that a checkpoint holds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hcmi.errors import ModelError
from hcmi.model import HcmiModel
from hcmi.shards import TrainLoader
from hcmi.train.denoising import denoising_figures, precision_and_recall


@dataclass(frozen=True)
class StepResult:
    """What one training step gives for the clips of the global batch. Tensors are on the model's device."""

    rows: list[int]                     # the clips
    figures: dict[str, Tensor]          # for the log: the loss, its terms and others; scalars
    video_BD: Tensor                    # float32 embedding of each clip's video
    views_2BD: Tensor | None = None     # float32, the two views that denoising compared; None where it is off
    positives_BB: Tensor | None = None  # bool, which clips denoising counts as the same
    meaning_B: Tensor | None = None     # on the CPU, equal for clips that truly are the same; None where unknown
    rates: dict[str, float] = field(default_factory=dict)   # learning rates of the step


@dataclass
class Progress:
    """The step, the best epoch and the figures so far: what a checkpoint holds beside weights, optimisers and loader.

    The vectors of a clip are those of the last step that saw it, and 0 before any step did.
    """

    video_ND: Tensor                # video embedding of each training clip
    views_2ND: Tensor               # its two views, from denoising
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)    # of the current epoch's figures, over its steps so far
    history: list[dict] = field(default_factory=list)       # one row of figures per epoch

    @classmethod
    def start(cls, num_clips: int, dim: int) -> "Progress":
        return cls(torch.zeros(num_clips, dim), torch.zeros(2, num_clips, dim))

    def add(self, result: StepResult) -> None:
        """Count one step, whose result is on the CPU."""
        self.step += 1
        self.video_ND[result.rows] = result.video_BD
        if result.views_2BD is not None:
            self.views_2ND[:, result.rows] = result.views_2BD
        figures = {name: float(value) for name, value in result.figures.items()} | result.rates
        if result.positives_BB is not None:
            figures |= denoising_figures(result.positives_BB, result.meaning_B)
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, epoch: int, num_steps: int, validation: dict[str, float], speed: dict[str, float],
                  last_of_equals: bool = False) -> dict:
        """The epoch's row of the history: means over its steps, and ratios of denoising's counts.

        The best epoch is the first one with the highest R@1 on validation, or the last one with `last_of_equals`: where
        few clips are validated, early epochs are as good by chance.
        """
        means = precision_and_recall({name: total / num_steps for name, total in self.sums.items()})
        row = {"epoch": epoch, **speed, **{f"train/{name}": value for name, value in means.items()},
               **{f"val/{name}": value for name, value in validation.items()}}
        if validation["R@1"] > self.best_score or (last_of_equals and validation["R@1"] == self.best_score):
            self.best_score, self.best_epoch = validation["R@1"], epoch
        self.history.append(row)
        self.sums.clear()
        return row


@dataclass(frozen=True)
class TrainingState:
    """All that the rest of a run depends on beside its parameters, as tensors on the CPU and as values for JSON.

    Learning rates are not in it: each step sets them from its number.
    """

    source: str                     # where it comes from, for messages
    tensors: dict[str, Tensor]      # `model/NAME`, `optimizer/NUMBER/WEIGHT/NAME`, `progress/NAME`, `random/NAME`
    values: dict[str, Any]

    @classmethod
    def copy_of(cls, model: HcmiModel, optimizers: Sequence[Optimizer], loader: TrainLoader, progress: Progress
                ) -> "TrainingState":
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            for weight, kept in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{number}/{weight}/{name}": tensor for name, tensor in kept.items()}
        figures = dict(vars(progress))
        tensors |= {f"progress/{name}": figures.pop(name) for name in ("video_ND", "views_2ND")}
        tensors["random/torch"] = torch.get_rng_state()
        if model.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(model.device)
        kind, numbers, *rest = cast(tuple, np.random.get_state())
        values = {"loader": loader.state_dict(), "python": random.getstate(), "numpy": [kind, numbers.tolist(), *rest],
                  "progress": {**figures, "sums": dict(progress.sums), "history": list(progress.history)}}
        return cls("this run", copied(tensors), values)

    def restore(self, model: HcmiModel, optimizers: Sequence[Optimizer], loader: TrainLoader, progress: Progress
                ) -> None:
        """Continue with this state. Raises: ModelError when a tensor has another shape; nothing has changed then."""
        weights = self._part("model/")
        self._check_shapes(model.state_dict(), weights)
        model.load_state_dict(weights)
        for number, optimizer in enumerate(optimizers):
            kept: dict[int, dict[str, Tensor]] = {}
            for key, tensor in self._part(f"optimizer/{number}/").items():
                weight, _, name = key.partition("/")
                kept.setdefault(int(weight), {})[name] = tensor
            optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
        loader.load_state_dict(self.values["loader"])
        vars(progress).update(self.values["progress"] | self._part("progress/"))
        version, numbers, gauss = self.values["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(tuple(self.values["numpy"]))
        torch.set_rng_state(self.tensors["random/torch"])
        if model.device.type == "cuda" and "random/cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["random/cuda"], model.device)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def _check_shapes(self, needed: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
        for name in sorted(needed.keys() | saved.keys()):
            need, got = (tuple(state[name].shape) if name in state else None for state in (needed, saved))
            if need != got:
                raise ModelError(f"checkpoint {self.source}, tensor {name}: need shape {need}, got {got}: another "
                                 f"version of hcmi wrote it. Remove its folder to train from the start.")


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which training does not change."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
