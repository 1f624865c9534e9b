"""One shard: a tar and its rows of the index; and the shards of an earlier run, whose bytes are used again."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hcmi.shards.tar import BLOCK, clip_members, end_of_tar
from hcmi.types import Clip
from hcmi.video import Decoded

KEY_CHARACTERS = 32
Jpegs = Decoded[tuple[bytes, ...]]
INDEX = pa.schema([
    ("split", pa.string()), ("shard", pa.string()), ("video_id", pa.string()),
    ("json_offset", pa.int64()), ("json_size", pa.int32()),
    ("frame_offsets", pa.list_(pa.int64())), ("frame_sizes", pa.list_(pa.int32())),
    ("num_bytes", pa.int64()),          # of all members, from json_offset - 512 on
    ("decoder", pa.string()),
    ("key", pa.string()),               # of the frames: video bytes, segment, parameters
    ("record", pa.string())])           # hash of what the manifest contributes to the JSON
_LIGHT = [name for name in INDEX.names if name not in ("frame_offsets", "frame_sizes")]


class OldShards:
    """The shards that are there already, trusted when their files have the length that the index says."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: pq.ParquetFile | None = None
        self._keys = np.array([], f"S{KEY_CHARACTERS}")
        try:
            self._file = pq.ParquetFile(folder / "index.parquet")
            light = self._file.read(columns=_LIGHT)
        except (OSError, pa.ArrowException, KeyError):
            return
        if not self._file.schema_arrow.equals(INDEX):
            return
        names = light["shard"].to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.array([], int)
        ends = light["json_offset"].to_numpy() - BLOCK + light["num_bytes"].to_numpy()
        self._group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(names)]))
        self._first = starts
        last = np.r_[starts[1:], len(names)] - 1
        whole = np.array([_has_size(folder / names[row], int(ends[row])) for row in last], bool)
        keys = light["key"].to_numpy(zero_copy_only=False).astype(f"S{KEY_CHARACTERS}")
        good = np.flatnonzero(whole[self._group]) if len(names) else np.array([], int)
        order = good[np.argsort(keys[good], kind="stable")]
        self._keys, self._rows = keys[order], order

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Number of a shard that holds the key, and the row within it."""
        at = int(np.searchsorted(self._keys, np.bytes_(key)))
        if at == len(self._keys) or self._keys[at] != key:
            return None
        group = int(self._group[self._rows[at]])
        return group, int(self._rows[at] - self._first[group])

    def has(self, keys: np.ndarray) -> np.ndarray:
        if not len(self._keys):
            return np.zeros(len(keys), bool)
        return self._keys[np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)] == keys

    def shard(self, group: int) -> "OldShard":
        assert self._file is not None
        table = self._file.read_row_group(group)
        return OldShard(self.folder / table["shard"][0].as_py(), table.to_pylist(), table)


@dataclass
class OldShard:
    path: Path
    rows: list[dict[str, Any]]
    table: pa.Table


def _has_size(path: Path, members: int) -> bool:
    try:
        return path.stat().st_size == members + len(end_of_tar(members))
    except OSError:
        return False


def write_shard(path: Path, clips: Sequence[Clip], keys: Sequence[str], old: OldShards,
                decoded: Sequence[Callable[[], Jpegs]]) -> pa.Table:
    """Write the tar, or link an old one that has just these clips; returns its rows of the index.

    The caller sees to it that the bytes reach the disk.
    `keys` are the clips' content keys; `decoded[i]()` gives the frames of clip i when no old shard has its key.
    """
    records = [clip.to_row() for clip in clips]
    hashes = [hashlib.sha256(json.dumps(record).encode()).hexdigest()[:KEY_CHARACTERS] for record in records]
    found = [old.find(key.encode()) for key in keys]
    shards = {group: old.shard(group) for group in sorted({place[0] for place in found if place})}
    for shard in shards.values():
        if [(row["split"], row["video_id"], row["key"], row["record"]) for row in shard.rows] == [
                (clip.split, clip.video_id, key, digest)
                for clip, key, digest in zip(clips, keys, hashes, strict=True)]:
            _link(shard.path, path)
            names = pa.array([path.name] * len(clips))
            return shard.table.set_column(INDEX.get_field_index("shard"), INDEX.field("shard"), names)
    rows: list[dict[str, Any]] = []
    position = 0
    files = {group: open(shard.path, "rb") for group, shard in shards.items()}      # noqa: SIM115  closed below
    try:
        with open(path, "wb") as tar:
            for clip, key, digest, record, place, read in zip(clips, keys, hashes, records, found, decoded,
                                                              strict=True):
                if place:
                    content, row = _from_old(clip.video_id, record, digest, shards[place[0]].rows[place[1]],
                                             files[place[0]].fileno())
                else:
                    content, row = _pack(clip.video_id, record, read())
                tar.write(content)
                row |= {"split": clip.split, "shard": path.name, "video_id": clip.video_id, "key": key,
                        "record": digest, "json_offset": row["json_offset"] + position,
                        "frame_offsets": [offset + position for offset in row["frame_offsets"]]}
                rows.append(row)
                position += len(content)
            tar.write(end_of_tar(position))
    finally:
        for file in files.values():
            file.close()
    return pa.Table.from_pylist(rows, INDEX)


def _pack(video_id: str, record: dict[str, Any], clip: Jpegs) -> tuple[bytes, dict[str, Any]]:
    """A clip's members, and its part of the index with offsets from their start."""
    whole = {**record, "times_s": clip.times_s, "decoder": clip.decoder, "num_decodable": clip.num_decodable,
             "width": clip.width, "height": clip.height}
    encoded = json.dumps(whole, ensure_ascii=False).encode()
    content, offsets = clip_members(video_id, encoded, clip.frames)
    return content, {"json_offset": offsets[0], "json_size": len(encoded), "frame_offsets": offsets[1:],
                     "frame_sizes": [len(jpeg) for jpeg in clip.frames], "num_bytes": len(content),
                     "decoder": clip.decoder}


def parse_record(data: bytes) -> tuple[Clip, Decoded[None]]:
    """A clip and what is known of its frames, from the JSON that `_pack` wrote.

    Raises: ValueError, KeyError, TypeError when it is not such a JSON.
    """
    record = json.loads(data)
    return Clip.from_row(record), Decoded(None, tuple(record["times_s"]), record["decoder"], record["num_decodable"],
                                          record["width"], record["height"])


def _from_old(video_id: str, record: dict[str, Any], digest: str, row: dict[str, Any], handle: int
              ) -> tuple[bytes, dict[str, Any]]:
    """As `_pack`, from an old shard: the bytes as they are, or the frames with a new name or new captions."""
    start = row["json_offset"] - BLOCK
    if row["video_id"] == video_id and row["record"] == digest:
        part = {name: row[name] for name in ("json_size", "frame_sizes", "num_bytes", "decoder")}
        part["json_offset"] = BLOCK
        part["frame_offsets"] = [offset - start for offset in row["frame_offsets"]]
        return os.pread(handle, row["num_bytes"], start), part
    before = json.loads(os.pread(handle, row["json_size"], row["json_offset"]))
    jpegs = tuple(os.pread(handle, size, offset)
                  for size, offset in zip(row["frame_sizes"], row["frame_offsets"], strict=True))
    return _pack(video_id, record, Decoded(jpegs, tuple(before["times_s"]), before["decoder"],
                                           before["num_decodable"], before["width"], before["height"]))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:         # another file system, or one without links
        shutil.copyfile(source, target)
