"""Batches of the shards for training: an order that is a pure function of the seed, frames from worker processes."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hcmi.ahead import on_device
from hcmi.errors import ConfigError, DataError
from hcmi.shards.frame_loader import FrameLoader
from hcmi.shards.reader import ShardReader
from hcmi.shards.sampler import TrainOrder


@dataclass(frozen=True)
class TrainBatch:
    """Captions and T frames for each of B different videos. Padding frames are 0 and masked False."""

    rows: list[int]                 # of the reader
    captions: list[list[str]]       # of each clip one caption, then the next of each, and so on
    frames_BTHXC: Tensor            # uint8
    frame_mask_BT: Tensor           # bool


def captions_taken(wanted: int, captions: Iterable[Sequence[str]]) -> int:
    """How many captions of each clip training takes at a time: `wanted`, or fewer where no clip has so many.

    `captions`: those of each clip.
    """
    return min(wanted, max(map(len, captions)))


class TrainLoader:
    """Batches for contrastive training. Iterating gives the rest of the current epoch, then moves on to the next.

    `batch_size` is the global one: rank r of `world_size` gets the r-th equal part of each global batch. No video
    occurs twice in a global batch; files with equal bytes are one video. Clips that do not fill a whole batch are left
    out, different ones each epoch. When there are fewer videos than `batch_size`, all batches are smaller: the
    attribute `batch_size` then has the smaller number, and a warning is given.
    Each epoch takes the next `num_captions` of a clip's captions, starting at a random one; a clip with fewer captions
    gives some twice. When no clip has that many, the largest number that a clip has is taken; the attribute
    `num_captions` then has it.

    Order, captions and frames are pure functions of (seed, epoch, batch number) and of the arguments of
    `group_marginal_clips`. They do not depend on ranks, workers, or where an earlier run stopped. Workers decode whole
    batches ahead of time into shared memory. Frames and masks are on `device`, where a GPU gets the next batch's ahead
    of time.

    Raises: DataError when a clip has no caption or there are fewer videos than ranks; ConfigError when `batch_size`
    cannot be split over the ranks.
    """

    def __init__(self, reader: ShardReader, batch_size: int, num_frames: int, seed: int = 0, rank: int = 0,
                 world_size: int = 1, num_workers: int = 0, num_captions: int = 1,
                 device: torch.device | str = "cpu"):
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        for clip in reader.clips:
            if not clip.captions:
                raise DataError(f"clip {clip.video_id} ({clip.path}): need a caption to train with, got none. "
                                f"Caption it, or move it to another split.")
        if batch_size % world_size:
            raise ConfigError(f"train.batch_size: need a multiple of the {world_size} ranks, got {batch_size}. "
                              f"Try {batch_size + world_size - batch_size % world_size}.")
        self.reader, self.rank, self.world_size = reader, rank, world_size
        videos = np.unique([clip.sha256 or clip.path for clip in reader.clips], return_inverse=True)[1]
        self.batch_size = self._fit(batch_size, num_videos=int(videos.max()) + 1)
        captions_N = np.array([len(clip.captions) for clip in reader.clips])
        self.num_captions = captions_taken(num_captions, (clip.captions for clip in reader.clips))
        self._order = TrainOrder(videos, captions_N, reader.num_stored, self.batch_size, num_frames,
                                 self.num_captions, seed)
        self._num_batches = self._order.num_batches     # counted once: an epoch is planned for it
        self._epoch, self._batch, self._device = 0, 0, torch.device(device)
        self._clip_order: np.ndarray | None = None
        self._frames = FrameLoader(reader, num_workers, self.batch_size // world_size * num_frames)

    def _fit(self, batch_size: int, num_videos: int) -> int:
        if num_videos >= batch_size:
            return batch_size
        if num_videos < self.world_size:
            raise DataError(f"split {self.reader.split}: need at least as many videos as ranks ({self.world_size}), "
                            f"got {num_videos}. Use fewer ranks.")
        fitted = num_videos - num_videos % self.world_size
        warnings.warn(f"split {self.reader.split}: need {batch_size} different videos for a batch, got {num_videos}. "
                      f"Batches hold {fitted}.", stacklevel=3)
        return fitted

    def __len__(self) -> int:
        """Batches in an epoch; the same number in each."""
        return self._num_batches

    @property
    def epoch(self) -> int:
        """The epoch that iterating starts or continues. Setting another one starts at its first batch."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._batch, self._clip_order = epoch, 0, None

    @property
    def batch(self) -> int:
        """Batches of the current epoch that have been handed out."""
        return self._batch

    def group_marginal_clips(self, embeddings_ND: np.ndarray, size: int, views_2ND: np.ndarray | None = None) -> None:
        """Let clips that are hard to tell apart share batches in the coming epoch: groups of up to `size` clips whose
        unit vectors are near each other, without clips that their two views call the same (`marginal_order`).

        This holds for one epoch and must be called before its first batch. All ranks must pass the same vectors.
        """
        assert self._batch == 0, f"need to be before an epoch's first batch, got batch {self._batch}"
        assert len(embeddings_ND) == len(self.reader), f"need {len(self.reader)} vectors, got {len(embeddings_ND)}"
        self._clip_order = self._order.marginal(self._epoch, embeddings_ND, size, views_2ND)

    def __iter__(self) -> Iterator[TrainBatch]:
        plans = self._order.plans(self._epoch, self._batch, self.rank, self.world_size, self._clip_order)
        for plan, frames_BTHXC, frame_mask_BT in on_device(self._frames.run(plans), self._device):
            self._batch += 1
            clips = [self.reader.clips[row] for row in plan.rows]
            captions = [[clip.captions[number] for clip, number in zip(clips, numbers, strict=True)]
                        for numbers in plan.captions_NB]
            yield TrainBatch(plan.rows.tolist(), captions, frames_BTHXC, frame_mask_BT)
        self._epoch, self._batch, self._clip_order = self._epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """The place in the order of batches: `batch` batches of `epoch` have been handed out."""
        clip_order = None if self._clip_order is None else self._clip_order.tolist()
        return {"epoch": self._epoch, "batch": self._batch, "clip_order": clip_order, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the place of a `state_dict`, with the same batches, on any number of ranks and workers.

        Raises: ConfigError when the state is from an earlier version, or from a loader whose batches differ from this
        one's.
        """
        if "clip_order" not in state:
            raise ConfigError("loader state: need one of this version, got one of an earlier version. Remove the "
                              "checkpoint and start training again.")
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise ConfigError(f"loader state: need {key}={value!r}, got {state.get(key)!r}. "
                                  f"Continue with the data and parameters of that run, or start training again.")
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._clip_order = None if state["clip_order"] is None else np.array(state["clip_order"])

    def _identity(self) -> dict[str, Any]:
        clips = [[clip.video_id, clip.path, clip.sha256, clip.captions] for clip in self.reader.clips]
        order = self._order
        return {"seed": order.seed, "batch_size": self.batch_size, "num_frames": order.num_frames,
                "captions": order.captions_taken,
                "clips_sha256": hashlib.sha256(json.dumps(clips).encode()).hexdigest()}
