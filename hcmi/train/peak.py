"""How much of a device's arithmetic training uses: operations of a step over those of large matrix products."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from hcmi.config import TrainConfig
from hcmi.model import HcmiModel
from hcmi.ranks import ALONE
from hcmi.shards import ShardReader, TrainBatch, captions_taken
from hcmi.train.micro_batch import trial

CLIPS, PRODUCTS = 2, 10
SIDE = {"cuda": 8192}       # of the products; small ones suffice on a CPU
SMALL_SIDE = 512


def clip_operations(model: HcmiModel, config: TrainConfig, reader: ShardReader, precision: str) -> float:
    """Floating-point operations of a step for each clip, forward and backward: products, convolutions, attention.

    They are counted on two clips, so what two clips are to each other is left out: it is little beside the towers. What
    micro-batches compute a second time does not count.
    """
    clips = [reader.clips[number % len(reader)] for number in range(CLIPS)]
    captions = [[clip.captions[number % len(clip.captions)] for clip in clips]
                for number in range(captions_taken(config.captions_per_clip, (clip.captions for clip in reader.clips)))]
    frames = torch.zeros((CLIPS, model.config.num_frames, *reader.frame_shape), dtype=torch.uint8)
    batch = TrainBatch(list(range(CLIPS)), captions, frames,
                       torch.ones(frames.shape[:2], dtype=torch.bool))
    return operations(lambda: trial(0, model, batch, config, precision, ALONE)) / CLIPS


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and attention of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def matrix_peak(device: torch.device, precision: str) -> float:
    """Operations a second of a large square product: the median of ten."""
    side = SIDE.get(device.type, SMALL_SIDE)
    own = torch.Generator(device).manual_seed(0)        # a run's random state stays as it is
    square = torch.randn(side, side, device=device, generator=own).to(getattr(torch, precision))
    seconds = sorted(_seconds(lambda: square @ square, device) for _ in range(PRODUCTS))
    return 2 * side**3 / seconds[PRODUCTS // 2]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
