"""The index of a folder of videos that is searched without a pipeline; only new files are decoded and encoded.

Each pair of a model and a folder has its own index in the cache. Files are known by their bytes: a renamed file keeps
its embeddings, a changed one is encoded again, and a deleted one is no longer found. Long videos are cut into clips, so
that an answer points to a part of them.
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

from hcmi.errors import DataError, DecodeError, MachineError, SearchIndexError, shown
from hcmi.files import ask_to_write, atomic_file
from hcmi.index import SearchIndex, add_videos, create_index, model_card, remove_videos
from hcmi.model import HcmiModel, encode_frames
from hcmi.progress import track
from hcmi.types import Clip, VideoTokens
from hcmi.video import Decoded, DecodeJob, DecoderPool, find_videos, probe, sha256

CLIP_SECONDS = 30.0     # [ours] a video of more than twice this is cut into equal clips of about this length
BATCH = 16
COMMIT = 256            # files that become searchable at a time: after an interruption, the next run continues there


@dataclass(frozen=True)
class FolderIndex:
    """Where the index is, and which files are not in it: relative name -> the reason, one line."""

    path: Path
    num_files: int
    skipped: dict[str, str]
    news: dict[str, str]            # the skipped files that the last visit did not skip


@dataclass(frozen=True)
class _File:
    """What is known of one file."""

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    problem: str | None = None      # why it cannot be searched


@dataclass(frozen=True)
class _EncodedFile:
    """The clips of one new file with their tokens and frame times; none, and a problem, when no clip can be decoded."""

    sha256: str
    rows: list[tuple[Clip, VideoTokens, np.ndarray]]
    problem: str | None = None


def index_folder(model: HcmiModel, folder: str | Path, cache: str | Path | None = None, num_workers: int = 0,
                 timeout_s: float = 20.0) -> FolderIndex:
    """Bring the index of `folder` up to date. `cache`: default $HCMI_CACHE or ~/.cache/hcmi.

    Raises: DataError when the folder is missing, or holds no video that can be decoded; MachineError when nothing can
    be written to the cache.
    """
    folder = Path(os.path.realpath(folder))
    found = videos_by_name(folder)
    home = _home(folder, _maker(model), cache)
    known = _read_notes(home / "files.json")
    files = {name: _know_file(str(path), known.get(name)) for name, path in found.items()}
    before = {name for name, file in files.items() if file.problem}
    files = _hash_files(files)
    index = _follow_files(_open_or_create(home / "index", model), files)
    new = _new_files(index, files)
    problems = _add_files(index, new, model, num_workers, timeout_s)
    for name, file in files.items():
        if file.sha256 in problems:         # the message names the one of equal files that was read
            own = problems[file.sha256].replace(shown(new[file.sha256].path), shown(file.path))
            files[name] = replace(file, problem=own)
    with atomic_file(home / "files.json") as path:
        path.write_text(json.dumps({name: vars(file) for name, file in files.items()}), encoding="utf-8")
    skipped = {name: file.problem for name, file in files.items() if file.problem}
    if len(skipped) == len(files):
        raise DataError(f"{folder}: need a video that can be decoded, got {len(files)} that cannot. The first: "
                        f"{next(iter(skipped.values()))}")
    news = {name: problem for name, problem in skipped.items() if name not in before}
    return FolderIndex(index.folder, len(files), skipped, news)


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


def cut(duration_s: float) -> list[tuple[float, float | None]]:
    """(start_s, end_s) of the clips that a video is searched by; None is the end of the file."""
    if duration_s <= 2 * CLIP_SECONDS:
        return [(0.0, None)]
    edges = np.linspace(0, duration_s, round(duration_s / CLIP_SECONDS) + 1).round(3).tolist()
    return [(start, end) for start, end in zip(edges, [*edges[1:-1], None], strict=False)]


def _maker(model: HcmiModel) -> str:
    """What made the tokens: the model, and the precision of its towers where it is not float32."""
    return model.fingerprint if model.dtype == torch.float32 else f"{model.fingerprint} {model.dtype}"


def _home(folder: Path, maker: str, cache: str | Path | None) -> Path:
    """Where the index of a model and a folder is kept. Raises: MachineError when nothing can be written there."""
    root = Path(cache or os.environ.get("HCMI_CACHE") or os.path.expanduser("~/.cache/hcmi"))
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


def _know_file(path: str, old: _File | None) -> _File:
    """What the last visit knew of a file, unless its size or modification time has changed."""
    try:
        status = os.stat(path)
    except OSError:         # `sha256` raises the same error and gives the reason
        return old if old is not None and old.size < 0 else _File(path, -1, -1)
    new = _File(path, status.st_size, status.st_mtime_ns)
    return old if old is not None and (old.size, old.mtime_ns, old.path) == (new.size, new.mtime_ns, path) else new


def _hash_files(files: dict[str, _File]) -> dict[str, _File]:
    """The files with the hash of each; those that cannot be read have a problem instead."""
    new = [name for name, file in files.items() if not file.sha256]
    hashed = dict(files)
    for name in track(new, "read files", unit="file") if len(new) > COMMIT else new:
        try:
            hashed[name] = replace(files[name], sha256=sha256(files[name].path), problem=None)
        except DecodeError as error:
            hashed[name] = replace(files[name], problem=str(error))
    return hashed


def _open_or_create(folder: Path, model: HcmiModel) -> SearchIndex:
    """The index in `folder`. A broken one is deleted and created again, because it is only a cache."""
    try:
        return SearchIndex.open(folder, load=True)      # every file is opened, so that any broken one is found here
    except SearchIndexError:
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


def _new_files(index: SearchIndex, files: dict[str, _File]) -> dict[str, _File]:
    """sha256 -> the files to add to the index: one of each content."""
    indexed = {clip.sha256 for clip in index.clips(index.live_rows())} if len(index) else set()
    return {file.sha256: file for file in reversed(files.values())
            if file.sha256 not in indexed and file.problem is None}


def _add_files(index: SearchIndex, new: dict[str, _File], model: HcmiModel, num_workers: int, timeout_s: float
               ) -> dict[str, str]:
    """Decode, encode and index new files, given by sha256; sha256 -> problem of those that cannot be searched."""
    with DecoderPool(num_workers, timeout_s, probe) as probers, DecoderPool(num_workers, timeout_s) as decoders:
        jobs, problems = _decode_jobs(list(new.values()), probers, model)
        encoded = _encode(model, decoders, jobs, new)
        while chunk := list(islice(encoded, COMMIT)):
            problems |= {file.sha256: file.problem for file in chunk if file.problem is not None}
            if rows := [row for file in chunk for row in file.rows]:
                clips, tokens, times = zip(*rows, strict=True)
                add_videos(index.folder, clips, zip(tokens, times, strict=True))
    return problems


def _decode_jobs(files: list[_File], probers: DecoderPool, model: HcmiModel) -> tuple[list[DecodeJob], dict[str, str]]:
    """One job for each clip of each file, and sha256 -> problem of the files that cannot be probed.

    A job's key is (sha256, number of the clip, duration in seconds that the container claims).
    """
    jobs, problems = [], {}
    sha256_of = {file.path: file.sha256 for file in files}
    for path, info in track(probers.map(sha256_of), "probe", total=len(files), unit="file") if files else ():
        if isinstance(info, DecodeError):
            problems[sha256_of[path]] = str(info)
            continue
        for number, (start_s, end_s) in enumerate(cut(info.duration_s)):
            jobs.append(DecodeJob((sha256_of[path], number, info.duration_s), path, model.config.num_frames,
                                  model.processor.image_size, start_s, end_s, square=model.processor.square))
    return jobs, problems


def _encode(model: HcmiModel, decoders: DecoderPool, jobs: list[DecodeJob], files: dict[str, _File]
            ) -> Iterator[_EncodedFile]:
    """Each file as soon as all of its clips have been decoded. `files`: by sha256."""
    num_clips = Counter(job.key[0] for job in jobs)
    waiting = Counter(num_clips)
    done: dict[str, list[tuple[Clip, VideoTokens, np.ndarray]]] = {sha256: [] for sha256 in num_clips}
    errors: dict[str, str] = {}
    results = iter(track(decoders.map(jobs), "read videos", total=len(jobs), unit="clip") if jobs else ())
    while batch := list(islice(results, BATCH)):
        good = [(job, decoded) for job, decoded in batch if not isinstance(decoded, DecodeError)]
        for (job, decoded), tokens in zip(good, _tokens(model, [decoded for _, decoded in good]), strict=True):
            sha256, number, _ = job.key
            clip = _clip(job, decoded, files[sha256], number if num_clips[sha256] > 1 else None)
            done[sha256].append((clip, tokens, np.array([decoded.times_s], np.float32)))
        for job, decoded in batch:
            sha256 = job.key[0]
            waiting[sha256] -= 1
            if isinstance(decoded, DecodeError):
                errors.setdefault(sha256, str(decoded))
            if not waiting[sha256]:
                rows = done.pop(sha256)
                yield _EncodedFile(sha256, rows, None if rows else errors[sha256])


def _tokens(model: HcmiModel, decoded: list[Decoded]) -> list[VideoTokens]:
    """Tokens of each clip, encoded as one batch."""
    if not decoded:
        return []
    tokens = encode_frames(model, np.stack([clip.frames for clip in decoded])).to("cpu")
    return [tokens[row:row + 1] for row in range(len(decoded))]


def _clip(job: DecodeJob, decoded: Decoded, file: _File, number: int | None) -> Clip:
    """The last clip ends where the container says that the file ends, or at its last frame if that is later."""
    _, _, duration_s = job.key
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(file.path).stem)[:60]
    end_s = job.end_s if job.end_s is not None else max(duration_s, decoded.times_s[-1])
    suffix = "" if number is None else f"-{number:03d}"
    return Clip(f"{stem}-{file.sha256[:8]}{suffix}", file.path, "test", (), job.start_s, end_s, end_s - job.start_s,
                file.sha256, {})
