"""Random access to the clips in the shards, by their index.

The shards are ordinary WebDataset tars and any sequential reader of those works on them too; WebDataset 1.x has no
random access, so `data/shards/index.parquet` says where each clip's record and frames lie.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
from pyarrow import ArrowException

from hcmi.errors import DataError
from hcmi.shards.shard_file import parse_record
from hcmi.types import Clip
from hcmi.video import Decoded

_INDEX_COLUMNS = ["shard", "video_id", "json_offset", "json_size", "frame_offsets", "frame_sizes"]
_ONE_READ = 1 << 16     # bytes up to which it is quicker to read what lies between frames than to read again
_MAKE_AGAIN = "Run `hcmi shards` again, or copy the whole folder again."


class ShardReader:
    """Random access to the clips of one split.

    `clips` are in the shards' order, and so is `stored`: what is known of each clip's frames, which stay on disk.
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
        self.clips, self.stored = self._read_clips(table)
        height, width, *_ = self._header(0)
        self.frame_shape = (height, width, 3)

    def __len__(self) -> int:
        return len(self._shard_names)

    def frames(self, row: int, which: Sequence[int]) -> np.ndarray:
        """Decode the stored frames `which` of a clip: uint8 [T,H,X,3], RGB, in the order asked for.

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
        """`frames` into memory that is there, each frame decoded once; -1 leaves a slot black."""
        jpegs = self._read(row, set(which) - {-1})
        done: dict[int, np.ndarray] = {-1: np.zeros(self.frame_shape, np.uint8)} if -1 in which else {}
        for frame, slot_HXC in zip(which, slots_THXC, strict=True):
            if frame in done:
                slot_HXC[:] = done[frame]
                continue
            # simplejpeg gives Pillow's pixels (both use libjpeg-turbo): 4x faster at 32 pixels, 1.7x at 224
            try:
                shape = simplejpeg.decode_jpeg(jpegs[frame], buffer=slot_HXC).shape
            except ValueError as error:
                raise self._broken_frame(row, frame, str(error)) from error
            if shape != self.frame_shape:
                raise self._broken_frame(row, frame, f"{shape[1]}x{shape[0]} pixels")
            done[frame] = slot_HXC

    def _read(self, row: int, frames: set[int]) -> dict[int, bytes | memoryview]:
        """The bytes of some stored frames."""
        first, last = self._first_frame[row:row + 2].tolist()
        offsets, sizes = self._offsets[first:last].tolist(), self._sizes[first:last].tolist()
        start = min([offsets[frame] for frame in frames])
        end = max([offsets[frame] + sizes[frame] for frame in frames])
        handle = self._open(self._shard_names[row])
        try:
            if end - start > _ONE_READ:
                return {frame: os.pread(handle, sizes[frame], offsets[frame]) for frame in frames}
            data = memoryview(os.pread(handle, end - start, start))
        finally:
            os.close(handle)
        return {frame: data[offsets[frame] - start:offsets[frame] - start + sizes[frame]] for frame in frames}

    def _broken_frame(self, row: int, frame: int, got: str) -> DataError:
        size = f"{self.frame_shape[1]}x{self.frame_shape[0]}"
        return DataError(f"{self.shards_dir / self._shard_names[row]}: need a {size} JPEG as frame {frame} of clip "
                         f"{self.clips[row].video_id}, got {got}. {_MAKE_AGAIN}")

    def _header(self, row: int) -> tuple:
        handle = self._open(self._shard_names[row])
        try:
            first = self._first_frame[row]
            return simplejpeg.decode_jpeg_header(os.pread(handle, self._sizes[first], self._offsets[first]))
        except ValueError as error:
            raise DataError(f"{self.shards_dir / self._shard_names[row]}: need a JPEG as frame 0 of clip "
                            f"{self.clips[row].video_id}, got {error}. {_MAKE_AGAIN}") from error
        finally:
            os.close(handle)

    def _open(self, shard: str) -> int:
        path = f"{self.shards_dir}/{shard}"
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: need the shard that index.parquet names, got: {error.strerror}. "
                            f"{_MAKE_AGAIN}") from error

    def _read_clips(self, table) -> tuple[list[Clip], list[Decoded[None]]]:
        """Read each clip's JSON, which also proves that index and shards belong together."""
        found: dict[int, tuple[Clip, Decoded[None]]] = {}
        rows_of: dict[str, list[int]] = {}
        for row, shard in enumerate(self._shard_names):
            rows_of.setdefault(shard, []).append(row)
        video_ids, starts = table["video_id"].to_pylist(), table["json_offset"].to_pylist()
        sizes = table["json_size"].to_pylist()
        ends = np.maximum.reduceat(self._offsets + self._sizes, self._first_frame[:-1])
        for shard, rows in rows_of.items():
            handle = self._open(shard)
            try:
                needed, size = max(int(ends[row]) for row in rows), os.fstat(handle).st_size
                if size < needed:
                    raise DataError(f"{self.shards_dir / shard}: need at least {needed} bytes, got {size}: "
                                    f"it was cut short. {_MAKE_AGAIN}")
                for row in rows:
                    data = os.pread(handle, sizes[row], starts[row])
                    found[row] = self._parse_clip(shard, video_ids[row], data, int(self.num_stored[row]))
            finally:
                os.close(handle)
        return [found[row][0] for row in range(len(self))], [found[row][1] for row in range(len(self))]

    def _parse_clip(self, shard: str, video_id: str, data: bytes, num_stored: int) -> tuple[Clip, Decoded[None]]:
        try:
            clip, stored = parse_record(data)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.shards_dir / shard}: need the JSON of clip {video_id} where index.parquet says, "
                            f"got other bytes: the two do not belong together. {_MAKE_AGAIN}") from error
        if clip.video_id != video_id or len(stored.times_s) != num_stored:
            raise DataError(f"{self.shards_dir / shard}: need clip {video_id} with {num_stored} frames as in "
                            f"index.parquet, got clip {clip.video_id} with {len(stored.times_s)}. {_MAKE_AGAIN}")
        return clip, stored


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
