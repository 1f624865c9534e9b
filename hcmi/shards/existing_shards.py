"""The shards that an earlier run wrote: their frames are used again instead of being decoded again."""

import json
import os
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hcmi.errors import DataError
from hcmi.shards.shard_index import INDEX
from hcmi.video import Decoded

REMOVE = "Remove the folder and run `hcmi shards` again."
_LIGHT = [name for name in INDEX.names if name not in ("frame_offsets", "frame_sizes")]


class ExistingShards:
    """The shards in a folder by frames key. A tar is trusted when its length is what the index says.

    A folder without a readable index counts as empty.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: pq.ParquetFile | None = None
        self._keys = np.array([], "S")
        try:
            self._file = pq.ParquetFile(folder / "index.parquet")
            light = self._file.read(columns=_LIGHT)
        except (OSError, pa.ArrowException, KeyError):
            return
        if not self._file.schema_arrow.equals(INDEX) or not len(light):
            return
        names = light["shard"].to_numpy(zero_copy_only=False)
        self._first_rows = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])     # of each shard
        last_rows = np.r_[self._first_rows[1:], len(names)] - 1
        self._shard_of_row = np.repeat(np.arange(len(last_rows)), np.diff(np.r_[self._first_rows, len(names)]))
        ends = light["json_offset"].to_numpy() - tarfile.BLOCKSIZE + light["num_bytes"].to_numpy()
        whole = np.array([_is_whole(folder / names[row], int(ends[row])) for row in last_rows], bool)
        keys = light["key"].to_numpy(zero_copy_only=False).astype("S")
        usable = np.flatnonzero(whole[self._shard_of_row])
        self._rows = usable[np.argsort(keys[usable], kind="stable")]
        self._keys = keys[self._rows]

    def find(self, key: str) -> tuple[int, int] | None:
        """The number of a shard that has the key, and the row within it."""
        at = int(np.searchsorted(self._keys, np.bytes_(key.encode())))
        if at == len(self._keys) or self._keys[at] != key.encode():
            return None
        row = self._rows[at]
        shard = int(self._shard_of_row[row])
        return shard, int(row - self._first_rows[shard])

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Of each key, whether a shard has it."""
        if not len(self._keys):
            return np.zeros(len(keys), bool)
        return self._keys[np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)] == keys

    def shard(self, number: int) -> "ExistingShard":
        """Raises: DataError when its rows of the index are damaged."""
        assert self._file is not None, "find gave no shard"
        try:
            table = self._file.read_row_group(number)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.folder}/index.parquet: need the index as it was written, got: {error}. {REMOVE}"
                            ) from error
        return ExistingShard(self.folder / table["shard"][0].as_py(), table)


@dataclass(frozen=True)
class ExistingShard:
    """A tar and its rows of the index."""

    path: Path
    table: pa.Table

    @cached_property
    def rows(self) -> list[dict]:
        return self.table.to_pylist()

    @cached_property
    def contents(self) -> list[tuple[str, str, str, str]]:
        """What determines the bytes of the tar: split, video_id, frames key and record hash of each clip."""
        return [(row["split"], row["video_id"], row["key"], row["record"]) for row in self.rows]

    def has_members(self, row: int, video_id: str, record_hash: str) -> bool:
        """Whether the members of a clip are those of this name and record, byte for byte."""
        found = self.rows[row]
        return (found["video_id"], found["record"]) == (video_id, record_hash)

    def read_members(self, row: int) -> bytes:
        """All of a clip's members, with their headers."""
        found = self.rows[row]
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), found["num_bytes"], found["json_offset"] - tarfile.BLOCKSIZE)

    def read_frames(self, row: int) -> Decoded[tuple[bytes, ...]]:
        """The frames of a clip, as files. Raises: DataError when its JSON is damaged."""
        found = self.rows[row]
        with open(self.path, "rb") as file:
            record = os.pread(file.fileno(), found["json_size"], found["json_offset"])
            jpegs = tuple(os.pread(file.fileno(), size, offset)
                          for size, offset in zip(found["frame_sizes"], found["frame_offsets"], strict=True))
        try:
            facts = json.loads(record)
            return Decoded(jpegs, tuple(facts["times_s"]), facts["decoder"], facts["num_decodable"], facts["width"],
                           facts["height"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}: need the JSON of clip {found['video_id']} as it was written, got damaged "
                            f"bytes. {REMOVE}") from error


def _is_whole(path: Path, members_bytes: int) -> bool:
    """Whether a tar has its members and what closes it: two empty blocks, then zeros up to a whole record."""
    size_bytes = -(-(members_bytes + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False
