"""Decode a sample of a folder's videos as the `shards` stage would, and read the captions that the folder has."""

import os
import re
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from hcmi.config import DatasetConfig, ShardsConfig
from hcmi.dataset import (
    PROBE_TIMEOUT_S,
    SOURCES,
    CaptionRow,
    check_split,
    files_by_bare_name,
    list_tars,
    locate_in,
    read_annotations,
    read_captions,
    videos_folder,
)
from hcmi.errors import DataError, DecodeError
from hcmi.video import DecoderPool, EncodeJob, Measured, ProbeJob, find_videos, measure_job, names_below, probe_job

TABLES = frozenset((".csv", ".json", ".jsonl", ".tsv", ".txt", ".xlsx"))
Captions = dict[str, dict[tuple[float | None, float | None], list[str]]]     # of each video, by start and end


@dataclass(frozen=True)
class Sample:
    """The files that were examined, by name."""

    good: dict[str, Measured]
    bad: dict[str, DecodeError]
    wall_seconds: float     # without the start of the processes
    undecodable: frozenset[str] = frozenset()   # those of `bad` whose headers can be read: `dataset` takes them

    @property
    def size(self) -> int:
        return len(self.good) + len(self.bad)

    @property
    def good_share(self) -> float:
        return len(self.good) / max(self.size, 1)

    @property
    def skip_fraction(self) -> float:
        """What the stage `shards` compares with `shards.max_skip_fraction`."""
        return len(self.undecodable) / max(len(self.good) + len(self.undecodable), 1)


@dataclass(frozen=True)
class Listing:
    """The videos of a folder and of its captions, by name."""

    videos: dict[str, Path]         # whether or not the file exists
    captions: Captions              # of those that have some
    splits: dict[str, str]          # of those that a row gives one
    outside: set[str] = field(default_factory=set)      # links out of the folder, which are left out


def read_videos(folder: Path, config: DatasetConfig) -> Listing:
    """What the folder and its captions name.

    Raises: DataError when there is no folder, or its captions are wrong: what would end the stage `dataset`.
    """
    if not os.path.isdir(folder):
        got = "a file" if os.path.exists(folder) else "nothing there"
        raise DataError(f"{folder}: need a folder of videos, got {got}. Name the folder that holds videos/ and "
                        f"captions.csv.")
    inside = videos_folder(folder)
    captions: Captions = defaultdict(lambda: defaultdict(list))
    splits: dict[str, str] = {}
    said: dict[str, str] = {}

    def add(row: CaptionRow) -> None:
        captions[row.video][row.start_s, row.end_s].append(row.caption or "")
        check_split(row, splits.get(row.video), said.get(row.video, ""))
        if row.split and row.video not in splits:
            splits[row.video], said[row.video] = row.split, row.where

    if os.path.isfile(folder / "captions.csv"):
        name_on_disk, locate = names_below(inside), locate_in(inside)
        videos: dict[str, Path] = {}
        outside: set[str] = set()
        for row in read_captions(folder / "captions.csv"):
            row = replace(row, video=name_on_disk(row.video))
            add(row)
            if row.video in videos:
                continue
            videos[row.video] = inside / row.video
            try:
                locate(row)
            except DecodeError as error:
                outside |= {row.video} if error.reason == "outside" else set()
        return Listing(videos, captions, splits, outside)
    if config.name in SOURCES and os.path.realpath(config.path) == os.path.realpath(folder):
        for row in read_annotations(config):
            add(row)
        files = files_by_bare_name(folder)
        return Listing({name: Path(files.get(unicodedata.normalize("NFC", name), inside / name)) for name in captions},
                       captions, splits)
    return Listing({path.relative_to(inside).as_posix(): path for path in find_videos(inside)}, captions, splits)


def check_tars(path: str) -> None:
    """Raises: DataError when `path` names no tar, or one that is not there. URLs and commands are not tried."""
    for tar in list_tars(path):
        if not re.match(r"\w+:", tar) and not os.path.exists(tar):
            raise DataError(f"{tar}: need a tar that can be opened, got nothing there. Correct dataset.path.")


def other_table(folder: Path) -> Path | None:
    """A table of captions that has another name or place than captions.csv has, or None."""
    found = (path for place in {folder, videos_folder(folder)} for path in place.iterdir()
             if path.suffix.lower() in TABLES and "caption" in path.name.lower() and path != folder / "captions.csv")
    return min(found, default=None)


def examine_sample(videos: dict[str, Path], config: ShardsConfig, seconds: float) -> Sample:
    """Examine these files one after another on all cores; none is begun after `seconds`.

    Those that fail are opened once more at the end.
    """
    begun = time.monotonic()
    good: dict[str, Measured] = {}
    bad: dict[str, DecodeError] = {}

    def jobs() -> Iterator[EncodeJob]:
        for name, path in videos.items():
            if time.monotonic() - begun > seconds:
                return
            yield EncodeJob(name, str(path), config.num_frames, config.size, quality=config.quality)
    started = None
    with DecoderPool(config.num_workers, config.decode_timeout_s, measure_job) as pool:
        for job, result in pool.map(jobs()):
            if started is None:     # the processes are running, and each has worked about as long as this one
                started = time.monotonic() - (result.seconds if isinstance(result, Measured) else 0.0)
            if isinstance(result, Measured):
                good[job.key] = result
            else:
                bad[job.key] = result
    wall_seconds = time.monotonic() - (started or begun)
    probes = [ProbeJob(name, str(videos[name])) for name in bad]
    with DecoderPool(config.num_workers, PROBE_TIMEOUT_S, probe_job) as pool:
        undecodable = frozenset(job.key for job, found in pool.map(probes) if not isinstance(found, DecodeError))
    return Sample(good, bad, wall_seconds, undecodable)
