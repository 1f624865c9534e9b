"""One shard: a tar of JSON records and JPEG frames, written by webdataset's TarWriter, and its rows of the index."""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
from webdataset import TarWriter

from hcmi.errors import DataError
from hcmi.shards.existing_shards import ExistingShard, ExistingShards
from hcmi.shards.shard_index import INDEX, KEY_CHARACTERS, MAKE_AGAIN
from hcmi.types import CLIP_SCHEMA, Clip
from hcmi.video import Decoded

BUFFER_BYTES = 1 << 20      # of a tar being written: tarfile writes pieces of 10 KB
Jpegs = Decoded[tuple[bytes, ...]]


@dataclass(frozen=True)
class ShardEntry:
    """A clip that a shard will hold."""

    clip: Clip
    key: str                                # frames key
    read_frames: Callable[[], Jpegs]        # called only when no existing shard has the key

    @cached_property
    def record_hash(self) -> str:
        """Of what the manifest contributes to the clip's JSON."""
        return hashlib.sha256(json.dumps(self.clip.to_row()).encode()).hexdigest()[:KEY_CHARACTERS]


def write_shard(path: Path, entries: Sequence[ShardEntry], existing: ExistingShards) -> pa.Table:
    """Write the tar, or link an existing one that holds exactly these clips; returns its rows of the index.

    The caller makes sure that the bytes reach the disk.
    """
    places = [existing.find(entry.key) for entry in entries]
    shards = {number: existing.shard(number) for number in sorted({place[0] for place in places if place})}
    wanted = [(entry.clip.split, entry.clip.video_id, entry.key, entry.record_hash) for entry in entries]
    for shard in shards.values():
        if shard.contents == wanted:
            _link(shard.path, path)
            names = pa.array([path.name] * len(entries))
            return shard.table.set_column(INDEX.get_field_index("shard"), INDEX.field("shard"), names)
    rows = []
    # mtime=0: equal input gives equal bytes
    with open(path, "wb", buffering=BUFFER_BYTES) as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for entry, place in zip(entries, places, strict=True):
            if not place:
                row = _add_clip(tar, entry, entry.read_frames())
            elif (shard := shards[place[0]]).has_members(place[1], entry.clip.video_id, entry.record_hash):
                row = _copy_clip(tar, shard, place[1])
            else:
                row = _add_clip(tar, entry, shard.read_frames(place[1]))
            rows.append({**row, "split": entry.clip.split, "shard": path.name})
    return pa.Table.from_pylist(rows, INDEX)


def _add_clip(tar: TarWriter, entry: ShardEntry, decoded: Jpegs) -> dict[str, Any]:
    """Write `<video_id>.json`, then `<video_id>.00.jpg` and so on; returns the clip's row of the index."""
    clip = entry.clip
    record = {**clip.to_row(), "times_s": decoded.times_s, "decoder": decoded.decoder,
              "num_decodable": decoded.num_decodable, "width": decoded.width, "height": decoded.height}
    encoded = json.dumps(record, ensure_ascii=False).encode()
    start = tar.tarstream.offset
    json_offset = _add_member(tar, clip.video_id, "json", encoded)
    digits = max(2, len(str(len(decoded.frames) - 1)))
    offsets = [_add_member(tar, clip.video_id, f"{number:0{digits}d}.jpg", jpeg)
               for number, jpeg in enumerate(decoded.frames)]
    return {"video_id": clip.video_id, "json_offset": json_offset, "json_size": len(encoded), "frame_offsets": offsets,
            "frame_sizes": [len(jpeg) for jpeg in decoded.frames], "num_bytes": tar.tarstream.offset - start,
            "decoder": decoded.decoder, "key": entry.key, "record": entry.record_hash}


def _copy_clip(tar: TarWriter, shard: ExistingShard, number: int) -> dict[str, Any]:
    """Write a clip's members as they are in another shard; returns the clip's row of the index.

    Through `tar.write`, adding 1 % to 2,000 clips took 1.4x the CPU seconds: it touches nearly every shard.
    """
    row, content = shard.rows[number], shard.read_members(number)
    shift = tar.tarstream.offset - (row["json_offset"] - tarfile.BLOCKSIZE)
    for start in range(0, len(content), tarfile.RECORDSIZE):        # tarfile is slow with large pieces
        tar.tarstream.fileobj.write(content[start:start + tarfile.RECORDSIZE])
    tar.tarstream.offset += len(content)
    return {**row, "json_offset": row["json_offset"] + shift,
            "frame_offsets": [offset + shift for offset in row["frame_offsets"]]}


def _add_member(tar: TarWriter, video_id: str, ending: str, content: bytes) -> int:
    """Write one file; returns the offset of its content."""
    offset = tar.tarstream.offset + tarfile.BLOCKSIZE       # behind the header
    tar.write({"__key__": video_id, ending: content})
    return offset


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:         # another file system, or one without links
        shutil.copyfile(source, target)


def parse_record(data: bytes, shard: str, video_id: str, num_stored: int) -> tuple[Clip, Decoded[None]]:
    """A clip and what is known of its frames, from its JSON in `shard`; `num_stored` frames by the index.

    Raises: DataError when the JSON is not that of the clip, or is of an earlier version.
    """
    try:
        record = json.loads(data)
        if "times_s" in record and (missing := set(CLIP_SCHEMA.names) - record.keys()):
            raise DataError(f"{shard}: need the JSON of clip {video_id} with all columns of the manifest, got none "
                            f"called {', '.join(sorted(missing))}: an earlier version wrote these shards. "
                            f"Run `hcmi shards` again.")
        clip = Clip.from_row(record)
        stored = Decoded(None, tuple(record["times_s"]), record["decoder"], record["num_decodable"], record["width"],
                         record["height"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{shard}: need the JSON of clip {video_id} where index.parquet says, got other bytes: the two "
                        f"do not belong together. {MAKE_AGAIN}") from error
    if clip.video_id != video_id or len(stored.times_s) != num_stored:
        raise DataError(f"{shard}: need clip {video_id} with {num_stored} frames as in index.parquet, got clip "
                        f"{clip.video_id} with {len(stored.times_s)}. {MAKE_AGAIN}")
    return clip, stored


def jpeg_shape(jpeg: bytes, shard: str, video_id: str) -> tuple[int, int, int]:
    """(height, width, 3) of a clip's frame 0.

    Raises: DataError naming shard and clip when it is not a JPEG.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise DataError(f"{shard}: need a JPEG as frame 0 of clip {video_id}, got {error}. {MAKE_AGAIN}") from error
    return height, width, 3


def decode_into(jpeg: bytes | memoryview, slot_HXC: np.ndarray, shard: str, video_id: str, frame: int) -> None:
    """Decode a frame into memory of exactly its size.

    Raises: DataError naming shard and clip when that cannot be done.
    """
    # simplejpeg gives Pillow's pixels (both use libjpeg-turbo): 4x faster at 32 pixels, 1.7x at 224
    try:
        shape = simplejpeg.decode_jpeg(jpeg, buffer=slot_HXC).shape
        got = "" if shape == slot_HXC.shape else f"{shape[1]}x{shape[0]} pixels"
    except ValueError as error:
        got = str(error)
    if got:
        raise DataError(f"{shard}: need a {slot_HXC.shape[1]}x{slot_HXC.shape[0]} JPEG as frame {frame} of clip "
                        f"{video_id}, got {got}. {MAKE_AGAIN}")
