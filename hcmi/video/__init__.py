"""ROOM video."""

from hcmi.video.decode import probe
from hcmi.video.decoded import REASONS, Decoded, VideoInfo
from hcmi.video.files import check_file, check_name, find_files, is_text, refusal, sha256
from hcmi.video.jobs import DecodeJob, EncodeJob, encode_job
from hcmi.video.pool import DecoderPool, run_one
from hcmi.video.ray_cluster import map_on_ray

__all__ = [
    "REASONS",
    "DecodeJob",
    "Decoded",
    "DecoderPool",
    "EncodeJob",
   
    "VideoInfo",
    "check_file",
    "check_name",
    "encode_job",
    "find_files",
    "is_text",
    "map_on_ray",
    "probe",
    "refusal",
    "run_one",
    "sha256",
]
