"""What the tests of the `shards` stage share: small parameters, clips of grey videos, and a run of the stage."""

import hashlib
from pathlib import Path

from video_files import write_grey

from hcmi.config import ShardsConfig
from hcmi.dataset import write_manifest
from hcmi.shards import write_shards
from hcmi.types import Clip

CONFIG = ShardsConfig(size=32, fit="auto", num_frames=5, quality=95, max_clips_per_shard=8, max_skip_fraction=0.5,
                      decode_timeout_s=60, num_workers=1, executor="local", ray_address="auto")


def make_clip(folder: Path, number: int, split: str = "train", num_frames: int = 20, **changes) -> Clip:
    path = write_grey(folder / f"v{number}.mp4", num_frames=num_frames + number % 3, width=64, height=64)
    info = {"video_id": f"v{number:04d}", "path": str(path), "split": split, "captions": (f"clip {number}", "grün"),
            "start_s": 0.0, "end_s": 0.0, "duration_s": 2.0, "tags": {"b": "1", "a": "2"},
            "sha256": hashlib.sha256(path.read_bytes() + bytes([number % 256])).hexdigest()}
    return Clip(**{**info, **changes})


def stage(folder: Path, clips: list[Clip], config: ShardsConfig = CONFIG, name: str = "shards") -> dict:
    write_manifest(sorted(clips, key=lambda clip: clip.video_id), folder / "manifest.parquet")
    return write_shards(manifest_path=folder / "manifest.parquet", out_dir=folder / name, config=config)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
