"""Tokens of clips that are not in the shards of the pipeline: they go through the same sampling, size and JPEG."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hcmi.config import Params, ShardsConfig
from hcmi.dataset import write_manifest
from hcmi.errors import DataError
from hcmi.shards import SplitIndex, read_splits, write_shards
from hcmi.types import Clip

SPLIT = "test"      # of the temporary shards; the clips keep their own


@contextmanager
def temporary_shards(clips: Sequence[Clip], params: Params, shards_dir: str | Path) -> Iterator[SplitIndex | None]:
    """Decoded clips, made with the settings of `shards_dir`; None when not one of them can be decoded.

    `clips` are in order of video_id. Those that cannot be decoded are left out.
    """
    with tempfile.TemporaryDirectory(prefix="hcmi-ingest-") as work:
        out = Path(work, "shards")
        write_manifest([replace(clip, split=SPLIT) for clip in clips], Path(work, "manifest.parquet"))
        try:
            write_shards(manifest_path=Path(work, "manifest.parquet"), out_dir=out,
                         config=_settings(params, shards_dir))
        except DataError:
            if not Path(work, "shards.work", "skipped.jsonl").is_file():
                raise
            yield None
            return
        yield read_splits(out)[SPLIT]


def _settings(params: Params, shards_dir: str | Path) -> ShardsConfig:
    """Those of the shards that the model was trained on; any number of clips may fail."""
    path = Path(shards_dir, "stats.json")
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: stats[name] for name in ("size", "num_frames", "quality")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: need the settings of the shards, got none that can be read. Run `dvc repro` or "
                        "`dvc pull`.") from error
    return params.shards.model_copy(update={**kept, "max_skip_fraction": 1.0, "executor": "local"})
