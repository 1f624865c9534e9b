"""The `dataset` stage: read any known data set and write the manifest. docs/datasets.md says what to put where."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hcmi.config import DatasetConfig
from hcmi.dataset.accepted import accepted_clips, with_accepted
from hcmi.dataset.annotations import SOURCES, files_by_bare_name, read_annotations
from hcmi.dataset.build_clips import build_clips
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.folder import Found, iter_folder, nothing_usable, only_clips
from hcmi.dataset.manifest import write_manifest
from hcmi.dataset.near_duplicates import NearDuplicate
from hcmi.dataset.webdataset import iter_webdataset
from hcmi.errors import ConfigError, DataError
from hcmi.files import ask_to_write, atomic_dir, project_path
from hcmi.scenes import BATCHES, write_batch, write_scenes
from hcmi.types import SPLITS, Clip, Skip
from hcmi.wording import plural


def _folder(config: DatasetConfig, generated_dir: Path) -> Found:
    return iter_folder(config.path, config)


def _scenes(config: DatasetConfig, generated_dir: Path) -> Found:
    return iter(write_scenes(config.scenes, config.seed, generated_dir))


def _published(config: DatasetConfig, generated_dir: Path) -> Found:
    folder = Path(config.path)
    if not folder.is_dir():
        raise DataError(f"{folder}: need the folder of {config.name}, found none. See docs/datasets.md for its files.")
    files = files_by_bare_name(folder)

    def locate(row: CaptionRow) -> str:
        return project_path(files.get(unicodedata.normalize("NFC", row.video), folder / "videos" / row.video))

    return build_clips(read_annotations(config), locate, config, keep_repeats=True)


# Name -> the clips of the data set and a Skip for everything left out, in order of video_id.
DATASETS: dict[str, Callable[[DatasetConfig, Path], Found]] = {
    "scenes": _scenes, "folder": _folder, "webdataset": iter_webdataset, **dict.fromkeys(SOURCES, _published)}
MOST_MISSING = 0.5          # share of the videos: with fewer, a run would measure another data set
WRITE_VIDEOS = ("scenes", "webdataset")        # into the folder for generated files, which the others leave empty


def build_dataset(*, config: DatasetConfig, manifest_dir: str | Path, generated_dir: str | Path,
                  incoming_dir: str | Path, accepted: str | Path | None = None) -> dict[str, Any]:
    """Write manifest.parquet, skipped.jsonl and near_duplicates.jsonl into `manifest_dir`. Returns counts.

    `accepted`: the list of batches in `incoming_dir` whose clips are training data too (hcmi/dataset/accepted.py).

    `scenes` and `webdataset` write their videos into `generated_dir`, and `scenes` its two batches into `incoming_dir`;
    the other data sets leave these folders empty. Beside the videos is annotation.jsonl, which says what they are.

    Raises: DataError or ConfigError when the data set or its parameters are wrong, MachineError when an output cannot
    be written. The old manifest is then still there.
    """
    batches = [Path(incoming_dir) / batch for batch in BATCHES]
    for folder in (manifest_dir, generated_dir, *batches):
        if config.name != "scenes" and Path(config.path).resolve().is_relative_to(Path(folder).resolve()):
            raise ConfigError(f"dataset.path: need a folder outside {folder}, which is replaced, got {config.path}. "
                              f"Move the data set, for example to data/raw.")
    ask_to_write(folders={manifest_dir: "manifest.parquet", generated_dir: "annotation.jsonl",
                          **dict.fromkeys(batches)})
    if config.name not in WRITE_VIDEOS:
        with atomic_dir(generated_dir):
            pass
    if config.name == "scenes":
        for batch in batches:       # before the manifest, because an accepted batch may be one of them
            write_batch(config.scenes, config.seed, batch.name, batch)
    counts: Counter[str] = Counter(dict.fromkeys(("clips", *SPLITS, "captions", "near_duplicates"), 0))
    reasons: Counter[str] = Counter()
    there: set[str] = set()
    missing: set[str] = set()
    first: list[Skip] = []
    with (atomic_dir(manifest_dir) as temporary,
          open(temporary / "skipped.jsonl", "w", encoding="utf-8", newline="\n") as skipped,
          open(temporary / "near_duplicates.jsonl", "w", encoding="utf-8", newline="\n") as alike):

        def note(found: Skip | NearDuplicate) -> None:
            if isinstance(found, NearDuplicate):
                counts["near_duplicates"] += 1
                alike.write(found.to_line())
                return
            skipped.write(found.to_line())
            reasons[found.reason] += 1
            first[:] = first or [found]

        found = _noted(DATASETS[config.name](config, Path(generated_dir)), there, missing)
        clips = only_clips(found, note)
        if accepted is not None:
            more = accepted_clips(accepted, incoming_dir, config, note)
            clips = with_accepted(clips, more, temporary / "base.parquet")
        if not write_manifest(_counted(clips, counts), temporary / "manifest.parquet"):
            raise nothing_usable(config.path, reasons, first)
        if len(missing) > MOST_MISSING * (len(missing) + len(there)):
            raise DataError(f"{config.path}: need at least {1 - MOST_MISSING:.0%} of the videos that captions name, "
                            f"got {plural(len(there), 'video')} and {plural(len(missing), 'name')} without a file. Put "
                            f"their files there, or remove their captions.")
    if config.name != "scenes":
        for batch in batches:
            with atomic_dir(batch):
                pass
    seconds = counts.pop("milliseconds", 0) / 1000
    return {"dataset": config.name, **counts, "hours": round(seconds / 3600, 3), "skipped": dict(reasons)}


def _noted(found: Found, there: set[str], missing: set[str]) -> Found:
    """Pass on what a data set has, and collect the paths of its videos that give clips and of those that are missing.
    """
    for one in found:
        if isinstance(one, Clip):
            there.add(one.path)         # a video may give many clips
        elif isinstance(one, Skip) and one.reason == "missing":
            missing.add(one.path)
        yield one


def _counted(clips: Iterator[Clip], counts: Counter[str]) -> Iterator[Clip]:
    for clip in clips:
        counts.update({"clips": 1, clip.split: 1, "captions": len(clip.captions),
                       "milliseconds": round(clip.duration_s * 1000)})
        yield clip
