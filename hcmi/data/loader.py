"""Shards as batches: random access by the index, an order that is a pure function of the seed, JPEGs straight into
the batch.

The shards are ordinary WebDataset tars and any sequential reader of those works on them too; WebDataset 1.x has no
random access and no resume in mid-epoch, so the index (`data/shards/index.parquet`) and this module give both.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
import torch
from pyarrow import ArrowException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hcmi.data.order import Plan, TrainOrder, eval_plans
from hcmi.data.order import pick_frames as pick_frames
from hcmi.errors import ConfigError, DataError

_INDEX_COLUMNS = ["shard", "video_id", "json_offset", "json_size", "frame_offsets", "frame_sizes"]
_MAKE_AGAIN = "Run `hcmi shards` again, or copy the whole folder again."


@dataclass(frozen=True)
class TrainBatch:
    """One caption and K views of T frames for each of B different videos. Padding frames are 0 and masked False."""

    rows: list[int]                 # of the reader
    video_ids: list[str]
    captions: list[str]
    frames_KBTHXC: Tensor           # uint8
    frame_mask_BT: Tensor           # bool


@dataclass(frozen=True)
class EvalBatch:
    """T frames of each of B clips, in the reader's order. Padding frames are 0 and masked False."""

    rows: list[int]
    video_ids: list[str]
    frames_BTHXC: Tensor            # uint8
    frame_mask_BT: Tensor           # bool


class ShardReader:
    """Random access to the clips of one split.

    `clips` holds each clip's record as the shard has it: video_id, captions, path (of the video the frames came from;
    clips of one video share it), start_s, end_s, times_s (of each stored frame, seconds into the file), tags.
    The reader keeps no file open, so it may be used from threads, after a fork, and be pickled.

    Raises: DataError when the index or a shard is missing, cut short, or one does not belong to the other, and when
    the split is unknown or empty.
    """

    def __init__(self, shards_dir: str | Path, split: str):
        self.shards_dir = Path(shards_dir)
        self.split = split
        table = _read_index(self.shards_dir / "index.parquet", split)
        self._shard_names: list[str] = table["shard"].to_pylist()
        self._first_frame, self._offsets = _ragged(table["frame_offsets"])
        firsts, self._sizes = _ragged(table["frame_sizes"])
        if not np.array_equal(self._first_frame, firsts) or (np.diff(firsts) == 0).any():
            raise DataError(f"{self.shards_dir / 'index.parquet'}: need an offset and a size for each frame of each "
                            f"clip, got {len(self._offsets)} and {len(self._sizes)}. {_MAKE_AGAIN}")
        self.num_stored = np.diff(self._first_frame)    # frames of each clip
        self.clips: list[dict[str, Any]] = self._read_clips(table)
        height, width, *_ = self._header(0)
        self.frame_shape = (height, width, 3)

    def __len__(self) -> int:
        return len(self._shard_names)

    def frames(self, row: int, which: Sequence[int]) -> np.ndarray:
        """Decode the stored frames `which` of a clip: uint8 [T,H,X,3], RGB, in the order asked for.

        Raises: DataError naming shard and clip when a frame cannot be decoded; IndexError for a frame not stored.
        """
        out_THXC = np.empty((len(which), *self.frame_shape), np.uint8)
        self.read_into(row, which, list(out_THXC))
        return out_THXC

    def read_into(self, row: int, which: Sequence[int], slots_HXC: Sequence[np.ndarray]) -> None:
        """Decode stored frame `which[i]` into the contiguous uint8 array `slots_HXC[i]`; each frame is decoded once."""
        first, stored = int(self._first_frame[row]), int(self.num_stored[row])
        done: dict[int, np.ndarray] = {}
        handle = self._open(self._shard_names[row])
        try:
            for frame, slot_HXC in zip(which, slots_HXC, strict=True):
                if not 0 <= frame < stored:
                    raise IndexError(f"clip {self.clips[row]['video_id']}: need a frame below {stored}, got {frame}")
                if frame in done:
                    slot_HXC[:] = done[frame]
                    continue
                data = os.pread(handle, self._sizes[first + frame], self._offsets[first + frame])
                self._decode(row, frame, data, slot_HXC)
                done[frame] = slot_HXC
        finally:
            os.close(handle)

    def _decode(self, row: int, frame: int, data: bytes, slot_HXC: np.ndarray) -> None:
        # simplejpeg gives Pillow's pixels (both use libjpeg-turbo): 4x faster at 32 pixels, 1.7x at 224
        try:
            shape = simplejpeg.decode_jpeg(data, buffer=slot_HXC).shape
        except ValueError as error:
            raise self._broken_frame(row, frame, str(error)) from error
        if shape != self.frame_shape:
            raise self._broken_frame(row, frame, f"{shape[1]}x{shape[0]} pixels")

    def _broken_frame(self, row: int, frame: int, got: str) -> DataError:
        size = f"{self.frame_shape[1]}x{self.frame_shape[0]}"
        return DataError(f"{self.shards_dir / self._shard_names[row]}: need a {size} JPEG as frame {frame} of clip "
                         f"{self.clips[row]['video_id']}, got {got}. {_MAKE_AGAIN}")

    def _header(self, row: int) -> tuple:
        handle = self._open(self._shard_names[row])
        try:
            first = self._first_frame[row]
            return simplejpeg.decode_jpeg_header(os.pread(handle, self._sizes[first], self._offsets[first]))
        except ValueError as error:
            raise DataError(f"{self.shards_dir / self._shard_names[row]}: need a JPEG as frame 0 of clip "
                            f"{self.clips[row]['video_id']}, got {error}. {_MAKE_AGAIN}") from error
        finally:
            os.close(handle)

    def _open(self, shard: str) -> int:
        path = self.shards_dir / shard
        try:
            return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise DataError(f"{path}: need the shard that index.parquet names, got: {error.strerror}. "
                            f"{_MAKE_AGAIN}") from error

    def _read_clips(self, table) -> list[dict[str, Any]]:
        """Read each clip's JSON, which also proves that index and shards belong together."""
        clips: list[dict[str, Any]] = [{}] * len(self)
        rows_of: dict[str, list[int]] = {}
        for row, shard in enumerate(self._shard_names):
            rows_of.setdefault(shard, []).append(row)
        video_ids, starts = table["video_id"].to_pylist(), table["json_offset"].to_pylist()
        sizes = table["json_size"].to_pylist()
        ends = np.maximum.reduceat(self._offsets + self._sizes, self._first_frame[:-1])
        for shard, rows in rows_of.items():
            handle = self._open(shard)
            try:
                needed, found = max(int(ends[row]) for row in rows), os.fstat(handle).st_size
                if found < needed:
                    raise DataError(f"{self.shards_dir / shard}: need at least {needed} bytes, got {found}: "
                                    f"it was cut short. {_MAKE_AGAIN}")
                for row in rows:
                    data = os.pread(handle, sizes[row], starts[row])
                    clips[row] = self._parse_clip(shard, video_ids[row], data, int(self.num_stored[row]))
            finally:
                os.close(handle)
        return clips

    def _parse_clip(self, shard: str, video_id: str, data: bytes, num_stored: int) -> dict[str, Any]:
        try:
            clip = json.loads(data)
            found_id, num_times = clip["video_id"], len(clip["times_s"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.shards_dir / shard}: need the JSON of clip {video_id} where index.parquet says, "
                            f"got other bytes: the two do not belong together. {_MAKE_AGAIN}") from error
        if found_id != video_id or num_times != num_stored:
            raise DataError(f"{self.shards_dir / shard}: need clip {video_id} with {num_stored} frames as in "
                            f"index.parquet, got clip {found_id} with {num_times}. {_MAKE_AGAIN}")
        return clip


def _ragged(column) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as (place of each row's first value and, last, the number of values; all values)."""
    lists = column.combine_chunks()
    offsets = np.asarray(lists.offsets, dtype=np.int64)
    return offsets - offsets[0], np.asarray(lists.flatten(), dtype=np.int64)


def _read_index(path: Path, split: str):
    try:
        table = pq.read_table(path, columns=["split", *_INDEX_COLUMNS])
    except FileNotFoundError as error:
        raise DataError(f"{path}: need the index of the shards, got no file. Run `hcmi shards` first.") from error
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: need an index as `hcmi shards` writes it, got: {' '.join(str(error).split())}. "
                        f"{_MAKE_AGAIN}") from error
    chosen = table.filter(pc.equal(table["split"], split))
    if len(chosen) == 0:
        known = ", ".join(sorted(table["split"].unique().to_pylist())) or "none: every clip was skipped"
        raise DataError(f"{path}: need clips of the split {split!r}, got splits: {known}. "
                        f"Name another split, or give the data set one and run `hcmi shards`.")
    return chosen


class TrainLoader:
    """Batches for contrastive training. Iterating gives the rest of the current epoch, then moves on to the next.

    `batch_size` is the global one: rank r of `world_size` gets the r-th equal part of each global batch. No video
    occurs twice in a global batch. Clips that do not fill a whole batch are left out, others each epoch; when there
    are fewer videos than `batch_size` all batches are smaller, `batch_size` says by how much, and a warning is given.
    Each epoch takes the next of a clip's captions, from a random first one.

    Order, captions and frames are pure functions of (seed, epoch, batch number): neither ranks nor workers nor where
    an earlier run stopped change them. Workers decode whole batches ahead and hand them over in shared memory.

    Raises: DataError when a clip has no caption or there are fewer videos than ranks; ConfigError when `batch_size`
    cannot be split over the ranks.
    """

    def __init__(self, reader: ShardReader, batch_size: int, num_frames: int, views: int = 1, seed: int = 0,
                 rank: int = 0, world_size: int = 1, num_workers: int = 0):
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        for clip in reader.clips:
            if not clip["captions"]:
                raise DataError(f"clip {clip['video_id']} ({clip['path']}): need a caption to train with, got none. "
                                f"Caption it, or move it to another split.")
        if batch_size % world_size:
            raise ConfigError(f"train.batch_size: need a multiple of the {world_size} ranks, got {batch_size}. "
                              f"Try {batch_size + world_size - batch_size % world_size}.")
        self.reader, self.rank, self.world_size = reader, rank, world_size
        videos = np.unique([clip["path"] for clip in reader.clips], return_inverse=True)[1]
        self.batch_size = self._fit(batch_size, num_videos=int(videos.max()) + 1)
        self._order = TrainOrder(videos, np.array([len(clip["captions"]) for clip in reader.clips]),
                                 reader.num_stored, self.batch_size, num_frames, views, seed)
        self._epoch, self._batch = 0, 0
        self._pipeline = _Pipeline(reader, num_workers)

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
            self._epoch, self._batch = epoch, 0

    def __iter__(self) -> Iterator[TrainBatch]:
        plans = self._order.plans(self._epoch, self._batch, self.rank, self.world_size)
        for plan, frames_KBTHXC, frame_mask_BT in self._pipeline.run(plans):
            self._batch += 1
            clips = [self.reader.clips[row] for row in plan.rows]
            captions = [clip["captions"][number] for clip, number in zip(clips, plan.captions, strict=True)]
            yield TrainBatch(plan.rows.tolist(), [clip["video_id"] for clip in clips], captions, frames_KBTHXC,
                             frame_mask_BT)
        self._epoch, self._batch = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where iterating stands: of the current epoch, `batch` batches have been handed out."""
        return {"epoch": self._epoch, "batch": self._batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the very same batches, on any number of ranks and workers.

        Raises: ConfigError when the state is from a loader whose batches differ from this one's.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise ConfigError(f"loader state: need {key}={value!r}, got {state.get(key)!r}. "
                                  f"Continue with the data and parameters it was made with, or start training anew.")
        self._epoch, self._batch = state["epoch"], state["batch"]

    def _identity(self) -> dict[str, Any]:
        clips = [[clip["video_id"], clip["path"], clip["captions"]] for clip in self.reader.clips]
        order = self._order
        return {"seed": order.seed, "batch_size": self.batch_size, "num_frames": order.num_frames,
                "views": order.views, "clips_sha256": hashlib.sha256(json.dumps(clips).encode()).hexdigest()}


def eval_batches(reader: ShardReader, batch_size: int, num_frames: int, rank: int = 0, world_size: int = 1,
                 num_workers: int = 0) -> Iterator[EvalBatch]:
    """Each clip once, in the reader's order, the middle frame of each segment.

    Rank r gets the r-th of `world_size` contiguous parts, whose sizes differ by one at most, so the ranks' clips one
    after the other are the split. The last batch may be smaller.
    """
    for plan, frames_KBTHXC, frame_mask_BT in _Pipeline(reader, num_workers).run(
            eval_plans(reader.num_stored, batch_size, num_frames, rank, world_size)):
        video_ids = [reader.clips[row]["video_id"] for row in plan.rows]
        yield EvalBatch(plan.rows.tolist(), video_ids, frames_KBTHXC[0], frame_mask_BT)


class _Decoder(Dataset):
    """A plan's frames [K,B,T,H,X,3] and mask [B,T]."""

    def __init__(self, reader: ShardReader):
        self._reader = reader

    def __getitem__(self, plan: Plan) -> tuple[Plan, tuple[Tensor, Tensor] | DataError]:
        try:
            return plan, self._decode(plan)
        except DataError as error:      # as a value: torch would put the worker's traceback into the message
            return plan, error

    def _decode(self, plan: Plan) -> tuple[Tensor, Tensor]:
        frames_KBTHXC = torch.empty((*plan.picks_KBT.shape, *self._reader.frame_shape), dtype=torch.uint8)
        slots_KBTHXC = frames_KBTHXC.numpy()
        slots_KBTHXC[plan.picks_KBT < 0] = 0
        for number, row in enumerate(plan.rows.tolist()):
            picks_KT, slots_KTHXC = plan.picks_KBT[:, number], slots_KBTHXC[:, number]
            view, place = np.nonzero(picks_KT >= 0)
            self._reader.read_into(row, picks_KT[view, place].tolist(),
                                   [slots_KTHXC[k, t] for k, t in zip(view, place, strict=True)])
        return frames_KBTHXC, torch.from_numpy(plan.picks_KBT[0] >= 0)


class _Pipeline:
    """Decodes plans in order, here or in worker processes that live as long as this object."""

    def __init__(self, reader: ShardReader, num_workers: int):
        self._decoder, self._relay, self._workers = _Decoder(reader), _Relay(), None
        if num_workers:
            # a generator of its own: DataLoader draws from the global one, which would change what a model draws
            self._workers = DataLoader(self._decoder, batch_size=None, sampler=self._relay, num_workers=num_workers,
                                       persistent_workers=True, collate_fn=_unchanged, generator=torch.Generator())

    def run(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Tensor, Tensor]]:
        self._relay.plans = plans
        decoded_plans = map(self._decoder.__getitem__, plans) if self._workers is None else self._workers
        for plan, decoded in decoded_plans:
            if isinstance(decoded, DataError):
                try:
                    raise decoded
                finally:
                    del decoded     # else error and frame hold each other, and the workers are stopped late: 5 s each
            yield plan, *decoded


class _Relay(Sampler):
    """The sampler of a DataLoader that is made once: gives the plans of the epoch at hand."""

    plans: Iterable[Plan] = ()

    def __iter__(self) -> Iterator[Plan]:
        return iter(self.plans)


def _unchanged(item):
    return item
