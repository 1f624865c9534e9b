"""Decode and encode video files for an index: a short video as one clip, a long one as windows that overlap.

The frames of a long video lie on a grid of time, as many to a window as the model takes. Each is decoded once and goes
through the towers once; windows then share their features. Only features are kept for a whole film, not pixels.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hcmi.config import WindowsConfig
from hcmi.errors import DecodeError
from hcmi.model import HcmiModel
from hcmi.progress import track
from hcmi.types import Clip, VideoTokens
from hcmi.video import Decoded, DecodeJob, DecoderPool, check_length, cut, probe

PART_SECONDS = 60.0     # of a film that one job decodes: its process starts at the key frame before
PART_FRAMES = 240       # at most, to bound the memory
TOWER_FRAMES = 192      # that go through the towers at a time
WINDOWS = 256           # whose tokens are computed at a time

Tokens = tuple[VideoTokens, np.ndarray]     # of some clips, and the seconds [B, T] of their frames


@dataclass
class _Film:
    """One file while its parts are decoded. `frames_s`: the grid of a long video; empty for one clip."""

    path: str
    duration_s: float
    frames_s: np.ndarray
    waiting: int = 0                # parts that are not decoded yet
    parts: dict[int, tuple[torch.Tensor, np.ndarray]] = field(default_factory=dict)    # features [N, D], seconds [N]
    error: str = ""


@dataclass(frozen=True)
class EncodedFile:
    """The clips of one file, and their features; a problem, and no clips, when nothing can be decoded."""

    sha256: str
    clips: tuple[Clip, ...] = ()
    features_ND: torch.Tensor | None = None
    times_N: np.ndarray | None = None
    frames_VT: np.ndarray | None = None     # which of the N frames each clip has
    problem: str | None = None

    def tokens(self, model: HcmiModel) -> Iterator[Tokens]:
        """Of all clips in order, some at a time."""
        assert self.features_ND is not None, f"{self.sha256}: nothing was decoded"
        assert self.times_N is not None and self.frames_VT is not None, f"{self.sha256}: features without times"  # noqa: PT018
        for start in range(0, len(self.clips), WINDOWS):
            frames_BT = self.frames_VT[start:start + WINDOWS]
            with torch.inference_mode():
                tokens = model.head.video(self.features_ND[frames_BT], torch.ones(frames_BT.shape, dtype=torch.bool))
            yield tokens, self.times_N[frames_BT]


def encode_files(model: HcmiModel, paths: dict[str, str], windows: WindowsConfig, num_workers: int, timeout_s: float
                 ) -> Iterator[EncodedFile]:
    """Each file, given by its sha256, once all of it has been decoded."""
    films: dict[str, _Film] = {}
    jobs: list[DecodeJob] = []
    sha256_of = {path: sha256 for sha256, path in paths.items()}
    with DecoderPool(num_workers, timeout_s, probe) as probers:
        for path, info in track(probers.map(sha256_of), "probe", total=len(paths), unit="file") if paths else ():
            sha256 = sha256_of[path]
            try:
                if isinstance(info, DecodeError):
                    raise info
                check_length(path, info.duration_s)
            except DecodeError as error:
                yield EncodedFile(sha256, problem=str(error))
                continue
            film = films[sha256] = _Film(path, info.duration_s, _grid(info.duration_s, windows, model))
            own = list(_jobs(sha256, film, model))
            film.waiting = len(own)
            jobs += own
    with DecoderPool(num_workers, timeout_s) as decoders:
        for job, decoded in track(decoders.map(jobs), "read videos", total=len(jobs), unit="part") if jobs else ():
            sha256, number = job.key
            film = films[sha256]
            film.waiting -= 1
            if isinstance(decoded, DecodeError):
                film.error = film.error or str(decoded)
            else:
                film.parts[number] = _features(model, decoded), np.array(decoded.times_s, np.float32)
            if not film.waiting:
                yield _finished(sha256, films.pop(sha256), windows, model.config.num_frames)


def _grid(duration_s: float, windows: WindowsConfig, model: HcmiModel) -> np.ndarray:
    """The seconds of the frames of a video that is divided: the middles of equal steps."""
    if len(cut(duration_s, windows)) == 1:
        return np.zeros(0)
    step_s = windows.seconds / model.config.num_frames
    return (np.arange(max(int(np.ceil(duration_s / step_s - 1e-6)), model.config.num_frames)) + 0.5) * step_s


def _jobs(sha256: str, film: _Film, model: HcmiModel) -> Iterator[DecodeJob]:
    """One job for a short video; for a film one for each part, each with the key (sha256, number of the part)."""
    size, square = model.processor.image_size, model.processor.square
    if not len(film.frames_s):
        yield DecodeJob((sha256, 0), film.path, model.config.num_frames, size, square=square)
        return
    step_s = film.frames_s[1] - film.frames_s[0]
    count = max(1, min(PART_FRAMES, round(PART_SECONDS / step_s)))
    for number, start in enumerate(range(0, len(film.frames_s), count)):
        times_s = film.frames_s[start:start + count]
        end_s = None if start + count >= len(film.frames_s) else float(times_s[-1] + step_s / 2)
        yield DecodeJob((sha256, number), film.path, len(times_s), size, float(times_s[0] - step_s / 2), end_s, "pyav",
                        square, tuple(times_s.tolist()))


def _features(model: HcmiModel, decoded: Decoded) -> torch.Tensor:
    """[N, D] of every frame, each of which goes through the towers once."""
    parts = []
    for start in range(0, len(decoded.frames), TOWER_FRAMES):
        pixels = model.processor.frames(decoded.frames[None, start:start + TOWER_FRAMES])
        with torch.inference_mode():
            parts.append(model.frame_features(pixels)[0])
    return torch.cat(parts)


def _finished(sha256: str, film: _Film, windows: WindowsConfig, num_frames: int) -> EncodedFile:
    """The clips of a file. A window with a frame that could not be decoded is left out."""
    if not film.parts:
        return EncodedFile(sha256, problem=film.error)
    features_ND = torch.cat([film.parts[number][0] for number in sorted(film.parts)])
    times_N = np.concatenate([film.parts[number][1] for number in sorted(film.parts)])
    end_s = max(film.duration_s, float(times_N[-1]))
    if not len(film.frames_s):
        return EncodedFile(sha256, (_clip(sha256, film.path, None, 0.0, end_s),), features_ND, times_N,
                           np.arange(num_frames)[None])
    step_s = windows.seconds / num_frames
    place = np.full(len(film.frames_s), -1)         # of each frame of the grid among those that were decoded
    place[np.rint(times_N / step_s - 0.5).astype(int)] = np.arange(len(times_N))
    clips, rows = [], []
    for number, first in enumerate(_first_frames(len(film.frames_s), windows, num_frames)):
        frames_T = place[first:first + num_frames]
        if (frames_T >= 0).all():
            clips.append(_clip(sha256, film.path, number, first * step_s, min((first + num_frames) * step_s, end_s)))
            rows.append(frames_T)
    if not clips:
        return EncodedFile(sha256, problem=film.error)
    return EncodedFile(sha256, tuple(clips), features_ND, times_N, np.stack(rows))


def _first_frames(num_grid: int, windows: WindowsConfig, num_frames: int) -> Iterable[int]:
    """The first frame of each window. Windows begin a whole number of frames apart, at least one."""
    step = max(1, round((windows.seconds - windows.overlap_seconds) / windows.seconds * num_frames))
    last = num_grid - num_frames
    return [*range(0, last, step), last]


def _clip(sha256: str, path: str, number: int | None, start_s: float, end_s: float) -> Clip:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem)[:60]
    suffix = "" if number is None else f"-{number:05d}"
    start_s, end_s = round(start_s, 3), round(end_s, 3)
    return Clip(f"{stem}-{sha256[:8]}{suffix}", path, "test", (), start_s, end_s, round(end_s - start_s, 6), sha256, {})
