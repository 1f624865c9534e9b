"""The `folder` format for people's own videos: `<dir>/videos/*` and `<dir>/captions.csv`, or all in `<dir>` itself."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path, PureWindowsPath
from typing import Any

from hcmi.config import DatasetConfig, WindowsConfig
from hcmi.dataset.build_clips import build_clips, clip_id
from hcmi.dataset.captions import CaptionRow, read_captions
from hcmi.dataset.near_duplicates import NearDuplicate
from hcmi.errors import DataError
from hcmi.files import project_path
from hcmi.types import Clip, Skip, path_text
from hcmi.video import find_videos, is_text, likely_names, names_below, refusal

Found = Iterator[Clip | Skip | NearDuplicate]


class NothingUsableError(DataError):
    """A data set without a usable clip. `skipped` holds what was left out, or the first of it."""

    def __init__(self, message: str, skipped: list[Skip]):
        super().__init__(message)
        self.skipped = skipped


def iter_folder(folder: str | Path, config: DatasetConfig, captions_required: bool = True,
                windows: WindowsConfig | None = None) -> Found:
    """The clips of a folder in the `folder` format in order of video_id, and a Skip for everything left out.

    Without `captions_required` every video file becomes a clip, with the captions that captions.csv has for it, if
    there is one. With `windows`, a long video without captions is divided, and each window is a clip.

    Raises: DataError when the table is wrong or names a file outside the folder.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: need a folder with videos/ and captions.csv, found none. Correct dataset.path.")
    videos = videos_folder(folder)
    rows: Iterable[CaptionRow] = ()
    if captions_required or os.path.isfile(folder / "captions.csv"):
        rows = read_captions(folder / "captions.csv")
    name_on_disk = names_below(videos)
    rows = (replace(row, video=name_on_disk(row.video)) for row in rows)
    if not captions_required:
        rows = chain(rows, _uncaptioned(videos))
    return build_clips(rows, locate_in(videos), config, windows=windows)


def videos_folder(folder: Path) -> Path:
    """Where the videos of a folder in the `folder` format lie: names in its captions.csv are relative to it."""
    return folder / "videos" if os.path.isdir(folder / "videos") else folder


def table_cells(clip: Clip, folder: Path) -> tuple[str, str, str]:
    """The cells video, start and end with which a captions.csv in `folder` names this clip of it.

    Start and end are empty where the file's are meant. A clip does not know how long its file is, but its id names a
    part that ends before the file does.
    """
    name = os.path.relpath(clip.path, videos_folder(folder))
    if clip.video_id.startswith(clip_id(path_text(name), clip.start_s, clip.end_s)):
        return name, str(clip.start_s), str(clip.end_s)
    return name, str(clip.start_s) if clip.start_s else "", ""


def _uncaptioned(videos: Path) -> Iterator[CaptionRow]:
    for path in find_videos(videos):
        yield CaptionRow(path.relative_to(videos).as_posix(), None, where=str(path))


def locate_in(videos: Path) -> Callable[[CaptionRow], str]:
    """A function that gives the path of a row's video below `videos`, whether or not the file exists.

    It raises: DataError when the name is absolute or has `..` in it, DecodeError when it is a link out of the folder,
    or when there is no such file and the name of one that is there can be said.
    """
    return partial(_locate, videos, Path(os.path.realpath(videos)), likely_names(videos))


def _locate(videos: Path, inside: Path, likely: Callable[[str], str], row: CaptionRow) -> str:
    name, where = row.video, row.where
    if os.path.isabs(name) or PureWindowsPath(name).is_absolute():
        raise DataError(f"{where}: need a path inside {videos}, got the absolute path {name!r}. Copy the file there "
                        f"and name it relative to that folder.")
    if ".." in name.split("/"):
        raise DataError(f"{where}: need a path inside {videos}, got {name!r} with '..'. Copy the file there.")
    path = project_path(videos / name)
    if not os.path.lexists(path):
        if not is_text(name):
            raise refusal("missing", path, f"{where} holds bytes that are no UTF-8: save the table as UTF-8")
        if alike := likely(name):
            raise refusal("missing", path, f"there is {alike}: correct {where}")
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(inside):
        raise refusal("outside", path, f"to {real}")
    return path


def read_folder(folder: str | Path, config: DatasetConfig, captions_required: bool = True,
                windows: WindowsConfig | None = None) -> tuple[list[Clip], list[Skip]]:
    """All of `iter_folder` at once: the clips, and what was left out.

    Raises: DataError as `iter_folder` does; NothingUsableError when not one clip is left.
    """
    left_out: list[Skip | NearDuplicate] = []
    clips = list(only_clips(iter_folder(folder, config, captions_required, windows), left_out.append))
    skipped = [one for one in left_out if isinstance(one, Skip)]
    if not clips:
        raise nothing_usable(folder, Counter(skip.reason for skip in skipped), skipped, captions_required)
    return clips, skipped


def only_clips(found: Found, note: Callable[[Any], object]) -> Iterator[Clip]:
    """The clips among `found`; everything else is given to `note`."""
    for one in found:
        if isinstance(one, Clip):
            yield one
        else:
            note(one)


def nothing_usable(folder: str | Path, reasons: Counter[str], skipped: list[Skip],
                   captions_required: bool = True) -> NothingUsableError:
    """The error for a data set without a usable clip; `skipped` holds at least the first Skip, if there is one."""
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "no rows"
    first = f" The first: {skipped[0].detail}" if skipped else ""
    what, step = ("readable video with a caption", "Add one or correct the table.") if captions_required else (
        "readable video", "Add one.")
    return NothingUsableError(f"{folder}: need at least one {what}, got none ({counts}). {step}{first}", skipped)
