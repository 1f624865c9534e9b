"""Jobs for worker processes: records that travel between processes and machines, and the functions that run them.

A child process imports the function's module by name. These functions are in this room, so that a child starts without
torch and the other rooms.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import simplejpeg

from hcmi.video.crop import CLIP_SQUARE, Square
from hcmi.video.decode import decode_and_keep, decode_clip, decode_times
from hcmi.video.decoded import Decoded, VideoInfo
from hcmi.video.packets import probe

# Pixels. Half the colour resolution harms small frames; full resolution makes large ones half as large again.
FULL_COLOUR_BELOW = 128


@dataclass(frozen=True)
class ProbeJob:
    """One file whose headers are to be read. `key` is for the caller."""

    key: Any
    path: str


@dataclass(frozen=True)
class DecodeJob:
    """One clip whose frames are wanted as pixels. `key` is for the caller."""

    key: Any
    path: str
    num_frames: int
    size: int
    start_s: float = 0.0
    end_s: float | None = None
    decoder: str = "auto"
    square: Square = CLIP_SQUARE    # how frames become square
    times_s: tuple[float, ...] = ()     # the frames shown at these seconds, in place of `num_frames` evenly spread ones

    def after_crash(self) -> "DecodeJob | None":
        """The job to run when this one hung or crashed its process: PyAV alone, or None if that has been tried.

        decord is what hangs and crashes (dmlc/decord issue 373).
        """
        return replace(self, decoder="pyav") if self.decoder == "auto" else None


@dataclass(frozen=True)
class EncodeJob(DecodeJob):
    """One clip whose frames are wanted as JPEG files."""

    quality: int = field(kw_only=True)


@dataclass(frozen=True)
class Measured:
    """What it costs to decode and encode one clip."""

    duration_s: float               # of the whole file
    jpeg_bytes: tuple[int, ...]     # of each frame
    seconds: float                  # of one process
    decoder: str


def probe_job(job: ProbeJob) -> VideoInfo:
    """What the headers of the file claim. Raises: DecodeError with a reason from `REASONS`."""
    return probe(job.path)


def decode_job(job: DecodeJob) -> Decoded[np.ndarray]:
    """The frames of a clip, as `decode_clip` or `decode_times` gives them.

    Raises: DecodeError with a reason from `REASONS`.
    """
    if job.times_s:
        return decode_times(job.path, job.times_s, job.size, job.start_s, job.end_s, job.square)
    return decode_clip(job.path, job.num_frames, job.size, job.start_s, job.end_s, job.decoder, job.square)


def encode_job(job: EncodeJob) -> Decoded[tuple[bytes, ...]]:
    """The frames of a clip as JPEG files; below `FULL_COLOUR_BELOW` pixels with colours at full resolution.

    Raises: DecodeError with a reason from `REASONS`.
    """
    subsampling = "444" if job.size < FULL_COLOUR_BELOW else "420"
    encode = partial(simplejpeg.encode_jpeg, quality=job.quality, colorspace="RGB", colorsubsampling=subsampling)
    return decode_and_keep(job.path, job.num_frames, job.size, encode, job.start_s, job.end_s, job.decoder, job.square)


def measure_job(job: EncodeJob) -> Measured:
    """What `encode_job` costs. Raises: DecodeError with a reason from `REASONS`."""
    started = time.perf_counter()
    info, clip = probe(job.path), encode_job(job)
    return Measured(info.duration_s, tuple(map(len, clip.frames)), time.perf_counter() - started, clip.decoder)
