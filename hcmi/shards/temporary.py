"""Shards of clips that are not in the data set, such as those of a new batch, made as the shards of a model were."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hcmi.config import Params, ShardsConfig
from hcmi.dataset import write_manifest
from hcmi.errors import DataError
from hcmi.shards.shard_index import read_square
from hcmi.shards.stage import write_shards
from hcmi.types import Clip, Skip


@contextmanager
def temporary_shards(clips: list[Clip], shards_dir: str | Path, params: Params
                     ) -> Iterator[tuple[Path | None, list[Skip]]]:
    """The folder of shards, and the clips that could not be decoded; None and all of them when not one could.

    `clips` are in order of video_id. Size, shape, number and quality of the frames are those of `shards_dir`; the rest
    is that of `params`, and any number of clips may fail.
    Raises: DataError when the settings of `shards_dir` cannot be read; and as `write_shards` does.
    """
    with tempfile.TemporaryDirectory(prefix="hcmi-shards-") as work:
        manifest, out = Path(work, "manifest.parquet"), Path(work, "shards")
        write_manifest(clips, manifest)
        try:
            write_shards(manifest_path=manifest, out_dir=out, config=_as_in(shards_dir, params),
                         square=read_square(shards_dir))
        except DataError:
            lost = _read_skips(Path(work, "shards.work", "skipped.jsonl"))
            if not lost:
                raise
            yield None, lost
            return
        yield out, _read_skips(out / "skipped.jsonl")


def same_settings(shards_dir: str | Path, other_dir: str | Path) -> bool:
    """Whether two folders of shards have frames of the same size, shape, number and quality.

    Raises: DataError when the settings of one cannot be read.
    """
    return len({(*_settings(folder).values(), read_square(folder)) for folder in (shards_dir, other_dir)}) == 1


def _settings(shards_dir: str | Path) -> dict[str, int]:
    path = Path(shards_dir, "stats.json")
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
        return {name: stats[name] for name in ("size", "num_frames", "quality")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: need the settings of the shards, got none that can be read. Run `dvc repro` or "
                        "`dvc pull`.") from error


def _as_in(shards_dir: str | Path, params: Params) -> ShardsConfig:
    return params.shards.model_copy(update={**_settings(shards_dir), "max_skip_fraction": 1.0})


def _read_skips(path: Path) -> list[Skip]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="\n") as file:        # `splitlines` also splits within captions
        return [Skip(**json.loads(line)) for line in file]
