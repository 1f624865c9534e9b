"""Every clip of a split as tokens. On several GPUs each has a process, which encodes its own part of the split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hcmi.model import HcmiModel, encode_batches, load_retriever
from hcmi.processes import count_processes, from_processes
from hcmi.ranks import Ranks
from hcmi.shards import SplitIndex, clip_batches, pick_frames
from hcmi.types import Clip, VideoTokens


@dataclass(frozen=True)
class Encoded:
    """B clips that follow one another in a split, from row `first` on."""

    first: int
    clips: list[Clip]
    tokens: VideoTokens         # float32, on the CPU
    times_BT: np.ndarray        # seconds into the file of each frame


def encode_clips(model: HcmiModel, index: SplitIndex, batch_size: int, *, processes: int | str = 1,
                 model_dir: str | Path | None = None) -> Iterator[Encoded]:
    """Every clip of a split once, in the shards' order.

    With more than one process (`train.num_processes`; "auto": one for each GPU) each loads the model from `model_dir`,
    and batches come in the order in which they are done. The tokens are the same but for rounding.
    Raises: DataError when a shard is broken; ConfigError when the processes lack a GPU each; MachineError when one of
    them was killed.
    """
    count = min(count_processes(processes, "auto"), len(index)) if model_dir is not None else 1
    if count <= 1:
        yield from _encode_part(model, index, batch_size)
        return
    options = {"model_dir": model_dir, "index": index, "batch_size": batch_size}
    for first, clips, arrays, times_BT in from_processes(count, "auto", _encode_on, options, task="encoding"):
        yield Encoded(first, clips, VideoTokens(*map(torch.from_numpy, arrays)), times_BT)


def _encode_on(ranks: Ranks, device: torch.device, model_dir: str | Path, index: SplitIndex, batch_size: int
               ) -> Iterator[tuple[int, list[Clip], list[np.ndarray], np.ndarray]]:
    """What a process sends: arrays, because a tensor would be sent as shared memory, which ends with the process."""
    model = load_retriever(model_dir, device)
    for batch in _encode_part(model, index, batch_size, ranks):
        yield batch.first, batch.clips, [values.numpy() for values in vars(batch.tokens).values()], batch.times_BT


def _encode_part(model: HcmiModel, index: SplitIndex, batch_size: int, ranks: Ranks | None = None) -> Iterator[Encoded]:
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    batches = ((batch, batch.picked.frames_BTHXC, batch.picked.frame_mask_BT)
               for batch in clip_batches(index, batch_size, model.config.num_frames, rank, size))
    for batch, tokens in encode_batches(model, batches):
        times_BT = np.stack([frame_times(stored.times_s, model.config.num_frames) for stored in batch.stored])
        yield Encoded(batch.picked.rows[0], batch.clips, tokens, times_BT)


def frame_times(stored_times_s: Sequence[float], num_frames: int) -> np.ndarray:
    """[T] seconds of the frames that evaluation picks; a clip with fewer frames repeats the last one."""
    picked = [stored_times_s[at] for at in pick_frames(len(stored_times_s), num_frames)]
    return np.array((picked + picked[-1:] * num_frames)[:num_frames], np.float32)
