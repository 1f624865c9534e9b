"""Decode a part of a video file into frames, and find, check and hash video files.

Callers that read files of unknown quality use `DecoderPool` or `run_one`: decoding runs in child processes with a
deadline, because native decoders hang and crash. A file that cannot be used is a `DecodeError` with one of `REASONS`.
"""

from hcmi.video.crop import CLIP_SQUARE, Square, to_square
from hcmi.video.decoded import LASTING_REASONS, MACHINE_REASONS, REASONS, Decoded
from hcmi.video.files import (
    VIDEO_ENDINGS,
    check_file,
    check_name,
    find_videos,
    is_text,
    likely_names,
    names_below,
    refusal,
    sha256,
    walk_files,
)
from hcmi.video.jobs import DecodeJob, EncodeJob, Measured, ProbeJob, encode_job, measure_job, probe_job
from hcmi.video.packets import probe
from hcmi.video.pool import DecoderPool, run_one
from hcmi.video.ray_cluster import map_on_ray
from hcmi.video.shots import CutsJob, check_detector, cuts_jobs, find_cuts, shots_of
from hcmi.video.windows import check_length, cut

__all__ = [
    "CLIP_SQUARE", "LASTING_REASONS", "MACHINE_REASONS", "REASONS", "VIDEO_ENDINGS", "CutsJob", "DecodeJob", "Decoded",
    "DecoderPool", "EncodeJob", "Measured", "ProbeJob", "Square", "check_detector", "check_file", "check_length",
    "check_name", "cut", "cuts_jobs", "encode_job", "find_cuts", "find_videos", "is_text", "likely_names", "map_on_ray",
    "measure_job", "names_below", "probe", "probe_job", "refusal", "run_one", "sha256", "shots_of", "to_square",
    "walk_files",
]
