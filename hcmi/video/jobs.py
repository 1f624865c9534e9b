"""What worker processes are asked for, and what they answer: records that travel between processes and machines."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import simplejpeg

from hcmi.video.decode import decode_and_keep, decode_clip
from hcmi.video.decoded import Decoded

FULL_COLOUR_BELOW = 128     # pixels: small frames have no colour to spare; large ones would take half as much again


@dataclass(frozen=True)
class DecodeJob:
    """One clip for a worker process; `key` is the caller's own."""

    key: Any
    path: str
    num_frames: int
    size: int
    start_s: float = 0.0
    end_s: float | None = None
    decoder: str = "auto"


@dataclass(frozen=True)
class EncodeJob(DecodeJob):
    """One clip whose frames are wanted as JPEG."""

    quality: int = field(kw_only=True)


def decode_job(job: DecodeJob) -> Decoded[np.ndarray]:
    """`decode_clip` on a job."""
    return decode_clip(job.path, job.num_frames, job.size, job.start_s, job.end_s, job.decoder)


def encode_job(job: EncodeJob) -> Decoded[tuple[bytes, ...]]:
    """`decode_clip` on a job, frames as JPEG; below `FULL_COLOUR_BELOW` pixels with colours at full resolution.

    Raises: DecodeError with a reason from `REASONS`.
    """
    subsampling = "444" if job.size < FULL_COLOUR_BELOW else "420"
    encode = partial(simplejpeg.encode_jpeg, quality=job.quality, colorspace="RGB", colorsubsampling=subsampling)
    return decode_and_keep(job.path, job.num_frames, job.size, encode, job.start_s, job.end_s, job.decoder)
