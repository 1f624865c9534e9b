"""The manifest as the `shards` stage needs it: every clip's frames key, and the shard that it belongs in.

A clip's shard depends only on the hash of its name: the clips are the leaves of a binary tree over the bits of the
hash, and a leaf with more than `max_clips_per_shard` clips is split. An added clip therefore changes one shard and
moves no other clip.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hcmi.config import ShardsConfig
from hcmi.dataset import read_manifest_table
from hcmi.errors import DecodeError, shown
from hcmi.shards.shard_index import KEY_CHARACTERS
from hcmi.types import SPLITS, Clip, Skip
from hcmi.video import CLIP_SQUARE, Square

KEY_VERSION = 3         # raise it when the same video and parameters give other frames than before
SLICE = 1000            # rows that are turned into `Clip`s at a time


@dataclass(frozen=True)
class ClipTable:
    """The rows of the manifest and their frames keys, as arrays, because there may be a million rows.

    A frames key stands for video bytes, segment and parameters. Clips with equal keys have equal frames, which are
    decoded once.
    """

    table: pa.Table
    keys: np.ndarray            # S32 [N], sorted and unique
    key_of_row: np.ndarray      # int [rows], an index into `keys`
    first_row: np.ndarray       # int [N], the first row that has the key

    def __len__(self) -> int:
        return self.table.num_rows

    def key(self, index: int) -> str:
        return self.keys[index].decode()

    def clips(self, rows: np.ndarray) -> list[Clip]:
        return [Clip.from_row(row) for row in self.table.take(pa.array(rows)).to_pylist()]

    def iter_clips(self, rows: np.ndarray) -> Iterator[tuple[int, Clip]]:
        """Each row with its clip; only a slice of them is in memory at once."""
        for start in range(0, len(rows), SLICE):
            part = rows[start:start + SLICE]
            yield from zip(part.tolist(), self.clips(part), strict=True)


def read_clip_table(manifest_path: str | Path, config: ShardsConfig, square: Square = CLIP_SQUARE) -> ClipTable:
    """Raises: DataError when the file is missing, damaged or not a manifest."""
    table = read_manifest_table(manifest_path)
    settings = f"{KEY_VERSION} {config.size} {config.num_frames} {config.quality}"
    if square != CLIP_SQUARE:       # so that shards of earlier versions are used again
        settings += f" {' '.join(square)}"
    keys = []
    for batch in table.select(["sha256", "start_s", "end_s"]).to_batches(10_000):
        for content in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest = hashlib.sha256(f"{list(content)} {settings}".encode()).hexdigest()
            keys.append(digest[:KEY_CHARACTERS].encode())
    unique, first_row, key_of_row = np.unique(np.array(keys, f"S{KEY_CHARACTERS}"), return_index=True,
                                              return_inverse=True)
    return ClipTable(table, unique, key_of_row, first_row)


def assign_shards(table: pa.Table, max_clips: int) -> list[tuple[str, np.ndarray]]:
    """The split and the rows of each shard, in the order in which shards are numbered."""
    hashes = [int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8], "big")
              for batch in table.select(["video_id"]).to_batches(10_000) for video_id in batch["video_id"].to_pylist()]
    digests = np.array(hashes, np.uint64)
    return [(split, rows) for split in SPLITS
            for rows in split_by_hash(digests, np.flatnonzero(pc.equal(table["split"], split)), max_clips)]


def split_by_hash(digests: np.ndarray, rows: np.ndarray, max_rows: int) -> list[np.ndarray]:
    """Cut `rows` into groups of at most `max_rows`, by the leading bits of `digests[row]` (uint64).

    The groups depend only on the set of digests. One more row changes one group, or splits it. Rows with equal digests
    stay together. Each group keeps the order of `rows`.
    """
    groups = []
    waiting = [(rows, 63)] if len(rows) else []
    while waiting:
        group, bit = waiting.pop()
        if len(group) <= max_rows or bit < 0:
            groups.append(group)
            continue
        upper = (digests[group] >> np.uint64(bit) & np.uint64(1)).astype(bool)
        waiting += [(half, bit - 1) for half in (group[upper], group[~upper]) if len(half)]
    return groups


@dataclass(frozen=True)
class Failures:
    """The clips that could not be decoded, and why."""

    clip_table: ClipTable
    errors: Mapping[int, DecodeError]       # by index into `clip_table.keys`

    def failed(self, rows: np.ndarray) -> np.ndarray:
        """bool [rows]"""
        failed = np.zeros(len(self.clip_table.keys), bool)
        failed[list(self.errors)] = True
        return failed[self.clip_table.key_of_row[rows]]

    def rows(self) -> np.ndarray:
        return np.flatnonzero(self.failed(np.arange(len(self.clip_table))))

    def reasons(self) -> Counter[str]:
        """How many clips failed for each reason."""
        return Counter(self.errors[index].reason for index in self.clip_table.key_of_row[self.rows()].tolist())

    def skips(self) -> Iterator[Skip]:
        for row, clip in self.clip_table.iter_clips(self.rows()):
            error = self.errors[int(self.clip_table.key_of_row[row])]
            yield Skip(clip.video_id, shown(clip.path), "shards", error.reason, str(error))
