"""The clips of a split read once, from front to back, through webdataset: evaluation, export and validation.

The tars may be in a folder or under a URL. webdataset's `tar_file_expander` and `group_by_keys` are used instead of
its `WebDataset` class, which splits the shards by node and worker, takes a cache from the environment and cuts the path
of a local file at `#`.
"""

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from webdataset.tariterators import group_by_keys, tar_file_expander

from hcmi.ahead import ahead
from hcmi.runtime import count_cores
from hcmi.shards.reader import ShardReader
from hcmi.shards.sampler import middle_frames
from hcmi.shards.shard_file import decode_into, jpeg_shape, parse_record
from hcmi.shards.shard_index import SplitIndex, open_shard, unreadable
from hcmi.types import Clip, EvalBatch
from hcmi.video import Decoded

DECODERS = 16           # threads at most: one decodes about 220 clips of 12 frames of 224 pixels a second


@dataclass(frozen=True)
class ClipBatch:
    """B clips, what is known of their stored frames, and the frames that evaluation picks."""

    clips: list[Clip]
    stored: list[Decoded[None]]
    picked: EvalBatch


def eval_batches(reader: ShardReader, batch_size: int, num_frames: int) -> Iterator[EvalBatch]:
    """Each clip once, in the reader's order, the middle frame of each segment (`pick_frames`).

    The last batch may be smaller.
    Raises: DataError naming shard and clip when a shard is broken.
    """
    for batch in clip_batches(reader.index, batch_size, num_frames):
        yield batch.picked


def clip_batches(index: SplitIndex, batch_size: int, num_frames: int, rank: int = 0, world_size: int = 1
                 ) -> Iterator[ClipBatch]:
    """As `eval_batches`, from the index alone: the clips too are read from the tars, so these may be behind a URL.

    Rank r gets the r-th of `world_size` contiguous parts, whose sizes differ by at most one, so the ranks' clips one
    after the other are the split.
    """
    first, last = (len(index) * part // world_size for part in (rank, rank + 1))
    decoded = ahead(_decode, _decode_jobs(index, first, last, batch_size, num_frames), depth=2 * batch_size,
                    threads=min(count_cores(), DECODERS))
    while jobs := list(islice(decoded, batch_size)):
        batch = jobs[0].batch
        yield ClipBatch([job.clip for job in jobs], [job.stored for job in jobs],
                        EvalBatch([job.row for job in jobs], torch.from_numpy(batch.frames_BTHXC),
                                  torch.from_numpy(batch.picks_BT >= 0)))


@dataclass(frozen=True)
class _Frames:
    """What the clips of a batch are decoded into, and which stored frames they are; -1: none."""

    frames_BTHXC: np.ndarray
    picks_BT: np.ndarray


@dataclass(frozen=True)
class _Job:
    """One clip to decode: place `place` of a batch."""

    batch: _Frames
    place: int
    row: int
    clip: Clip
    stored: Decoded[None]
    jpegs: list[bytes]
    shard: str


def _decode_jobs(index: SplitIndex, first: int, last: int, batch_size: int, num_frames: int) -> Iterator[_Job]:
    frame_shape, num_stored = tuple[int, ...](), index.num_stored
    for row, (clip, stored, jpegs) in zip(range(first, last), _read_clips(index, first, last), strict=True):
        place = (row - first) % batch_size
        if not place:
            frame_shape = frame_shape or jpeg_shape(jpegs[0], _path(index, row), clip.video_id)
            picks_BT = middle_frames(num_stored[row:min(row + batch_size, last)], num_frames)
            batch = _Frames(np.zeros((*picks_BT.shape, *frame_shape), np.uint8), picks_BT)
        yield _Job(batch, place, row, clip, stored, jpegs, _path(index, row))


def _decode(job: _Job) -> _Job:
    """Decode a clip's picked frames into its batch."""
    for frame, slot_HXC in zip(job.batch.picks_BT[job.place].tolist(), job.batch.frames_BTHXC[job.place], strict=True):
        if frame >= 0:
            decode_into(job.jpegs[frame], slot_HXC, job.shard, job.clip.video_id, frame)
    return replace(job, jpegs=[])


def _path(index: SplitIndex, row: int) -> str:
    return f"{index.shards}/{index.shard_names[row]}"


def _read_clips(index: SplitIndex, first: int, last: int) -> Iterator[tuple[Clip, Decoded[None], list[bytes]]]:
    """The clips of these rows, what is known of their frames, and the frames as files."""
    num_stored = index.num_stored.tolist()
    for name, rows in groupby(range(first, last), key=lambda row: index.shard_names[row]):
        samples = _read_shard(index, name)
        for row in rows:
            video_id, shard = index.video_ids[row], _path(index, row)
            # another rank has the clips before the first one
            sample = next((sample for sample in samples if sample["__key__"] == video_id), None)
            if sample is None:
                raise unreadable(index.shards, name, f"the clip {video_id} that index.parquet names",
                                 EOFError("the end of the shard: it was cut short or is another one"))
            clip, stored = parse_record(sample.get("json", b""), shard, video_id, num_stored[row])
            jpegs = [content for ending, content in sample.items() if ending.endswith(".jpg")]
            if len(jpegs) != num_stored[row]:
                raise unreadable(index.shards, name, f"{num_stored[row]} frames of the clip {video_id}",
                                 EOFError(f"{len(jpegs)}: it was cut short or is another one"))
            yield clip, stored, jpegs


def _read_shard(index: SplitIndex, name: str) -> Iterator[dict[str, Any]]:
    """A tar's clips as webdataset's samples: `__key__` and each file's content by its ending."""
    need = "the shard that index.parquet names"
    try:
        stream = open_shard(index.shards, name)
    except (OSError, ValueError) as error:
        raise unreadable(index.shards, name, need, error) from error
    try:
        yield from group_by_keys(tar_file_expander([{"url": name, "stream": stream}]))
    except (OSError, ValueError, tarfile.TarError) as error:
        raise unreadable(index.shards, name, f"{need}, whole", error, stream) from error
    finally:
        with suppress(OSError):     # a command that is stopped before it has written all
            stream.close()
