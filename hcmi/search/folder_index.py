"""A folder of videos, made searchable without a pipeline and kept so: only what is new is decoded and encoded.

Each (model, folder) has its own index in the cache, keyed by the files' bytes: a renamed file keeps its embeddings, a
changed one is encoded again, a deleted one is no longer found. Long videos are cut into clips, so that an answer
points into them.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from hcmi.errors import DataError, DecodeError, MachineError, SearchIndexError
from hcmi.files import ask_to_write, atomic_file
from hcmi.index import SearchIndex, add_videos, create_index, model_card, remove_videos
from hcmi.model import HcmiModel
from hcmi.progress import track
from hcmi.types import Clip, VideoTokens
from hcmi.video import Decoded, DecodeJob, DecoderPool, find_videos, probe, sha256

CLIP_SECONDS = 30.0     # [ours] a video of more than twice this is cut into equal clips of about this length
BATCH = 16
COMMIT = 256            # clips made searchable at a time: an interrupted first run goes on from there


@dataclass(frozen=True)
class FolderIndex:
    """Where the index is, and why some files are not in it: relative name -> message, `news` since the last visit."""

    path: Path
    num_files: int
    skipped: dict[str, str]
    news: dict[str, str]


@dataclass
class _File:
    """What is known of one file; `problem` is why it cannot be searched."""

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    problem: str | None = None


def index_folder(model: HcmiModel, folder: str | Path, cache: str | Path | None = None, num_workers: int = 0,
                 timeout_s: float = 20.0) -> FolderIndex:
    """Bring the index of `folder` up to date and say where it is. `cache`: default $HCMI_CACHE or ~/.cache/hcmi.

    Raises: DataError when the folder is missing, or holds no video that can be decoded.
    """
    folder = Path(os.path.realpath(folder))
    found = videos_by_name(folder)
    home = _home(folder, model.fingerprint, cache)
    known = _read_notes(home / "files.json")
    files = {name: _know_file(str(path), known.get(name)) for name, path in found.items()}
    before = {name for name, file in files.items() if file.problem}
    _hash([file for file in files.values() if not file.sha256])
    index = _follow_files(_open_or_create(home / "index", model), files)
    indexed = {clip.sha256 for clip in index.clips(index.live_rows())} if len(index) else set()
    new = {file.sha256: file for file in reversed(files.values())
           if file.sha256 not in indexed and file.problem is None}
    with DecoderPool(num_workers, timeout_s, probe) as probers, DecoderPool(num_workers, timeout_s) as decoders:
        jobs = _decode_jobs(list(new.values()), probers, model)
        encoded = _encode(model, decoders, jobs, new)
        while chunk := list(islice(encoded, COMMIT)):
            clips, tokens, times = zip(*(row for rows in chunk for row in rows), strict=True)
            add_videos(index.folder, clips, zip(tokens, times, strict=True))
    with atomic_file(home / "files.json") as path:
        path.write_text(json.dumps({name: vars(file) for name, file in files.items()}), encoding="utf-8")
    skipped = {name: file.problem for name, file in files.items() if file.problem}
    if len(skipped) == len(files):
        raise DataError(f"{folder}: need a video that can be decoded, got {len(files)} that cannot. The first: "
                        f"{next(iter(skipped.values()))}")
    news = {name: problem for name, problem in skipped.items() if name not in before}
    return FolderIndex(index.folder, len(files), skipped, news)


def videos_by_name(folder: Path) -> dict[str, Path]:
    """Relative name -> path of all below `folder` that is called like a video, hidden files left out.

    Raises: DataError when the folder is missing or holds none.
    """
    if not os.path.isdir(folder):
        got = "a file" if os.path.exists(folder) else "nothing there"
        raise DataError(f"{folder}: need a folder of videos, got {got}. Correct --videos.")
    found = {path.relative_to(folder).as_posix(): path for path in find_videos(folder)}
    if not found:
        raise DataError(f"{folder}: need at least one video file (such as .mp4, .mkv or .webm), got none. "
                        "Correct --videos.")
    return found


def cut(duration_s: float) -> list[tuple[float, float | None]]:
    """(start_s, end_s) of the clips a video is searched by; None is the end of the file."""
    if duration_s <= 2 * CLIP_SECONDS:
        return [(0.0, None)]
    edges = np.linspace(0, duration_s, round(duration_s / CLIP_SECONDS) + 1).round(3).tolist()
    return [(start, end) for start, end in zip(edges, [*edges[1:-1], None], strict=False)]


def _home(folder: Path, fingerprint: str, cache: str | Path | None) -> Path:
    """Where the index of a model and a folder is kept. Raises: MachineError when nothing can be written there."""
    root = Path(cache or os.environ.get("HCMI_CACHE") or os.path.expanduser("~/.cache/hcmi"))
    try:
        ask_to_write(files=[root / "index.json"])
    except MachineError as error:
        raise MachineError(f"{error} HCMI_CACHE names another folder for what `--videos` keeps.") from error
    return root / hashlib.sha256(os.fsencode(f"{fingerprint}\n{folder}")).hexdigest()[:24]


def _read_notes(path: Path) -> dict[str, _File]:
    """What the last visit knew of each file, by name."""
    try:
        return {name: _File(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):    # a first visit, or notes of another version
        return {}


def _know_file(path: str, old: _File | None) -> _File:
    """What the last visit knew of a file unless its size or time of change is another by now."""
    try:
        status = os.stat(path)
    except OSError:         # `sha256` finds the same and says why
        return old if old is not None and old.size < 0 else _File(path, -1, -1)
    new = _File(path, status.st_size, status.st_mtime_ns)
    return old if old is not None and (old.size, old.mtime_ns, old.path) == (new.size, new.mtime_ns, path) else new


def _hash(files: list[_File]) -> None:
    for file in track(files, "read files", unit="file") if len(files) > COMMIT else files:
        try:
            file.sha256, file.problem = sha256(file.path), None
        except DecodeError as error:
            file.problem = str(error)


def _open_or_create(folder: Path, model: HcmiModel) -> SearchIndex:
    """It is only a cache: one that is broken is made again."""
    try:
        return SearchIndex.open(folder)
    except SearchIndexError:
        shutil.rmtree(folder, ignore_errors=True)
        return create_index(folder, model_card(model))


def _follow_files(index: SearchIndex, files: dict[str, _File]) -> SearchIndex:
    """Forget files that are gone; renamed ones keep their tokens under the new path."""
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


def _decode_jobs(files: list[_File], probers: DecoderPool, model: HcmiModel) -> list[DecodeJob]:
    """One job per clip of each new file; the key is (sha256, number of the clip, claimed seconds of the video)."""
    jobs = []
    by_path = {file.path: file for file in files}
    for path, info in track(probers.map(by_path), "probe", total=len(files), unit="file") if files else ():
        if isinstance(info, DecodeError):
            by_path[path].problem = str(info)
            continue
        for number, (start_s, end_s) in enumerate(cut(info.duration_s)):
            jobs.append(DecodeJob((by_path[path].sha256, number, info.duration_s), path, model.config.num_frames,
                                  model.processor.image_size, start_s, end_s))
    return jobs


Encoded = tuple[Clip, VideoTokens, np.ndarray]


def _encode(model: HcmiModel, decoders: DecoderPool, jobs: list[DecodeJob], files: dict[str, _File]
            ) -> Iterator[list[Encoded]]:
    """The clips of one file after the other, each file whole; notes the problem of files that have none."""
    left = Counter(job.key[0] for job in jobs)
    many = Counter(left)
    done: dict[str, list[Encoded]] = {sha256: [] for sha256 in left}
    errors: dict[str, str] = {}
    results = iter(track(decoders.map(jobs), "read videos", total=len(jobs), unit="clip") if jobs else ())
    while batch := list(islice(results, BATCH)):
        good = [(job, clip) for job, clip in batch if not isinstance(clip, DecodeError)]
        if good:
            pixels = model.processor.frames(np.stack([clip.frames for _, clip in good]))
            with torch.inference_mode():
                tokens = model.encode_videos(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool))
            for row, (job, clip) in enumerate(good):
                sha256, number, _ = job.key
                made = _clip(job, clip, files[sha256], number if many[sha256] > 1 else None)
                done[sha256].append((made, tokens[row:row + 1], np.array([clip.times_s], np.float32)))
        for job, clip in batch:
            sha256 = job.key[0]
            left[sha256] -= 1
            if isinstance(clip, DecodeError):
                errors.setdefault(sha256, str(clip))
            if not left[sha256]:
                rows = done.pop(sha256)
                if rows:
                    yield rows
                else:
                    files[sha256].problem = errors[sha256]


def _clip(job: DecodeJob, decoded: Decoded, file: _File, number: int | None) -> Clip:
    """The last clip ends where the file claims to, or at its last frame if that is later."""
    _, _, duration_s = job.key
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(file.path).stem)[:60]
    end_s = job.end_s if job.end_s is not None else max(duration_s, decoded.times_s[-1])
    suffix = "" if number is None else f"-{number:03d}"
    return Clip(f"{stem}-{file.sha256[:8]}{suffix}", file.path, "test", (), job.start_s, end_s, end_s - job.start_s,
                file.sha256, {})
