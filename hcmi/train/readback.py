"""Results of training steps on their way from the device to the processor, which launches the next steps meanwhile.

A GPU works through what it is given, and the processor would wait for all of it if it read a figure of the step that it
has just launched. So the copies are only launched too, and a result is read when `LAG` more steps have been launched.
"""

import math
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hcmi.errors import ModelError
from hcmi.train.state import StepResult

LAG = 2     # steps; the processor waits for the GPU when it is further ahead
LOWER = "Lower train.lr or train.backbone_lr, or set train.precision to float32."


class DivergedError(ModelError):
    """The loss of a step or its gradient is not a finite number; `rows` are the clips of the batch."""

    def __init__(self, fact: str, rows: list[int]):
        super().__init__(f"training: {fact}. {LOWER}")
        self.fact, self.rows = fact, rows


class Readback:
    """Gives the result of each step in order, on the CPU, once the device has come so far. On a CPU that is at once."""

    def __init__(self) -> None:
        self._on_the_way: deque[tuple[StepResult, torch.cuda.Event | None]] = deque()

    def __len__(self) -> int:
        """Steps that have been launched and whose results have not been given."""
        return len(self._on_the_way)

    def add(self, result: StepResult) -> list[StepResult]:
        """Take a result, and give those that are to be read now."""
        self._on_the_way.append(_copied(result))
        return self._given(LAG if self._on_the_way[-1][1] is not None else 0)

    def rest(self) -> list[StepResult]:
        """All results that have not been given. The device is then idle."""
        return self._given(0)

    def _given(self, kept: int) -> list[StepResult]:
        given = []
        while len(self._on_the_way) > kept:
            result, copied = self._on_the_way.popleft()
            if copied is not None:
                copied.synchronize()
            given.append(result)
        return given


def check_finite(result: StepResult) -> None:
    """Raises: DivergedError when the loss or the gradient of a result, on the CPU, is not finite."""
    for name, figure in (("loss", "loss"), ("gradient", "gradient_norm")):
        value = float(result.figures[figure])
        if not math.isfinite(value):
            raise DivergedError(f"need a finite {name}, got {value}", result.rows)


def _copied(result: StepResult) -> tuple[StepResult, torch.cuda.Event | None]:
    """The result in pinned memory, and what happens when it is there; a result on the CPU as it is."""
    device = result.video_BD.device
    if device.type != "cuda":
        return result, None
    names, values = zip(*result.figures.items(), strict=True)
    kept: dict[str, Tensor | None] = {name: getattr(result, name) for name in ("video_BD", "views_2BD", "positives_BB")}
    with torch.cuda.device(device):
        figures = torch.stack([value.float() for value in values]).to("cpu", non_blocking=True)     # one copy for all
        there: dict[str, Any] = {name: None if tensor is None else tensor.to("cpu", non_blocking=True)
                                 for name, tensor in kept.items()}
        event = torch.cuda.Event()
        event.record()
    return replace(result, figures=dict(zip(names, figures, strict=True)), **there), event
