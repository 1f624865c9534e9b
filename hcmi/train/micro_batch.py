"""How many clips a training step encodes at a time: `train.micro_batch`, or the largest number that fits the GPU."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from hcmi.config import TrainConfig
from hcmi.errors import MachineError
from hcmi.model import HcmiModel
from hcmi.ranks import Ranks
from hcmi.runtime import tf32
from hcmi.shards import TrainBatch, TrainLoader
from hcmi.train.denoising import denoise_mode
from hcmi.train.parts import Parts
from hcmi.train.step import batch_loss

SPARE = 0.05            # of the GPU's memory that a trial leaves free: fragments, and what later steps need beside it
OPTIMIZER_COPIES = 2    # of all weights that AdamW keeps, which a trial sets aside


def pick_micro_batch(config: TrainConfig, model: HcmiModel, loader: TrainLoader, precision: str, ranks: Ranks) -> int:
    """Clips of a rank that are encoded at a time; 0: all at once.

    `auto` means 0 on a CPU. On a GPU it tries the whole batch, then half of it and so on, until all ranks have the
    memory for it.
    Raises: MachineError when a single clip does not fit.
    """
    if config.micro_batch != "auto":
        return int(config.micro_batch)
    if model.device.type == "cpu":
        return 0
    batch = largest_batch(loader, model.config.num_frames)
    size = largest_that_fits(len(batch.rows), lambda size: ranks.all_agree(_fits(size, model, batch, config, precision,
                                                                                 ranks)))
    if size and ranks.is_first:
        warnings.warn(f"train.micro_batch auto: {size} of {len(batch.rows)} clips at a time fit the GPU.", stacklevel=2)
    return size


def largest_that_fits(count: int, fits: Callable[[int], bool]) -> int:
    """0 when `fits(0)`, which is everything at once; else the first of count/2, count/4, ... 1, rounded up.

    Raises: MachineError when 1 does not fit.
    """
    if fits(0):
        return 0
    size = count
    while size > 1:
        size = -(-size // 2)
        if fits(size):
            return size
    raise MachineError("train.micro_batch: need the GPU memory for one clip at a time, got less. Lower "
                       "train.batch_size, or set train.activation_checkpointing to true.")


def largest_batch(loader: TrainLoader, num_frames: int) -> TrainBatch:
    """A rank's batch as large as any: black frames, and everywhere the longest caption."""
    clips = loader.batch_size // loader.world_size
    captions = [max((caption for clip in loader.reader.clips for caption in clip.captions), key=len)] * clips
    frames = torch.zeros((clips, num_frames, *loader.reader.frame_shape), dtype=torch.uint8)
    return TrainBatch(list(range(clips)), [captions] * loader.num_captions, frames,
                      torch.ones(clips, num_frames, dtype=torch.bool))


def _fits(size: int, model: HcmiModel, batch: TrainBatch, config: TrainConfig, precision: str, ranks: Ranks) -> bool:
    """Whether this rank has the memory for a step of that micro-batch. It asks no other rank."""
    device = model.device
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    try:
        spare = SPARE * torch.cuda.get_device_properties(device).total_memory
        kept = torch.empty(int(4 * OPTIMIZER_COPIES * weights + spare), dtype=torch.uint8, device=device)
        trial(size, model, batch, config, precision, ranks)
        torch.cuda.synchronize(device)
        del kept
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()


def trial(size: int, model: HcmiModel, batch: TrainBatch, config: TrainConfig, precision: str, ranks: Ranks,
          parts: Parts | None = None) -> None:
    """Compute the gradients of a step in micro-batches of `size`, and forget them. No other rank is asked."""
    model.train()
    try:
        # in TF32 as a step is: what was compiled for another precision would be compiled again
        devices = [model.device] if model.device.type == "cuda" else []
        with tf32(precision == "bfloat16"), torch.random.fork_rng(devices):
            by_tag = config.loss.denoise_by == "tag"        # needs no memory
            denoise = "off" if by_tag else denoise_mode(model, config, config.loss.warmup_epochs)
            total, _ = batch_loss(model, batch, config, denoise, precision, None, size, replace(ranks, alone=True),
                                  parts)
            total.backward()
    finally:
        model.zero_grad(set_to_none=True)
