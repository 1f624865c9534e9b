"""The two functions in which a training step spends its time, as they are or compiled."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hcmi.config import TrainConfig
from hcmi.errors import MachineError
from hcmi.model import HcmiModel
from hcmi.types import TextTokens, VideoTokens

COMPILED_STEPS = 2000       # from which compiling, a minute or two, pays on a GPU: it saved 48 ms of 225 a step
Videos = Callable[[Tensor, Tensor], tuple[VideoTokens, Tensor]]
Texts = Callable[[Tensor, Tensor], TextTokens]


@dataclass(frozen=True)
class Parts:
    """`videos`: uint8 frames [B, T, H, X, C] and mask to tokens, and the towers' features without gradients. `texts`:
    ids and mask [B, W] to tokens."""

    videos: Videos
    texts: Texts

    @classmethod
    def of(cls, model: HcmiModel) -> "Parts":
        def videos(frames_BTHXC: Tensor, mask_BT: Tensor) -> tuple[VideoTokens, Tensor]:
            features_BTD = model.frame_features(model.processor.frames(frames_BTHXC))
            return model.head.video(features_BTD, mask_BT), features_BTD.detach()

        return cls(videos, model.encode_texts)

    def compiled(self, backend: str = "inductor") -> "Parts":
        """The same, compiled when they are first called: videos for the shape of the batch, texts for any length."""
        return Parts(torch.compile(self.videos, dynamic=False, backend=backend),
                     torch.compile(self.texts, dynamic=True, backend=backend))


def wants_compiled(config: TrainConfig, device: torch.device, num_steps: int) -> bool:
    """`train.compile`; `auto`: on a GPU, for a run of `num_steps` that is long enough.

    With activation checkpointing, which computes layers twice from outside of them, `auto` means false: not tried.
    """
    if config.compile == "auto":
        return device.type == "cuda" and num_steps >= COMPILED_STEPS and not config.activation_checkpointing
    return config.compile


def pick_parts(config: TrainConfig, model: HcmiModel, num_steps: int, tried: Callable[[Parts], None]) -> Parts:
    """The model's parts, compiled as `train.compile` says. `tried(parts)` uses them once, forward and backward.

    `auto` goes on without compiling, with a warning, where that fails.
    Raises: MachineError when it fails and `train.compile` is true.
    """
    plain = Parts.of(model)
    if not wants_compiled(config, model.device, num_steps):
        return plain
    parts = plain.compiled()
    try:
        tried(parts)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        if config.compile != "auto":
            raise MachineError(f"train.compile: need a compiler that torch can use, got: {reason[:200]}. Set it to "
                               f"false.") from error
        warnings.warn(f"train.compile auto: need a compiler that torch can use, got: {reason[:200]}. Training goes on "
                      f"without it.", stacklevel=2)
        torch.compiler.reset()
        return plain
    return parts
