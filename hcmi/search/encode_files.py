"""Decode and encode video files for an index: a short video as one clip, a long one as windows that overlap.

The frames of a long video lie on a grid of time, as many to a window as the model takes. Where films are cut at shots,
each shot has a grid of its own. Each frame is decoded once and goes through the towers once; windows then share their
features. Only features are kept for a whole film, not pixels. Towers that see the frames of a clip together, such as
VideoPrism's, see each window by itself.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hcmi.config import WindowsConfig
from hcmi.errors import DecodeError
from hcmi.model import HcmiModel, check_finite, encode_features
from hcmi.progress import track
from hcmi.types import Clip, VideoTokens
from hcmi.video import (
    LASTING_REASONS,
    Decoded,
    DecodeJob,
    DecoderPool,
    check_detector,
    check_length,
    cut,
    cuts_jobs,
    find_cuts,
    probe,
    shots_of,
)

PART_SECONDS = 60.0     # of a film that one job decodes: its process starts at the key frame before
PART_FRAMES = 240       # at most, to bound the memory
TOWER_FRAMES = 192      # that go through the towers at a time
WINDOWS = 256           # whose tokens are computed at a time
SOUND_SECONDS = 0.5     # by which pictures may end before the file does: sound is often a little longer
GONE = ("missing", "unreadable")        # reasons of a file that went away while it was read

Tokens = tuple[VideoTokens, np.ndarray]     # of some clips, and the seconds [B, T] of their frames


@dataclass(frozen=True)
class _Part:
    """A part of a film, or a short video, that is decoded."""

    features_ND: torch.Tensor
    times_N: np.ndarray
    pictures_end_s: float | None    # as `Decoded` has them
    sound_end_s: float


@dataclass
class _Film:
    """One file while its parts are decoded. A short video, which is one clip, has no windows."""

    path: str
    duration_s: float
    windows: list[tuple[float, float, int]] = field(default_factory=list)   # start_s, end_s, first of T frames
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))        # [N] the middle of each frame's step
    steps_s: np.ndarray = field(default_factory=lambda: np.zeros(0))        # [N]
    waiting: int = 0                # parts that are not decoded yet
    parts: dict[int, _Part] = field(default_factory=dict)       # by the first frame of each
    error: DecodeError | None = None

    def fail(self, error: DecodeError) -> None:
        """Note why a part is missing: the first reason, and rather one that may have passed the next time."""
        if self.error is None or (may_pass(error) and not may_pass(self.error)):
            self.error = error


@dataclass(frozen=True)
class EncodedFile:
    """The clips of one file, and their features; no clips when nothing can be decoded.

    `error`: why nothing, or not all of a film, can be decoded. `note`: one line about such a film.
    """

    sha256: str
    clips: tuple[Clip, ...] = ()
    features_ND: torch.Tensor | None = None
    times_N: np.ndarray | None = None
    frames_VT: np.ndarray | None = None     # which of the N frames each clip has
    error: DecodeError | None = None
    note: str | None = None

    def tokens(self, model: HcmiModel) -> Iterator[Tokens]:
        """Of all clips in order, some at a time."""
        assert self.features_ND is not None, f"{self.sha256}: nothing was decoded"
        assert self.times_N is not None
        assert self.frames_VT is not None
        for start in range(0, len(self.clips), WINDOWS):
            frames_BT = self.frames_VT[start:start + WINDOWS]
            mask_BT = torch.ones(frames_BT.shape, dtype=torch.bool, device=model.device)
            with torch.inference_mode():
                tokens = model.head.video(self.features_ND[frames_BT].to(model.device), mask_BT)
            yield tokens.to("cpu"), self.times_N[frames_BT]


def may_pass(error: DecodeError | None) -> bool:
    """Whether a file that failed so may be read without an error the next time."""
    return error is not None and error.reason not in LASTING_REASONS


def encode_files(model: HcmiModel, paths: dict[str, str], windows: WindowsConfig, num_workers: int, timeout_s: float
                 ) -> Iterator[EncodedFile]:
    """Each file, given by its sha256, once all of it has been decoded."""
    films: dict[str, _Film] = {}
    sha256_of = {path: sha256 for sha256, path in paths.items()}
    with DecoderPool(num_workers, timeout_s, probe) as probers:
        for path, info in track(probers.map(sha256_of), "probe", total=len(paths), unit="file") if paths else ():
            try:
                if isinstance(info, DecodeError):
                    raise info
                check_length(path, info.duration_s)
            except DecodeError as error:
                yield EncodedFile(sha256_of[path], error=error)
                continue
            films[sha256_of[path]] = _Film(path, info.duration_s)
    _divide(films, windows, model, num_workers, timeout_s)
    jobs = []
    for sha256, film in films.items():
        own = list(_jobs(sha256, film, model))
        film.waiting = len(own)
        jobs += own
    with DecoderPool(num_workers, timeout_s) as decoders:
        for job, decoded in track(decoders.map(jobs), "read videos", total=len(jobs), unit="part") if jobs else ():
            sha256, first = job.key
            film = films[sha256]
            film.waiting -= 1
            if isinstance(decoded, DecodeError):
                film.fail(decoded)
            else:
                film.parts[first] = _Part(_features(model, decoded), np.array(decoded.times_s, np.float32),
                                          decoded.pictures_end_s, decoded.sound_end_s)
            if not film.waiting:
                yield _finished(sha256, films.pop(sha256), model.config.num_frames)


def _divide(films: dict[str, _Film], windows: WindowsConfig, model: HcmiModel, num_workers: int, timeout_s: float
            ) -> None:
    """Set the windows and frames of each long video.

    A part in which no cuts can be found, since it cannot be decoded, has none; the film has the error if that may pass.
    """
    long = {sha256: film for sha256, film in films.items() if len(cut(film.duration_s, windows)) > 1}
    cuts_s: dict[str, list[float]] = defaultdict(list)
    if windows.cut == "shots" and long:
        check_detector()
        jobs = [job for sha256, film in long.items() for job in cuts_jobs(sha256, film.path, film.duration_s)]
        with DecoderPool(num_workers, timeout_s, find_cuts) as detectors:
            for job, found in track(detectors.map(jobs), "find shots", total=len(jobs), unit="part"):
                if not isinstance(found, DecodeError):
                    cuts_s[job.key] += found
                elif may_pass(found):
                    long[job.key].fail(found)
    for sha256, film in long.items():
        _plan(film, shots_of(cuts_s[sha256], film.duration_s), windows, model)


def _plan(film: _Film, shots: Sequence[tuple[float, float]], windows: WindowsConfig, model: HcmiModel) -> None:
    """Set a film's windows and frames. A shot no longer than a window is one window."""
    num_frames = model.config.num_frames
    times: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    before = 0
    for start_s, end_s in shots:
        step_s = min(windows.seconds, end_s - start_s) / num_frames
        count = max(int(np.ceil((end_s - start_s) / step_s - 1e-6)), num_frames)
        if windows.cut == "shots":      # no frame may be of the next shot; a film's last one may be past its end
            step_s = (end_s - start_s) / count
        firsts = _first_frames(count, windows, num_frames)
        frames_N = np.arange(count)
        if model.frames_together:
            frames_N = np.concatenate([first + np.arange(num_frames) for first in firsts])
        for number, first in enumerate(firsts):
            film.windows.append((start_s + first * step_s, min(start_s + (first + num_frames) * step_s, end_s),
                                 before + (number * num_frames if model.frames_together else first)))
        times.append(start_s + (frames_N + 0.5) * step_s)
        steps.append(np.full(len(frames_N), step_s))
        before += len(frames_N)
    film.times_s, film.steps_s = np.concatenate(times), np.concatenate(steps)


def _jobs(sha256: str, film: _Film, model: HcmiModel) -> Iterator[DecodeJob]:
    """One job for a short video; for a film one for each part, each with the key (sha256, first frame of the part)."""
    size, square = model.processor.image_size, model.processor.square
    if not film.windows:
        yield DecodeJob((sha256, 0), film.path, model.config.num_frames, size, square=square)
        return
    whole = model.frames_together or 1
    first, count = 0, len(film.times_s)
    while first < count:
        seconds = np.cumsum(film.steps_s[first:first + PART_FRAMES])
        last = first + max(int((seconds <= PART_SECONDS + 1e-6).sum()) // whole, 1) * whole
        times_s, half_s = film.times_s[first:last], film.steps_s[first:last] / 2
        end_s = None if last >= count else float((times_s + half_s).max())
        yield DecodeJob((sha256, first), film.path, len(times_s), size, float((times_s - half_s).min()), end_s, "pyav",
                        square, tuple(times_s.tolist()))
        first = last


def _features(model: HcmiModel, decoded: Decoded) -> torch.Tensor:
    """[N, D] of every frame, on the CPU; each goes through the towers once."""
    parts = decoded.frames[None]
    at_once = TOWER_FRAMES // (model.frames_together or 1) * (model.frames_together or 1)
    return check_finite(torch.cat([encode_features(model, parts[:, start:start + at_once])[0].cpu()
                                   for start in range(0, parts.shape[1], at_once)]))


def _end_s(film: _Film, part: _Part) -> float:
    """When a file ends, given its last part that is decoded; infinity where it lasts as long as its header says.

    A film ends with its pictures. A short video is one clip, which its sound belongs to.
    """
    end_s = part.pictures_end_s
    if end_s is not None and not film.windows:
        end_s = max(end_s, part.sound_end_s)
    return math.inf if end_s is None or film.duration_s - end_s <= SOUND_SECONDS else end_s


def _finished(sha256: str, film: _Film, num_frames: int) -> EncodedFile:
    """The clips of a file. A window with a frame that could not be decoded is left out. Where every window has such a
    frame, the one with the fewest is kept, with the last picture before in place of each.

    Where the pictures end before the header says, as in a file that was not copied to its end, the frames after their
    end could not be decoded. A file that went away while it was read has no clip: the next visit reads all of it.
    """
    if not film.parts or (film.error is not None and film.error.reason in GONE):
        return EncodedFile(sha256, error=film.error)
    firsts, parts = zip(*sorted(film.parts.items()), strict=True)
    features_ND = torch.cat([part.features_ND for part in parts])
    times_N = np.concatenate([part.times_N for part in parts])
    ends_s = _end_s(film, parts[-1])
    if not film.windows:
        end_s = max(min(film.duration_s, ends_s), float(times_N[-1]))
        return EncodedFile(sha256, (_clip(sha256, film.path, None, 0.0, end_s),), features_ND, times_N,
                           np.arange(num_frames)[None], note=_short_note(film, end_s))
    place = np.full(len(film.times_s), -1)      # of each planned frame among those that were decoded
    frames_N = np.concatenate([first + np.arange(len(part.times_N)) for first, part in zip(firsts, parts, strict=True)])
    there_N = (film.times_s - film.steps_s / 2)[frames_N] < ends_s - 1e-6
    there_N[0] = True       # where a file has one picture, shorter than half a step
    place[frames_N[there_N]] = np.flatnonzero(there_N)
    clips, rows = [], []
    for number, (start_s, end_s, first) in enumerate(film.windows):
        frames_T = place[first:first + num_frames]
        if (frames_T >= 0).all():
            clips.append(_clip(sha256, film.path, number, start_s, min(end_s, ends_s)))
            rows.append(frames_T)
    if not clips:       # less than a window of pictures, such as a short one with long sound
        start_s, end_s, first = min(film.windows, key=lambda of: (place[of[2]:of[2] + num_frames] < 0).sum())
        frames_T = np.maximum.accumulate(place[first:first + num_frames])
        clips.append(_clip(sha256, film.path, 0, start_s, min(end_s, ends_s)))
        rows.append(np.where(frames_T < 0, frames_T.max(), frames_T))
    return EncodedFile(sha256, tuple(clips), features_ND, times_N, np.stack(rows), film.error, _note(film, len(clips)))


def _note(film: _Film, num_clips: int) -> str | None:
    """What the user should know about a film of which `num_clips` windows can be searched."""
    if num_clips < len(film.windows):
        note = (f"{film.path}: need a film that can be decoded to its end, got {num_clips} of {len(film.windows)} "
                "windows. The others are not found.")
    elif may_pass(film.error):
        note = (f"{film.path}: need the shots of every minute, got some minutes without. Windows there may span "
                "several shots.")
    else:
        return None
    return f"{note} {'A later search tries again.' if may_pass(film.error) else 'Replace the file if it is damaged.'}"


def _short_note(film: _Film, end_s: float) -> str | None:
    """The same about a short video that ends at `end_s`."""
    if end_s >= film.duration_s:
        return None
    return (f"{film.path}: need a video that can be decoded to its end, got {end_s:.1f} of {film.duration_s:.1f} "
            "seconds. The rest is not found. Replace the file if it is damaged.")


def _first_frames(num_grid: int, windows: WindowsConfig, num_frames: int) -> list[int]:
    """The first frame of each window of a film or shot.

    Windows begin a whole number of frames apart. They share at least the overlap, and less than a frame's step more;
    but never all frames.
    """
    step = max(1, math.floor((windows.seconds - windows.overlap_seconds) / windows.seconds * num_frames + 1e-6))
    last = num_grid - num_frames
    return [*range(0, last, step), last]


def _clip(sha256: str, path: str, number: int | None, start_s: float, end_s: float) -> Clip:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem)[:60]
    suffix = "" if number is None else f"-{number:05d}"
    start_s, end_s = round(start_s, 3), round(end_s, 3)
    return Clip(f"{stem}-{sha256[:8]}{suffix}", path, "test", (), start_s, end_s, round(end_s - start_s, 6), sha256, {})
