"""The index of the shards, `index.parquet`: one row a clip, shard by shard, with the place of each member in its tar.

Index and tars are in a folder, or under a base URL from which webdataset reads them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from webdataset import gopen

from hcmi.errors import DataError
from hcmi.files import webdataset_url
from hcmi.types import SPLITS
from hcmi.video import CLIP_SQUARE, Square

KEY_CHARACTERS = 32     # of a frames key, and of the hash of a record
INDEX = pa.schema([
    ("split", pa.string()), ("shard", pa.string()), ("video_id", pa.string()),
    ("json_offset", pa.int64()), ("json_size", pa.int32()),
    ("frame_offsets", pa.list_(pa.int64())), ("frame_sizes", pa.list_(pa.int32())),
    ("num_bytes", pa.int64()),          # of all the clip's members, from json_offset - 512 on
    ("decoder", pa.string()),
    ("key", pa.string()),               # of the frames: video bytes, segment, parameters
    ("record", pa.string())])           # hash of what the manifest contributes to the JSON
MAKE_AGAIN = "Run `hcmi shards` again, or copy the whole folder again."
_FETCH_AGAIN = "Correct the address, or try again."
_EXIT_CODE = re.compile(r": exit (\d+)")      # as webdataset's `Pipe` reports it; negative: stopped by a signal
_SHARD_NAME = re.compile(r"[A-Za-z0-9_]+-\d+\.tar")
_COLUMNS = ["split", "shard", "video_id", "json_offset", "json_size", "frame_offsets", "frame_sizes"]


@dataclass(frozen=True)
class SplitIndex:
    """The rows of the index for one split: N clips in the shards' order, F frames in all."""

    shards: str                     # a folder, or a base URL
    split: str
    shard_names: list[str]          # of each clip
    video_ids: list[str]
    json_offsets: list[int]
    json_sizes: list[int]
    first_frames: np.ndarray        # int64 [N + 1]: clip n has the frames first_frames[n] to first_frames[n + 1]
    frame_offsets: np.ndarray       # int64 [F], bytes from the start of the tar
    frame_sizes: np.ndarray         # int64 [F], bytes

    def __len__(self) -> int:
        return len(self.video_ids)

    @property
    def num_stored(self) -> np.ndarray:
        """Frames of each clip."""
        return np.diff(self.first_frames)


def read_split(shards: str | Path, split: str) -> SplitIndex:
    """The index of one split.

    Raises: DataError when the index is missing or broken, and when the split is unknown or empty.
    """
    return _of_split(str(shards), _read(shards), split)


def read_splits(shards: str | Path) -> dict[str, SplitIndex]:
    """The index of every split that has clips, in the order of `SPLITS`.

    Raises: DataError when the index is missing or broken.
    """
    table = _read(shards)
    found = set(table["split"].unique().to_pylist())
    return {split: _of_split(str(shards), table, split) for split in SPLITS if split in found}


def read_square(shards: str | Path) -> Square:
    """How the frames in the shards became square, from stats.json; shards without it are as CLIP has them.

    Raises: DataError when it is damaged.
    """
    name = "stats.json"
    try:
        with open_shard(shards, name) as file:
            content = file.read()
    except (OSError, ValueError):
        return CLIP_SQUARE
    try:
        how, resample = json.loads(content or b"{}").get("square", CLIP_SQUARE)
    except (ValueError, AttributeError) as error:
        raise unreadable(shards, name, "the settings of the shards", error) from error
    return how, resample


def frame_keys(index: SplitIndex) -> list[str]:
    """What the stored frames of each clip depend on, as one word: video, segment, parameters and decoder."""
    with open_shard(index.shards, "index.parquet") as file:
        table = pq.read_table(pa.BufferReader(file.read()), columns=["split", "key", "decoder"])
    rows = table.filter(pc.equal(table["split"], index.split)).to_pylist()
    return [f"{row['key']}.{row['decoder']}" for row in rows]


def is_remote(shards: str | Path) -> bool:
    """Whether this is a base URL, and not a folder."""
    return re.match(r"pipe:|[a-z][a-z0-9+.-]*://", str(shards)) is not None


def open_shard(shards: str | Path, name: str) -> BinaryIO | Any:
    """Open the index or a tar for reading from front to back.

    Raises: OSError; ValueError for a kind of URL that webdataset cannot open.
    """
    place = f"{str(shards).rstrip('/')}/{name}"
    if not is_remote(shards):
        return open(place, "rb")
    return gopen(webdataset_url(place))


def unreadable(shards: str | Path, name: str, need: str, error: Exception, stream: Any = None) -> DataError:
    """One line for a file of the shards that cannot be read from its `stream`, which is closed."""
    try:
        if stream is not None:
            stream.close()
    except OSError as failed:       # a command that failed: the reason why too few bytes came
        error = failed if _EXIT_CODE.search(str(failed)) else error
    if code := _EXIT_CODE.search(str(error)):
        got = f"exit code {code[1]} of the command that reads it"
    else:
        got = getattr(error, "strerror", None) or str(error.args[0])    # webdataset adds objects to `args`
    next_step = _FETCH_AGAIN if is_remote(shards) else MAKE_AGAIN
    return DataError(f"{shards}/{name}: need {need}, got: {' '.join(got.split())}. {next_step}")


def _read(shards: str | Path) -> pa.Table:
    name = "index.parquet"
    try:
        with open_shard(shards, name) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise DataError(f"{shards}/{name}: need the index of the shards, got no file. Run `hcmi shards` first."
                        ) from error
    except (OSError, ValueError) as error:
        raise unreadable(shards, name, "the index of the shards", error) from error
    try:
        return pq.read_table(pa.BufferReader(content), columns=_COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shards}/{name}: need an index as `hcmi shards` writes it, got: "
                        f"{' '.join(str(error).split())}. {MAKE_AGAIN}") from error


def _of_split(shards: str, table: pa.Table, split: str) -> SplitIndex:
    rows = table.filter(pc.equal(table["split"], split))
    if len(rows) == 0:
        known = ", ".join(sorted(table["split"].unique().to_pylist())) or "none: every clip was skipped"
        raise DataError(f"{shards}/index.parquet: need clips of the split {split!r}, got splits: {known}. "
                        f"Name another split, or give the data set one and run `hcmi shards`.")
    # a name becomes part of a path, of a URL or, after `pipe:`, of a command
    if wrong := next((name for name in rows["shard"].unique().to_pylist() if not _SHARD_NAME.fullmatch(name)), None):
        raise DataError(f"{shards}/index.parquet: need names of shards as `hcmi shards` gives them, got {wrong!r}. "
                        f"{MAKE_AGAIN}")
    first_frames, offsets = _ragged(rows["frame_offsets"])
    also_first, sizes = _ragged(rows["frame_sizes"])
    if not np.array_equal(first_frames, also_first) or (np.diff(first_frames) == 0).any():
        raise DataError(f"{shards}/index.parquet: need an offset and a size for each frame of each clip, got "
                        f"{len(offsets)} and {len(sizes)}. {MAKE_AGAIN}")
    return SplitIndex(shards, split, rows["shard"].to_pylist(), rows["video_id"].to_pylist(),
                      rows["json_offset"].to_pylist(), rows["json_size"].to_pylist(), first_frames, offsets, sizes)


def _ragged(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as (place of each row's first value and, last, the number of values; all values)."""
    lists = column.combine_chunks()
    offsets = np.asarray(lists.offsets, dtype=np.int64)
    return offsets - offsets[0], np.asarray(lists.flatten(), dtype=np.int64)
