"""The index of a folder of videos that is searched without a pipeline; only new files are decoded and encoded.

Each pair of a model and a folder has its own index in the cache. Files are known by their bytes: a renamed file keeps
its embeddings, a changed one is encoded again, and a deleted one is no longer found. Long videos are divided into
windows, so that an answer points to a part of them (`encode_files.py`).
"""

import hashlib
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hcmi.config import WindowsConfig
from hcmi.errors import DataError, DecodeError, MachineError, SearchIndexError, shown
from hcmi.files import ask_to_write, atomic_file, cache_folder
from hcmi.index import SearchIndex, add_videos, create_index, model_card, remove_videos
from hcmi.model import HcmiModel
from hcmi.progress import track
from hcmi.search.encode_files import EncodedFile, encode_files, may_pass
from hcmi.video import MACHINE_REASONS, find_videos, sha256

# Files become searchable with this many clips, or after this many seconds; an interrupted run continues there.
COMMIT, COMMIT_SECONDS = 256, 60.0
# After which a file is tried again that may have failed because of the machine: a failure can take as long as
# `timeout_s`, which is too long for every search.
RETRY_SECONDS = 600.0
# Chosen on films of the validation split of Scenes: docs/long-videos.md. Used where there is no params.yaml.
WINDOWS = WindowsConfig(cut="fixed", seconds=4.0, overlap_seconds=3.0, whole_seconds=30.0)


@dataclass(frozen=True)
class FolderIndex:
    """Where the index is, and which files are not in it: relative name -> the reason, one line."""

    path: Path
    num_files: int
    skipped: dict[str, str]
    news: dict[str, str]            # the skipped files that the last visit did not skip
    partial: dict[str, str]         # the files without a part: that this visit added, or a later one tries again


@dataclass(frozen=True)
class _File:
    """What is known of one file."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int                   # `cp -p`, `rsync -t` and `tar` restore the other time, never this one
    sha256: str = ""
    problem: str | None = None      # why it cannot be searched
    note: str | None = None         # which part of it is not in the index, where that may pass
    until: float | None = None      # time at which either is tried again; None: when the file has changed

    def looks_like(self, other: "_File") -> bool:
        """Whether path, size and both times are equal: then the bytes are taken to be equal too."""
        return ((self.path, self.size, self.mtime_ns, self.ctime_ns)
                == (other.path, other.size, other.mtime_ns, other.ctime_ns))

    def is_due(self) -> bool:
        """Whether it is time to try again. A time further ahead than any wait is of a clock that was wrong."""
        return self.until is not None and not 0 <= self.until - time.time() <= RETRY_SECONDS


def index_folder(model: HcmiModel, folder: str | Path, cache: str | Path | None = None,
                 windows: WindowsConfig = WINDOWS, num_workers: int = 0, timeout_s: float = 60.0) -> FolderIndex:
    """Bring the index of `folder` up to date. `cache`: default `cache_folder()`.

    Each way of dividing long videos has an index of its own. `timeout_s`: for a minute of a film, or a short video.

    Raises: DataError when the folder is missing, or holds no video that can be decoded; MachineError when nothing can
    be written to the cache.
    """
    folder = Path(os.path.realpath(folder))
    found = videos_by_name(folder)
    home = _home(folder, _maker(model, windows), cache)
    notes = home / "files.json"
    known = _read_notes(notes)
    files = {name: _know_file(str(path), known.get(name)) for name, path in found.items()}
    before = {name for name, old in known.items() if old.problem and name in files and old.looks_like(files[name])}
    files = _hash_files(files)
    index = _follow_files(_open_or_create(home / "index", model), files)
    indexed = {clip.sha256 for clip in index.clips(index.live_rows())} if len(index) else set()
    files = _keep_notes(files, known, indexed)
    names = defaultdict(list)
    for name, file in files.items():
        names[file.sha256].append(name)
    partial: dict[str, str] = {}
    new = _new_files(files, indexed)
    for encoded in _add_files(index, new, model, windows, num_workers, timeout_s):
        for name in names[encoded.sha256]:
            files[name] = _after(encoded, new[encoded.sha256], files[name])
            if encoded.note is not None:
                partial[name] = _about(files[name], encoded.note, new[encoded.sha256].path)
        if may_pass(encoded.error) and encoded.clips:       # before they are in the index: this run may be killed
            _write_notes(notes, files)
    _write_notes(notes, files)
    skipped = {name: file.problem for name, file in files.items() if file.problem}
    if len(skipped) == len(files):
        raise DataError(f"{folder}: need a video that can be decoded, got {len(files)} that cannot. The first: "
                        f"{next(iter(skipped.values()))}")
    news = {name: problem for name, problem in skipped.items() if name not in before}
    partial |= {name: file.note for name, file in files.items() if file.note}
    return FolderIndex(index.folder, len(files), skipped, news, partial)


def videos_by_name(folder: Path) -> dict[str, Path]:
    """Relative name -> path of every file below `folder` whose name is that of a video; hidden files are left out.

    Raises: DataError when the folder is missing or holds none.
    """
    if not os.path.isdir(folder):
        got = "a file" if os.path.exists(folder) else "nothing there"
        raise DataError(f"{folder}: need a folder of videos, got {got}. Correct the path.")
    found = {path.relative_to(folder).as_posix(): path for path in find_videos(folder)}
    if not found:
        raise DataError(f"{folder}: need at least one video file (such as .mp4, .mkv or .webm), got none. "
                        "Correct the path.")
    return found


def _maker(model: HcmiModel, windows: WindowsConfig) -> str:
    """What made the tokens: the model, the precision of its towers, and how long videos are divided."""
    return f"{model.fingerprint} {model.dtype} {windows}"


def _home(folder: Path, maker: str, cache: str | Path | None) -> Path:
    """Where the index of a model and a folder is kept. Raises: MachineError when nothing can be written there."""
    root = Path(cache or cache_folder())
    try:
        ask_to_write(files=[root / "index.json"])
    except MachineError as error:
        raise MachineError(f"{error} HCMI_CACHE names another folder for the indexes of folders of videos.") from error
    return root / hashlib.sha256(os.fsencode(f"{maker}\n{folder}")).hexdigest()[:24]


def _read_notes(path: Path) -> dict[str, _File]:
    """What the last visit knew of each file, by name."""
    try:
        return {name: _File(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):    # a first visit, or notes of another version
        return {}


def _write_notes(path: Path, files: dict[str, _File]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({name: vars(file) for name, file in files.items()}), encoding="utf-8")


def _know_file(path: str, old: _File | None) -> _File:
    """What the last visit knew of a file, unless its size or one of its times has changed."""
    try:
        status = os.stat(path)
    except OSError:         # `sha256` raises the same error and gives the reason
        return old if old is not None and old.size < 0 else _File(path, -1, -1, -1)
    new = _File(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if old is None or not old.looks_like(new):
        return new
    return new if old.is_due() else old


def _tried_again(error: DecodeError | None) -> float | None:
    """When a file that failed so is read again (`_File.until`)."""
    if error is None or not may_pass(error):
        return None
    return time.time() + (RETRY_SECONDS if error.reason in MACHINE_REASONS else 0)


def _hash_files(files: dict[str, _File]) -> dict[str, _File]:
    """The files with the hash of each; those that cannot be read have a problem instead."""
    new = [name for name, file in files.items() if not file.sha256]
    hashed = dict(files)
    for name in track(new, "read files", unit="file") if len(new) > COMMIT else new:
        try:
            hashed[name] = replace(files[name], sha256=sha256(files[name].path), problem=None)
        except DecodeError as error:
            hashed[name] = replace(files[name], problem=str(error), until=_tried_again(error))
    return hashed


def _open_or_create(folder: Path, model: HcmiModel) -> SearchIndex:
    """The index in `folder`. A broken one is deleted and created again, because it is only a cache.

    Raises: SearchIndexError when the machine does not read it now, as with too many open files.
    """
    try:
        return SearchIndex.open(folder, load=True)      # every file is opened, so that any broken one is found here
    except SearchIndexError as error:
        why = error.__cause__
        if isinstance(why, OSError) and not isinstance(why, FileNotFoundError):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return create_index(folder, model_card(model))


def _follow_files(index: SearchIndex, files: dict[str, _File]) -> SearchIndex:
    """The index without the files that are gone; renamed ones keep their tokens under the new path."""
    if not len(index):
        return index
    path_of = {file.sha256: file.path for file in reversed(files.values())}
    rows = index.live_rows()
    clips = index.clips(rows)
    gone = [clip.video_id for clip in clips if clip.sha256 not in path_of]
    moved = np.array([row for row, clip in zip(rows, clips, strict=True)
                      if path_of.get(clip.sha256, clip.path) != clip.path], np.int64)
    if gone:
        remove_videos(index.folder, gone)
    if len(moved):
        renamed = [replace(clip, path=path_of[clip.sha256]) for clip in index.clips(moved)]
        add_videos(index.folder, renamed, [(index.tokens(moved), index.times(moved))])
    return index.latest()


def _keep_notes(files: dict[str, _File], known: dict[str, _File], indexed: set[str]) -> dict[str, _File]:
    """The files with the last visit's notes about those of which a part is in the index.

    A note belongs to the bytes, as the windows do: it stays when the file is renamed, or when its times change.
    """
    kept = {old.sha256: (old.note, old.path, old.until) for old in known.values()
            if old.note and old.sha256 in indexed}
    found = dict(files)
    for name, file in files.items():
        if file.sha256 in kept:
            note, path, until = kept[file.sha256]
            found[name] = replace(file, note=_about(file, note, path), until=until)
        elif file.note is not None:
            found[name] = replace(file, note=None)
    return found


def _about(file: _File, message: str, path: str) -> str:
    """A message about the file at `path`, as one about a file of the same bytes."""
    return shown(message).replace(shown(path), shown(file.path))


def _after(encoded: EncodedFile, read: _File, file: _File) -> _File:
    """What is known of a file after the file `read`, of the same bytes, was encoded."""
    until = _tried_again(encoded.error)
    if encoded.clips:
        note = _about(file, encoded.note, read.path) if encoded.note and until is not None else None
        return replace(file, note=note, until=until)
    if file.note:       # the part that is in the index stays there
        return replace(file, until=until)
    return replace(file, problem=_about(file, str(encoded.error), read.path), until=until)


def _new_files(files: dict[str, _File], indexed: set[str]) -> dict[str, _File]:
    """sha256 -> the files to add to the index: one of each content."""
    return {file.sha256: file for file in reversed(files.values())
            if file.problem is None and (file.sha256 not in indexed or (file.note and file.is_due()))}


def _add_files(index: SearchIndex, new: dict[str, _File], model: HcmiModel, windows: WindowsConfig, num_workers: int,
               timeout_s: float) -> Iterator[EncodedFile]:
    """Decode, encode and index new files, given by sha256.

    Each is yielded before it is in the index. A film that is to be tried again comes after all before it are there, so
    that what is noted of them then is true.
    """
    ready: list[EncodedFile] = []

    def commit() -> None:
        clips = [clip for file in ready for clip in file.clips]
        if clips:
            add_videos(index.folder, clips, (tokens for file in ready for tokens in file.tokens(model)))
        # of a film that was divided without some of its cuts before
        old = index.clips(index.rows_of("sha256", [file.sha256 for file in ready if not may_pass(file.error)]))
        if stale := {clip.video_id for clip in old} - {clip.video_id for clip in clips}:
            remove_videos(index.folder, sorted(stale))
        ready.clear()

    committed = time.monotonic()
    paths = {sha256: file.path for sha256, file in new.items()}
    for file in encode_files(model, paths, windows, num_workers, timeout_s):
        if may_pass(file.error) and file.clips:
            commit()
        yield file
        if not file.clips:
            continue
        ready.append(file)
        if sum(len(file.clips) for file in ready) >= COMMIT or time.monotonic() - committed >= COMMIT_SECONDS:
            commit()
            committed = time.monotonic()
    commit()
