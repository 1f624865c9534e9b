"""What a training run keeps beside its weights: the step, the best epoch, and the figures of all epochs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hcmi.train.denoising import precision_and_recall


@dataclass(frozen=True)
class StepResult:
    """What one training step gives, on the CPU in float32."""

    figures: dict[str, float]       # for the log: the loss, its terms, and counts of denoising
    video_BD: Tensor                # embedding of each clip's video
    views_2BD: Tensor | None        # the two views that denoising compared; None where it is off


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

    def add(self, rows: list[int], result: StepResult) -> None:
        """Count one step, which saw the clips `rows`."""
        self.step += 1
        self.video_ND[rows] = result.video_BD
        if result.views_2BD is not None:
            self.views_2ND[:, rows] = result.views_2BD
        for name, value in result.figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, epoch: int, num_steps: int, validation: dict[str, float], seconds: float) -> dict:
        """The epoch's row of the history: means over its steps, and ratios of denoising's counts."""
        means = precision_and_recall({name: total / num_steps for name, total in self.sums.items()})
        row = {"epoch": epoch, "train/seconds": seconds, **{f"train/{name}": value for name, value in means.items()},
               **{f"val/{name}": value for name, value in validation.items()}}
        self.history.append(row)
        self.sums.clear()
        return row
