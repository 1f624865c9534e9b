"""Shards as batches: an order that is a pure function of the seed, JPEGs straight into the batch."""

import hashlib
import json
import math
import mmap
import multiprocessing
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hcmi.errors import ConfigError, DataError
from hcmi.shards.reader import ShardReader
from hcmi.shards.sampler import Plan, TrainOrder, eval_plans
from hcmi.types import EvalBatch

_Job = tuple[Plan, int | None]      # and the slot of shared memory to decode into


@dataclass(frozen=True)
class TrainBatch:
    """Captions and K views of T frames for each of B different videos. Padding frames are 0 and masked False."""

    rows: list[int]                 # of the reader
    video_ids: list[str]
    captions: list[list[str]]       # of each clip one caption, then the next of each, and so on
    frames_KBTHXC: Tensor           # uint8
    frame_mask_BT: Tensor           # bool


class TrainLoader:
    """Batches for contrastive training. Iterating gives the rest of the current epoch, then moves on to the next.

    `batch_size` is the global one: rank r of `world_size` gets the r-th equal part of each global batch. No video
    occurs twice in a global batch. Clips that do not fill a whole batch are left out, others each epoch; when there
    are fewer videos than `batch_size` all batches are smaller, `batch_size` says by how much, and a warning is given.
    Each epoch takes the next `num_captions` of a clip's captions, from a random first one; of a clip with fewer some
    twice. Where no clip has that many, as many as the most that one has.

    Order, captions and frames are pure functions of (seed, epoch, batch number), and of what `gather` was given:
    neither ranks nor workers nor where an earlier run stopped change them. Workers decode whole batches ahead and hand
    them over in shared memory.

    Raises: DataError when a clip has no caption or there are fewer videos than ranks; ConfigError when `batch_size`
    cannot be split over the ranks.
    """

    def __init__(self, reader: ShardReader, batch_size: int, num_frames: int, views: int = 1, seed: int = 0,
                 rank: int = 0, world_size: int = 1, num_workers: int = 0, num_captions: int = 1):
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        for clip in reader.clips:
            if not clip.captions:
                raise DataError(f"clip {clip.video_id} ({clip.path}): need a caption to train with, got none. "
                                f"Caption it, or move it to another split.")
        if batch_size % world_size:
            raise ConfigError(f"train.batch_size: need a multiple of the {world_size} ranks, got {batch_size}. "
                              f"Try {batch_size + world_size - batch_size % world_size}.")
        self.reader, self.rank, self.world_size = reader, rank, world_size
        videos = np.unique([clip.path for clip in reader.clips], return_inverse=True)[1]
        self.batch_size = self._fit(batch_size, num_videos=int(videos.max()) + 1)
        held_N = np.array([len(clip.captions) for clip in reader.clips])
        self._order = TrainOrder(videos, held_N, reader.num_stored, self.batch_size, num_frames, views,
                                 min(num_captions, int(held_N.max())), seed)
        self._epoch, self._batch = 0, 0
        self._together: np.ndarray | None = None
        self._pipeline = _Pipeline(reader, num_workers, self.batch_size // world_size * views * num_frames)

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
        """Batches in a whole epoch, the same for each."""
        return self._order.num_batches

    @property
    def epoch(self) -> int:
        """The epoch that iterating gives or goes on with. Setting another one starts at its first batch."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._batch, self._together = epoch, 0, None

    @property
    def batch(self) -> int:
        """Batches of the current epoch that have been handed out."""
        return self._batch

    def gather(self, embeddings_ND: np.ndarray, size: int, views_2ND: np.ndarray | None = None) -> None:
        """Make the coming epoch's batches of groups of up to `size` clips whose unit vectors are near one another, but
        not of clips whose two views say that they are the same (`marginal_order`).

        For that epoch alone, and only before its first batch. On several ranks all must be given the same vectors.
        """
        assert self._batch == 0, f"need to be before an epoch's first batch, got batch {self._batch}"
        assert len(embeddings_ND) == len(self.reader), f"need {len(self.reader)} vectors, got {len(embeddings_ND)}"
        self._together = self._order.marginal(self._epoch, embeddings_ND, size, views_2ND)

    def __iter__(self) -> Iterator[TrainBatch]:
        plans = self._order.plans(self._epoch, self._batch, self.rank, self.world_size, self._together)
        for plan, frames_KBTHXC, frame_mask_BT in self._pipeline.run(plans):
            self._batch += 1
            clips = [self.reader.clips[row] for row in plan.rows]
            captions = [[clip.captions[number] for clip, number in zip(clips, numbers, strict=True)]
                        for numbers in plan.captions_NB]
            yield TrainBatch(plan.rows.tolist(), [clip.video_id for clip in clips], captions, frames_KBTHXC,
                             frame_mask_BT)
        self._epoch, self._batch, self._together = self._epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Where iterating stands: of the current epoch, `batch` batches have been handed out."""
        together = None if self._together is None else self._together.tolist()
        return {"epoch": self._epoch, "batch": self._batch, "together": together, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the very same batches, on any number of ranks and workers.

        Raises: ConfigError when the state is from a loader whose batches differ from this one's.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise ConfigError(f"loader state: need {key}={value!r}, got {state.get(key)!r}. "
                                  f"Continue with the data and parameters it was made with, or start training anew.")
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._together = None if state["together"] is None else np.array(state["together"])

    def _identity(self) -> dict[str, Any]:
        clips = [[clip.video_id, clip.path, clip.captions] for clip in self.reader.clips]
        order = self._order
        return {"seed": order.seed, "batch_size": self.batch_size, "num_frames": order.num_frames,
                "views": order.views, "captions": order.captions_taken,
                "clips_sha256": hashlib.sha256(json.dumps(clips).encode()).hexdigest()}


def eval_batches(reader: ShardReader, batch_size: int, num_frames: int, rank: int = 0, world_size: int = 1,
                 num_workers: int = 0) -> Iterator[EvalBatch]:
    """Each clip once, in the reader's order, the middle frame of each segment.

    Rank r gets the r-th of `world_size` contiguous parts, whose sizes differ by one at most, so the ranks' clips one
    after the other are the split. The last batch may be smaller.
    """
    plans = eval_plans(reader.num_stored, batch_size, num_frames, rank, world_size)
    for plan, frames_KBTHXC, frame_mask_BT in _Pipeline(reader, num_workers, batch_size * num_frames).run(plans):
        video_ids = [reader.clips[row].video_id for row in plan.rows]
        yield EvalBatch(plan.rows.tolist(), video_ids, frames_KBTHXC[0], frame_mask_BT)


class _Slots:
    """Memory for whole batches, shared with forked workers and used again once nobody has a tensor over it.

    Fresh memory for each batch would cost as much time as decoding it: a page fault, 2 us, for each 4 KiB.
    """

    def __init__(self, count: int, num_bytes: int):
        self._memory = [mmap.mmap(-1, num_bytes) for _ in range(count)]     # takes no room before it is written to
        self._free = list(range(count))
        self._given: set[int] = set()

    def take(self) -> int | None:
        return self._free.pop() if self._free else None

    def reclaim(self) -> None:
        """Take back what was taken for batches that were never given to anybody."""
        self._free = [slot for slot in range(len(self._memory)) if slot not in self._given]

    def array(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self._memory[slot], np.uint8, math.prod(shape)).reshape(shape)

    def give(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """A tensor over the slot, which is free again when the last view of it is gone."""
        array = self.array(slot, shape)
        self._given.add(slot)
        weakref.finalize(array, self._give_back, slot).atexit = False     # the tensor's storage holds the array
        return torch.from_numpy(array)

    def _give_back(self, slot: int) -> None:
        self._given.discard(slot)
        self._free.append(slot)


class _Decoder(Dataset):
    """Decodes a plan's frames into a slot, or where there is none into a tensor [B,K,T,H,X,3] of its own."""

    def __init__(self, reader: ShardReader, slots: _Slots):
        self._reader, self._slots = reader, slots

    def __getstate__(self) -> dict[str, Any]:       # to workers that are not forked; they get no job with a slot
        return {"_reader": self._reader, "_slots": None}

    def shape(self, plan: Plan) -> tuple[int, ...]:
        views, batch_size, num_frames = plan.picks_KBT.shape
        return (batch_size, views, num_frames, *self._reader.frame_shape)

    def __getitem__(self, job: _Job) -> Tensor | DataError | None:
        plan, slot = job
        shape = self.shape(plan)
        frames = np.empty(shape, np.uint8) if slot is None else self._slots.array(slot, shape)
        picks_BN = plan.picks_KBT.swapaxes(0, 1).reshape(len(plan.rows), -1)
        frames_BNHXC = frames.reshape(*picks_BN.shape, *shape[3:])
        try:
            for row, which, slots_NHXC in zip(plan.rows.tolist(), picks_BN.tolist(), frames_BNHXC, strict=True):
                self._reader.read_into(row, which, slots_NHXC)
        except DataError as error:      # as a value: torch would put the worker's traceback into the message
            return error
        return torch.from_numpy(frames) if slot is None else None


class _Pipeline:
    """Decodes plans of up to `frames_per_batch` frames in order, here or in workers that live as long as it does."""

    def __init__(self, reader: ShardReader, num_workers: int, frames_per_batch: int):
        ahead = max(2, num_workers)         # batches; besides, the consumer has one and may keep the one before it
        shared = num_workers == 0 or multiprocessing.get_start_method() == "fork"
        self._slots = _Slots((ahead + 2) * shared, frames_per_batch * math.prod(reader.frame_shape))
        self._decoder, self._relay, self._workers = _Decoder(reader, self._slots), _Relay(self._slots), None
        if num_workers:
            # a generator of its own: DataLoader draws from the global one, which would change what a model draws
            self._workers = DataLoader(self._decoder, batch_size=None, sampler=self._relay, num_workers=num_workers,
                                       prefetch_factor=math.ceil(ahead / num_workers), persistent_workers=True,
                                       collate_fn=_unchanged, generator=torch.Generator())

    def run(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Tensor, Tensor]]:
        """Each plan with its frames [K,B,T,H,X,3] and mask [B,T]."""
        self._relay.plans = plans
        for decoded in map(self._decoder.__getitem__, self._relay) if self._workers is None else self._workers:
            plan, slot = self._relay.sent.popleft()
            if isinstance(decoded, DataError):
                try:
                    raise decoded
                finally:
                    del decoded     # else error and frame hold each other, and stopping the workers takes 5 s each
            frames_BKTHXC = decoded if slot is None else self._slots.give(slot, self._decoder.shape(plan))
            assert frames_BKTHXC is not None, "a job without a slot comes back with its frames"
            yield plan, frames_BKTHXC.transpose(0, 1), torch.from_numpy(plan.picks_KBT[0] >= 0)
            del frames_BKTHXC


class _Relay(Sampler):
    """The sampler of a DataLoader that is made once: gives the jobs of the epoch at hand."""

    def __init__(self, slots: _Slots):
        self.plans: Iterable[Plan] = ()
        self.sent: deque[_Job] = deque()
        self._slots = slots

    def __iter__(self) -> Iterator[_Job]:
        self.sent.clear()
        self._slots.reclaim()       # DataLoader begins an iteration when its workers are done with the one before
        for plan in self.plans:
            self.sent.append((plan, self._slots.take()))
            yield self.sent[-1]


def _unchanged(item):
    return item
