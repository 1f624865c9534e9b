"""Random access to the clips in the shards, by their index.

The shards are ordinary WebDataset tars, but WebDataset 1.x has no random access: `index.parquet` says where each clip's
record and frames are.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hcmi.errors import DataError
from hcmi.shards.shard_file import decode_into, jpeg_shape, parse_record
from hcmi.shards.shard_index import MAKE_AGAIN, read_split, read_square, unreadable
from hcmi.types import Clip
from hcmi.video import Decoded

_ONE_READ = 1 << 16     # bytes up to which it is faster to read the gap between frames than to read twice


class ShardReader:
    """Random access to the clips of one split, in a folder.

    `clips` are in the shards' order, and so is `stored`: what is known of each clip's frames, which stay on disk.
    The reader keeps no file open, so it may be used from threads, after a fork, and be pickled.

    Raises: DataError when the index or a shard is missing or cut short, when they do not belong together or are of an
    earlier version, and when the split is unknown or empty.
    """

    def __init__(self, shards_dir: str | Path, split: str):
        self.shards_dir = Path(shards_dir)
        self.split = split
        self.index = read_split(shards_dir, split)
        self.num_stored = self.index.num_stored         # frames of each clip
        self.clips, self.stored = self._read_records()
        self.frame_shape: tuple[int, ...] = self._read_frame_shape()     # (height, width, 3)
        self.square = read_square(shards_dir)           # how frames became square

    def __len__(self) -> int:
        return len(self.index)

    def frames(self, row: int, which: Sequence[int]) -> np.ndarray:
        """Decode the stored frames `which` of a clip: uint8 [T,H,X,3], RGB, in the order of `which`.

        Raises: DataError naming shard and clip when a frame cannot be decoded; IndexError for a frame not stored.
        """
        for frame in which:
            if not 0 <= frame < self.num_stored[row]:
                raise IndexError(f"clip {self.clips[row].video_id}: need a frame below {self.num_stored[row]}, "
                                 f"got {frame}")
        out_THXC = np.empty((len(which), *self.frame_shape), np.uint8)
        self.read_into(row, which, out_THXC)
        return out_THXC

    def read_into(self, row: int, which: Sequence[int], slots_THXC: np.ndarray) -> None:
        """As `frames`, into the caller's memory; -1 leaves a slot black. Each frame is decoded once."""
        stored = set(which) - {-1}
        jpegs = self._read_jpegs(row, stored) if stored else {}
        done: dict[int, np.ndarray] = {-1: np.zeros(self.frame_shape, np.uint8)} if -1 in which else {}
        for frame, slot_HXC in zip(which, slots_THXC, strict=True):
            if frame in done:
                slot_HXC[:] = done[frame]
                continue
            decode_into(jpegs[frame], slot_HXC, self._path(row), self.index.video_ids[row], frame)
            done[frame] = slot_HXC

    def _read_jpegs(self, row: int, frames: set[int]) -> dict[int, bytes | memoryview]:
        first, last = self.index.first_frames[row:row + 2].tolist()
        offsets = self.index.frame_offsets[first:last].tolist()
        sizes = self.index.frame_sizes[first:last].tolist()
        start = min([offsets[frame] for frame in frames])
        end = max([offsets[frame] + sizes[frame] for frame in frames])
        handle = self._open(row)
        try:
            if end - start > _ONE_READ:
                return {frame: os.pread(handle, sizes[frame], offsets[frame]) for frame in frames}
            data = memoryview(os.pread(handle, end - start, start))
        finally:
            os.close(handle)
        return {frame: data[offsets[frame] - start:offsets[frame] - start + sizes[frame]] for frame in frames}

    def _read_frame_shape(self) -> tuple[int, int, int]:
        handle = self._open(0)
        try:
            jpeg = os.pread(handle, self.index.frame_sizes[0], self.index.frame_offsets[0])
        finally:
            os.close(handle)
        return jpeg_shape(jpeg, self._path(0), self.index.video_ids[0])

    def _path(self, row: int) -> str:
        return f"{self.shards_dir}/{self.index.shard_names[row]}"

    def _open(self, row: int) -> int:
        try:
            return os.open(self._path(row), os.O_RDONLY)
        except OSError as error:
            raise unreadable(self.shards_dir, self.index.shard_names[row], "the shard that index.parquet names", error
                             ) from error

    def _read_records(self) -> tuple[list[Clip], list[Decoded[None]]]:
        """Read each clip's JSON, which also proves that index and shards belong together."""
        index = self.index
        rows_of_shard: dict[str, list[int]] = {}
        for row, name in enumerate(index.shard_names):
            rows_of_shard.setdefault(name, []).append(row)
        ends = np.maximum.reduceat(index.frame_offsets + index.frame_sizes, index.first_frames[:-1])
        found: dict[int, tuple[Clip, Decoded[None]]] = {}
        for rows in rows_of_shard.values():
            path, handle = self._path(rows[0]), self._open(rows[0])
            try:
                needed, size = max(int(ends[row]) for row in rows), os.fstat(handle).st_size
                if size < needed:
                    raise DataError(f"{path}: need at least {needed} bytes, got {size}: it was cut short. {MAKE_AGAIN}")
                for row in rows:
                    data = os.pread(handle, index.json_sizes[row], index.json_offsets[row])
                    found[row] = parse_record(data, path, index.video_ids[row], int(self.num_stored[row]))
            finally:
                os.close(handle)
        return [found[row][0] for row in range(len(self))], [found[row][1] for row in range(len(self))]
