"""Batches of training frames, decoded in this process or ahead of time in worker processes."""

import math
import mmap
import multiprocessing
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hcmi.errors import DataError, hold_interrupts
from hcmi.shards.reader import ShardReader
from hcmi.shards.sampler import BatchPlan

_Job = tuple[BatchPlan, int | None]     # and the number of the shared buffer to decode into


class FrameLoader:
    """Decodes plans of up to `frames_per_batch` frames, in order. Its workers live as long as it does."""

    def __init__(self, reader: ShardReader, num_workers: int, frames_per_batch: int):
        ahead = max(2, num_workers)         # batches; the consumer has one more, and may keep the one before it
        shared = num_workers == 0 or multiprocessing.get_start_method() == "fork"
        self._buffers = _SharedBuffers((ahead + 2) * shared, frames_per_batch * math.prod(reader.frame_shape))
        self._decoder, self._sampler = _PlanDecoder(reader, self._buffers), _PlanSampler(self._buffers)
        self._workers: DataLoader | None = None
        if num_workers:
            # with a generator: DataLoader draws from the global one otherwise, and changes what a model draws
            self._workers = DataLoader(self._decoder, batch_size=None, sampler=self._sampler, num_workers=num_workers,
                                       prefetch_factor=math.ceil(ahead / num_workers), persistent_workers=True,
                                       collate_fn=_unchanged, generator=torch.Generator())

    def run(self, plans: Iterable[BatchPlan]) -> Iterator[tuple[BatchPlan, Tensor, Tensor]]:
        """Each plan with its frames [B,T,H,X,3] and mask [B,T]."""
        self._sampler.plans = plans
        for decoded in self._decoded():
            plan, buffer = self._sampler.sent.popleft()
            if isinstance(decoded, DataError):
                try:
                    raise decoded
                finally:
                    del decoded     # else error and frame hold each other, and stopping the workers takes 5 s each
            frames_BTHXC = decoded if buffer is None else self._buffers.lend(buffer, self._decoder.shape(plan))
            assert frames_BTHXC is not None, "a job without a buffer returns its frames"
            yield plan, frames_BTHXC, torch.from_numpy(plan.frame_indices_BT >= 0)
            del frames_BTHXC

    def _decoded(self) -> Iterator:
        if self._workers is None:
            return map(self._decoder.__getitem__, self._sampler)
        with hold_interrupts():         # the first iteration starts the workers
            return iter(self._workers)


class _SharedBuffers:
    """Memory for whole batches, shared with forked workers; used again when no tensor over it is left.

    Fresh memory for each batch would cost as much time as decoding it: a page fault, 2 us, for each 4 KiB.
    """

    def __init__(self, count: int, num_bytes: int):
        self._memory = [mmap.mmap(-1, num_bytes) for _ in range(count)]     # takes no room before it is written to
        self._free = list(range(count))
        self._lent: set[int] = set()

    def take(self) -> int | None:
        """The number of a free buffer."""
        return self._free.pop() if self._free else None

    def reclaim(self) -> None:
        """Free the buffers that were taken for batches that no consumer received."""
        self._free = [buffer for buffer in range(len(self._memory)) if buffer not in self._lent]

    def array(self, buffer: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self._memory[buffer], np.uint8, math.prod(shape)).reshape(shape)

    def lend(self, buffer: int, shape: tuple[int, ...]) -> Tensor:
        """A tensor over the buffer, which is free again when the last view of the tensor is gone."""
        array = self.array(buffer, shape)
        self._lent.add(buffer)
        weakref.finalize(array, self._return, buffer).atexit = False     # the tensor's storage holds the array
        return torch.from_numpy(array)

    def _return(self, buffer: int) -> None:
        self._lent.discard(buffer)
        self._free.append(buffer)


class _PlanDecoder(Dataset):
    """What runs in a worker: decodes a plan's frames into a buffer, or without one into a new tensor [B,T,H,X,3]."""

    def __init__(self, reader: ShardReader, buffers: _SharedBuffers):
        self._reader, self._buffers = reader, buffers

    def __getstate__(self) -> dict[str, Any]:       # for workers that are not forked; their jobs have no buffer
        return {"_reader": self._reader, "_buffers": None}

    def shape(self, plan: BatchPlan) -> tuple[int, ...]:
        return (*plan.frame_indices_BT.shape, *self._reader.frame_shape)

    def __getitem__(self, job: _Job) -> Tensor | DataError | None:
        plan, buffer = job
        shape = self.shape(plan)
        frames_BTHXC = np.empty(shape, np.uint8) if buffer is None else self._buffers.array(buffer, shape)
        try:
            for row, which, slots_THXC in zip(plan.rows.tolist(), plan.frame_indices_BT.tolist(), frames_BTHXC,
                                              strict=True):
                self._reader.read_into(row, which, slots_THXC)
        except DataError as error:      # as a value: torch would put the worker's traceback into the message
            return error
        return torch.from_numpy(frames_BTHXC) if buffer is None else None


class _PlanSampler(Sampler):
    """Gives the jobs of one epoch to a DataLoader that is made only once, and remembers those without an answer.

    It knows nothing of `FrameLoader`: a circle of references would keep the workers alive.
    """

    def __init__(self, buffers: _SharedBuffers):
        self.plans: Iterable[BatchPlan] = ()
        self.sent: deque[_Job] = deque()
        self._buffers = buffers

    def __iter__(self) -> Iterator[_Job]:
        self.sent.clear()
        self._buffers.reclaim()     # DataLoader begins an iteration when its workers are done with the one before
        for plan in self.plans:
            self.sent.append((plan, self._buffers.take()))
            yield self.sent[-1]


def _unchanged(item):
    return item
