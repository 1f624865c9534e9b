"""What the tests of the dataset room share: parameters, a pool without processes, and the stage."""

import json
from pathlib import Path

from hcmi.config import DatasetConfig, load_params
from hcmi.dataset import build_dataset, read_folder, read_manifest
from hcmi.dataset.captions import CaptionRow
from hcmi.errors import DecodeError
from hcmi.types import Clip, Skip

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
CONFIG = load_params(PARAMS).dataset.model_copy(update={"name": "folder"})


class OnePlacePool:
    """`DecoderPool` without its processes, which cost half a second a test and have tests of their own."""

    def __init__(self, num_workers, timeout_s, function):
        self.function = function

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, jobs):
        for job in jobs:
            try:
                yield job, self.function(job)
            except DecodeError as error:
                yield job, error


def build(config: DatasetConfig, folder: Path) -> tuple[dict, dict[str, Clip], list[Skip]]:
    """Run the stage below `folder`: its summary, the manifest's clips by id, and what was left out."""
    summary = build_dataset(config=config, manifest_dir=folder / "manifest", generated_dir=folder / "generated",
                            incoming_dir=folder / "incoming")
    lines = (folder / "manifest/skipped.jsonl").read_text(encoding="utf-8").splitlines()
    clips = read_manifest(folder / "manifest/manifest.parquet")
    return summary, {clip.video_id: clip for clip in clips}, [Skip(**json.loads(line)) for line in lines]


def found_in(folder: Path, config: DatasetConfig = CONFIG) -> tuple[dict[str, Clip], list[Skip]]:
    clips, skipped = read_folder(folder, config)
    return {clip.video_id: clip for clip in clips}, skipped


def rows_for(count: int, **values) -> list[CaptionRow]:
    return [CaptionRow(f"{i:04d}.mp4", "x", **values) for i in range(count)]


def published(name: str, path: str | Path, protocol: str = "default", **changes) -> DatasetConfig:
    """Parameters of a published data set whose files are in `path`."""
    return CONFIG.model_copy(update={"name": name, "path": str(path), "protocol": protocol, **changes})
