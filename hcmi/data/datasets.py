"""The `dataset` stage: any known data set in, one manifest out. docs/datasets.md says what to put where."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path, PureWindowsPath
from typing import Any

from hcmi.atomic import atomic_dir
from hcmi.config import DatasetConfig
from hcmi.data.annotations import SOURCES, find_videos, read_annotations
from hcmi.data.captions import CaptionRow, read_captions
from hcmi.data.gather import VIDEO_ENDINGS, gather
from hcmi.data.manifest import SPLITS, shown_path, skipped_line, write_manifest
from hcmi.data.scenes import BATCHES, write_batch, write_scenes
from hcmi.errors import DataError
from hcmi.types import Clip

Found = Iterator[Clip | dict[str, Any]]


# ------------------------------------------------------------------------------------------------------------- folder

def iter_folder(folder: str | Path, config: DatasetConfig, captions_required: bool = True) -> Found:
    """The clips of a folder in the `folder` format in order of video_id, and a record for each thing left out.

    Without `captions_required` every video file makes a clip, with the captions that captions.csv has for it, and
    `folder` may also be a plain folder of videos.

    Raises: DataError when the table is wrong or names a file outside the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: need a folder with videos/ and captions.csv, found none. Correct dataset.path.")
    videos = folder / "videos" if captions_required or (folder / "videos").is_dir() else folder
    inside = Path(os.path.realpath(videos))
    rows: Iterable[CaptionRow] = ()
    if captions_required or (folder / "captions.csv").is_file():
        rows = read_captions(folder / "captions.csv")
    if not captions_required:
        rows = chain(rows, _uncaptioned(videos))
    return gather(rows, lambda row: _locate(videos, inside, row), config)


def _uncaptioned(videos: Path) -> Iterator[CaptionRow]:
    for path in sorted(videos.rglob("*")):
        if path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith("."):
            name = path.relative_to(videos).as_posix()
            yield CaptionRow(name, None, where=str(path))


def _locate(videos: Path, inside: Path, row: CaptionRow) -> str:
    """The path of a row's video. Raises: DataError when it lies outside the folder, links followed."""
    name, where = row.video, row.where
    if any(ord(letter) < 32 for letter in name):
        raise DataError(f"{where}: need a file name without control characters, got {name[:60]!r}. Rename the file.")
    if os.path.isabs(name) or PureWindowsPath(name).is_absolute():
        raise DataError(f"{where}: need a path inside {videos}, got the absolute path {name!r}. Copy the file there "
                        f"and name it relative to that folder.")
    if ".." in name.split("/"):
        raise DataError(f"{where}: need a path inside {videos}, got {name!r} with '..'. Copy the file there.")
    real = Path(os.path.realpath(videos / name))
    if not real.is_relative_to(inside):
        raise DataError(f"{where}: need a file inside {videos}, got {name!r}, a link to {real}. Copy the file there.")
    return shown_path(videos / name)


def read_folder(folder: str | Path, config: DatasetConfig,
                captions_required: bool = True) -> tuple[list[Clip], list[dict[str, Any]]]:
    """All of `iter_folder` at once: the clips, and what was left out.

    Raises: DataError as `iter_folder` does, and when not one clip is left.
    """
    skipped: list[dict[str, Any]] = []
    clips = list(_only_clips(iter_folder(folder, config, captions_required), skipped.append))
    if not clips:
        raise _nothing_usable(folder, Counter(row["reason"] for row in skipped), skipped)
    return clips, skipped


def _only_clips(found: Found, skip: Callable[[dict[str, Any]], Any]) -> Iterator[Clip]:
    for one in found:
        if isinstance(one, Clip):
            yield one
        else:
            skip(one)


def _nothing_usable(folder: str | Path, reasons: Counter[str], skipped: list[dict[str, Any]]) -> DataError:
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "no rows"
    first = f" The first: {skipped[0]['detail']}" if skipped else ""
    return DataError(f"{folder}: need at least one readable video with a caption, got none ({counts}). "
                     f"Add one or correct the table.{first}")


def _folder(config: DatasetConfig, generated_dir: Path) -> Found:
    return iter_folder(config.path, config)


# ------------------------------------------------------------------------------------------------------------- scenes

def _scenes(config: DatasetConfig, generated_dir: Path) -> Found:
    return iter(write_scenes(config.scenes, config.seed, generated_dir))


def _published(config: DatasetConfig, generated_dir: Path) -> Found:
    folder = Path(config.path)
    if not folder.is_dir():
        raise DataError(f"{folder}: need the folder of {config.name}, found none. See docs/datasets.md for its files.")
    files = find_videos(folder)

    def locate(row: CaptionRow) -> str:
        return shown_path(files.get(row.video, folder / "videos" / row.video))

    return gather(read_annotations(config), locate, config, keep_repeats=True)


DATASETS: dict[str, Callable[[DatasetConfig, Path], Found]] = {
    "scenes": _scenes, "folder": _folder, **dict.fromkeys(SOURCES, _published)}


# -------------------------------------------------------------------------------------------------------------- stage

def build_dataset(config: DatasetConfig, manifest_dir: str | Path, generated_dir: str | Path,
                  incoming_dir: str | Path) -> dict[str, Any]:
    """Write manifest.parquet and skipped.jsonl into `manifest_dir`; for scenes also its videos and incoming batches.

    Other data sets leave `generated_dir` and the batches' folders empty. Returns counts for people and programs.

    Raises: DataError, ConfigError for what is wrong with the data set or its parameters; nothing is written then.
    """
    if config.name not in DATASETS:
        raise DataError(f"dataset.name: need one of {', '.join(DATASETS)}, got {config.name!r}. Correct params.yaml.")
    if config.name != "scenes":
        with atomic_dir(generated_dir):
            pass
    counts: Counter[str] = Counter(dict.fromkeys(("clips", *SPLITS, "captions"), 0))
    reasons: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    with (atomic_dir(manifest_dir) as temporary,
          open(temporary / "skipped.jsonl", "w", encoding="utf-8", newline="\n") as skipped):

        def skip(row: dict[str, Any]) -> None:
            skipped.write(skipped_line(row))
            reasons[row["reason"]] += 1
            first[:] = first or [row]

        clips = _only_clips(DATASETS[config.name](config, Path(generated_dir)), skip)
        if not write_manifest(_counted(clips, counts), temporary / "manifest.parquet"):
            raise _nothing_usable(config.path, reasons, first)
    for batch in BATCHES:
        if config.name == "scenes":
            write_batch(config.scenes, config.seed, batch, Path(incoming_dir) / batch)
        else:
            with atomic_dir(Path(incoming_dir) / batch):
                pass
    seconds = counts.pop("milliseconds", 0) / 1000
    return {"dataset": config.name, **counts, "hours": round(seconds / 3600, 3), "skipped": dict(reasons)}


def _counted(clips: Iterator[Clip], counts: Counter[str]) -> Iterator[Clip]:
    for clip in clips:
        counts.update({"clips": 1, clip.split: 1, "captions": len(clip.captions),
                       "milliseconds": round(clip.duration_s * 1000)})
        yield clip
