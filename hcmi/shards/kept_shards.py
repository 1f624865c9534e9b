"""The shards of an earlier run, without the clips that an earlier version may have decoded to other frames.

Earlier versions spread the frames of every clip by number, which is wrong where the frame rate changes. The JSON of a
clip shows where that may be so. Such clips are decoded again, once: a note names the index that has been checked. A
higher KEY_VERSION would decode every clip again, and train every model again, since the keys are in the index.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from hcmi.shards.existing_shards import ExistingShard, ExistingShards
from hcmi.shards.shard_index import INDEX

ROUNDING_S = 2e-3       # of the times of frames, in nearly all files
BLANK = ""              # a frames key that no clip has


class KeptShards(ExistingShards):
    """As `ExistingShards`. `note`: what `note_checked` wrote; unless it is about these shards, clips are checked."""

    def __init__(self, folder: Path, note: Path):
        super().__init__(folder)
        self._doubtful = np.array([], np.int64)         # rows of the index
        if len(self._keys) and not _is_checked(folder, note):
            self._doubtful = np.flatnonzero([not is_even(facts) for number in range(len(self._first_rows))
                                             for facts in _facts(self.shard(number))])
            kept = ~np.isin(self._rows, self._doubtful)
            self._rows, self._keys = self._rows[kept], self._keys[kept]

    def shard(self, number: int) -> ExistingShard:
        """With `BLANK` keys of the clips that are left out. Raises: DataError when its rows are damaged."""
        shard = super().shard(number)
        blank = np.isin(self._first_rows[number] + np.arange(len(shard.table)), self._doubtful)
        if not blank.any():
            return shard
        keys = [BLANK if left_out else key for key, left_out in zip(shard.table["key"].to_pylist(), blank, strict=True)]
        place = INDEX.get_field_index("key")
        return ExistingShard(shard.path, shard.table.set_column(place, INDEX.field(place), pa.array(keys)))


def note_checked(folder: Path, note: Path) -> None:
    """Remember that this version chose, or checked, the frames of the shards in `folder`, wherever it is moved."""
    note.write_text(_index_hash(folder), encoding="utf-8")


def is_even(facts: dict) -> bool:
    """Whether the JSON of a clip is that of a constant frame rate. [ours]

    The stored frames then begin where they must, and all frames together take as long as the clip, up to half of the
    time that a stored one stands for.
    """
    try:
        times_T, count = np.array(facts["times_s"], float), int(facts["num_decodable"])
        seconds = float(facts.get("duration_s", facts["end_s"] - facts["start_s"]))
    except (KeyError, TypeError, ValueError):
        return False
    num_frames = len(times_T)
    numbers_T = (2 * np.arange(num_frames) + 1) * count // max(2 * num_frames, 1)
    if num_frames < 2 or numbers_T[-1] == numbers_T[0]:
        return False
    gap_s = (times_T[-1] - times_T[0]) / (numbers_T[-1] - numbers_T[0])
    expected_T = times_T[0] + (numbers_T - numbers_T[0]) * gap_s
    return bool(np.abs(times_T - expected_T).max() <= ROUNDING_S
                and abs(count * gap_s - seconds) <= max(gap_s, seconds / (2 * num_frames)) + ROUNDING_S)


def _facts(shard: ExistingShard) -> list[dict]:
    """The JSON of each clip; nothing where it cannot be read."""
    found: list[dict] = []
    try:
        with open(shard.path, "rb") as file:
            for row in shard.rows:
                try:
                    found.append(json.loads(os.pread(file.fileno(), row["json_size"], row["json_offset"])))
                except ValueError:
                    found.append({})
    except OSError:         # it is not used then
        return [{}] * len(shard.rows)
    return found


def _is_checked(folder: Path, note: Path) -> bool:
    try:
        return note.read_text(encoding="utf-8") == _index_hash(folder)
    except (OSError, ValueError):
        return False


def _index_hash(folder: Path) -> str:
    with open(folder / "index.parquet", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
