"""Frames of a video file or of a segment of it, upright, resized and cropped.

A scan of the packets finds the frames and their times. Two libraries can then decode them:

- decord decodes whole files that it is known to read correctly: 8 bits, MP4 or Matroska, H.264 and similar codecs.
- PyAV decodes everything else: segments, other formats, and files on which decord fails. It jumps from key frame to key
  frame while the frames are those that the packets promised, and otherwise decodes the segment from its start.

Where both can read a file they give the same pixels (tested). For files that are not trusted, call these functions
through `hcmi.video.pool`: a native decoder can hang or crash, and only a process can be stopped.
"""

import os
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hcmi.video.crop import CLIP_SQUARE, Square, to_square
from hcmi.video.decoded import Decoded
from hcmi.video.files import refusal
from hcmi.video.packets import (
    PacketScan,
    decode_frames,
    frame_rate,
    open_video,
    pixel_shape,
    scan_packets,
    seek,
    segment_bounds,
    turns,
)

# In these, one packet is one shown frame. VP8, VP9 and AV1 have hidden frames, which decord counts and repeats.
DECORD_CODECS = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"})
# After a seek in an AVI, decord 0.6 gave frame 0 instead of frame 60 of MSVD clips; transport streams have no index.
DECORD_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
MIN_DECORD_PIXELS = 16      # decord 0.6 miscounts the bytes of narrower frames
# Frames are read up to this size before any is finished. While we finish one, decord's thread converts frames that are
# to be skipped, which costs 10 % of its time.
WAITING_BYTES = 2**26
ROUNDING_S = 1e-3           # of times in Matroska, WebM and FLV, and in files that were made of these
Keep = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class _Picked:
    """The frames of a segment that are wanted, by index, the seconds at which they are shown, and how many it has."""

    indices: list[int]
    times_s: Sequence[float]
    count: int


Pick = Callable[[Sequence[float], PacketScan], _Picked]     # given the seconds of all frames, in order


class _UnexpectedFrameError(Exception):
    """Decoding gave other frames than the packets promised."""


def decode_clip(path: str | Path, num_frames: int, size: int, start_s: float = 0.0, end_s: float | None = None,
                decoder: str = "auto", square: Square = CLIP_SQUARE) -> Decoded[np.ndarray]:
    """`num_frames` frames of `size` x `size` pixels from start_s <= t < end_s.

    The segment is divided into `num_frames` equal parts, and the middle frame of each is taken. With a changing frame
    rate these are parts of its time, and the frame is the one that is shown at the middle, which may begin before
    `start_s`; `times_s` are then these middles, and otherwise when each frame begins. Frames become squares as `square`
    says, by default as CLIP does it; they are turned and mirrored as the file says. An `end_s` of None, or not before
    the claimed duration, means the last frame of the file. A segment with too few frames repeats some; one frame is
    enough.
    `decoder` is `auto` (decord, and PyAV where decord fails, is missing, or is known to misread the file), `decord` or
    `pyav`. Segments go to PyAV, which jumps to them; decord reads a whole file to open it.

    Raises: DecodeError with a reason from `REASONS`.
    """
    clip = decode_and_keep(path, num_frames, size, np.asarray, start_s, end_s, decoder, square)
    return _stacked(clip, clip.times_s)


def decode_times(path: str | Path, times_s: Sequence[float], size: int, start_s: float, end_s: float | None,
                 square: Square = CLIP_SQUARE) -> Decoded[np.ndarray]:
    """The frames that are shown at `times_s`, seconds into the file, which lie in start_s <= t < end_s; in one pass.

    A frame is shown until the next one, and may begin before `start_s`; before the first frame of the file, that one is
    taken. The times of the result are `times_s`. Sizes and squares are those of `decode_clip`.

    Raises: DecodeError with a reason from `REASONS`.
    """
    def pick(frame_times_s: Sequence[float], _: PacketScan) -> _Picked:
        return _Picked(_shown(frame_times_s, times_s), times_s, len(frame_times_s))
    clip = _decode(path, pick, lambda picture: to_square(picture, size, square), start_s, end_s, "pyav")
    return _stacked(clip, tuple(times_s))


def _stacked(clip: Decoded[tuple], times_s: tuple[float, ...]) -> Decoded[np.ndarray]:
    return Decoded(np.stack(clip.frames), times_s, clip.decoder, clip.num_decodable, clip.width, clip.height,
                   clip.pictures_end_s, clip.sound_end_s)


def decode_and_keep(path: str | Path, num_frames: int, size: int, keep: Keep, start_s: float = 0.0,
                    end_s: float | None = None, decoder: str = "auto", square: Square = CLIP_SQUARE) -> Decoded[tuple]:
    """As `decode_clip`, but keeps the result of `keep(frame [H,X,3])` for each frame instead of its pixels.

    Raises: DecodeError with a reason from `REASONS`.
    """
    return _decode(path, lambda times_s, scan: _spread(times_s, scan, num_frames),
                   lambda picture: keep(to_square(picture, size, square)), start_s, end_s, decoder)


def _decode(path: str | Path, pick: Pick, finish: Keep, start_s: float, end_s: float | None, decoder: str
            ) -> Decoded[tuple]:
    with open_video(path) as (container, stream):
        scan = scan_packets(container, stream, start_s, end_s)
        suits_decord = decoder == "auto" and scan.trusted and scan.whole and _suits_decord(container, stream)
    suits_decord = suits_decord and not _is_turned(path)
    if scan.pts and (decoder == "decord" or suits_decord):
        try:
            return _decode_with_decord(path, pick, finish, scan)
        except (RuntimeError, ImportError, OSError) as error:
            if decoder == "decord":
                raise refusal("no_frames", path, str(error).strip().splitlines()[-1]) from error
    if scan.pts and scan.trusted:
        with suppress(_UnexpectedFrameError):
            return _decode_by_jumping(path, pick, finish, scan)
    return _decode_by_reading_all(path, pick, finish, start_s, end_s, scan)


def _decode_by_jumping(path: str | Path, pick: Pick, finish: Keep, scan: PacketScan) -> Decoded[tuple]:
    """Decode only from the key frame before each wanted frame. Raises: _UnexpectedFrameError."""
    picked = pick(scan.times_s(range(len(scan.pts))), scan)
    wanted = deque(sorted(set(picked.indices)))
    pictures: dict[int, Any] = {}
    with open_video(path) as (container, stream):
        while wanted:
            for index, frame in _frames_from_key(container, stream, scan, wanted[0]):
                if index == wanted[0]:
                    picture = _upright(frame, stream)
                    pictures[wanted.popleft()] = finish(picture)
                    height, width = picture.shape[:2]
                    if not wanted or _should_jump(scan, index, wanted[0]):
                        break
    return _clip(pictures, picked, scan, scan.seconds(scan.pts[-1]), "pyav", width, height)


def _decode_by_reading_all(path: str | Path, pick: Pick, finish: Keep, start_s: float, end_s: float | None,
                           scan: PacketScan) -> Decoded[tuple]:
    """Decode the segment twice: to count the frames it really has, then to keep some. Raises: DecodeError."""
    with open_video(path) as (container, stream):
        times = [time for time, _ in all_frames(container, stream, start_s, end_s, scan.start)]
    picked = pick(times, scan) if times else _Picked([], [], 0)
    if not picked.count:
        raise refusal("no_frames" if scan.whole else "too_short", path)
    wanted = set(picked.indices)
    pictures = {}
    with open_video(path) as (container, stream):
        for index, (_, frame) in enumerate(all_frames(container, stream, start_s, end_s, scan.start)):
            if index in wanted:
                picture = _upright(frame, stream)
                pictures[index] = finish(picture)
                height, width = picture.shape[:2]
    return _clip(pictures, picked, scan, times[-1], "pyav", width, height)


def _clip(kept: dict[int, Any], picked: _Picked, scan: PacketScan, last_s: float, decoder: str, width: int, height: int
          ) -> Decoded[tuple]:
    """`last_s`: when the last frame that can be decoded begins."""
    end_s = None if scan.end is None else scan.seconds(scan.end)
    if end_s is not None and scan.pts and last_s < scan.seconds(scan.pts[-1]) - ROUNDING_S:
        end_s = last_s + 1 / scan.fps       # the last packets hold no picture
    return Decoded(tuple(kept[i] for i in picked.indices), tuple(round(t, 6) for t in picked.times_s), decoder,
                   picked.count, width, height, end_s, scan.sound_end_s)


def _spread(times_s: Sequence[float], scan: PacketScan, wanted: int) -> _Picked:
    """The middle of each of `wanted` equal parts of a segment, given the seconds of its frames. [ours]

    At a constant frame rate the frames that begin within the segment are divided, and otherwise its time. Frames repeat
    when there are too few. None is picked where the segment's own cannot be decoded.
    """
    own_s = times_s[0] if scan.own is None else scan.seconds(scan.own)
    before, last_s = bisect_left(times_s, own_s), scan.times_s([-1])[0] if scan.pts else times_s[-1]
    end_s = None if scan.end is None or times_s[-1] < last_s else scan.seconds(scan.end)
    if before == len(times_s):
        if last_s >= own_s:         # the segment's own frames cannot be decoded
            return _Picked([], [], 0)
        before = 0 if end_s is None or end_s <= own_s else before
    if not scan.timed or _is_steady(times_s, end_s, scan, before):
        count = len(times_s) - before
        indices = [before + (2 * part + 1) * count // (2 * wanted) for part in range(wanted)]
        return _Picked(indices, [times_s[i] for i in indices], count)
    start_s = max(own_s, times_s[0])
    end_s = 2 * times_s[-1] - times_s[-2] if end_s is None else end_s
    middles_s = [start_s + (2 * part + 1) * (end_s - start_s) / (2 * wanted) for part in range(wanted)]
    return _Picked(_shown(times_s, middles_s), middles_s, len(times_s))


def _is_steady(times_s: Sequence[float], end_s: float | None, scan: PacketScan, before: int) -> bool:
    """Whether frames come at a constant rate: each where it is expected, up to the rounding of times, and the last one
    lasts no longer than two. `before`: how many of them begin before the segment.
    """
    if before == len(times_s):      # a picture that stands still all the time
        return False
    gap_s = (times_s[-1] - times_s[0]) / max(len(times_s) - 1, 1)
    if gap_s <= 0:
        return True
    if before and len(times_s) == 2 and gap_s * scan.fps >= 2:      # two times are always a line
        return False
    rounding_s = max(scan.time_base, ROUNDING_S) + 1e-6
    expected_s = np.linspace(times_s[0], times_s[-1], len(times_s))
    return bool(np.abs(np.asarray(times_s) - expected_s).max() <= rounding_s
                and (end_s is None or end_s - times_s[-1] <= 2 * gap_s + rounding_s))


def _shown(frame_times_s: Sequence[float], times_s: Sequence[float]) -> list[int]:
    """Of each time, which frame is shown: the last one that has begun, or the first of all."""
    return [max(bisect_right(frame_times_s, time + 1e-6) - 1, 0) for time in times_s]


# ------------------------------------------------------------------------------------------------------------- decord

def _suits_decord(container, stream) -> bool:
    pixels = stream.codec_context.format
    return (stream.codec_context.name in DECORD_CODECS and container.format.name in DECORD_CONTAINERS
            and pixel_shape(stream) == 1        # it gives squeezed pictures as they are stored
            and min(stream.width, stream.height) >= MIN_DECORD_PIXELS
            and pixels is not None and all(part.bits == 8 for part in pixels.components))


def _is_turned(path: str | Path) -> bool:
    """Whether a file is shown turned or mirrored: decord 0.6 turns MP4 files alone, and mirrors none."""
    with open_video(path) as (container, stream):
        first = next(decode_frames(container, stream), None)
    return first is not None and any(turns(first))


def _decode_with_decord(path: str | Path, pick: Pick, finish: Keep, scan: PacketScan) -> Decoded[tuple]:
    """Raises: RuntimeError, ImportError, OSError."""
    import decord

    picked, expected = pick(scan.times_s(range(len(scan.pts))), scan), len(scan.pts)
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
        if len(reader) != expected:
            raise RuntimeError(f"decord sees {len(reader)} frames where there are {expected}")
        pictures: dict[int, Any] = {}
        waiting: dict[int, np.ndarray] = {}
        for index in sorted(set(picked.indices)):
            # get_batch is no faster and hangs on some files (dmlc/decord issues 269, 373, 375)
            frame = reader[index].asnumpy()
            if frame.shape[2] != 3:     # decord divides the bytes of a padded row by the width
                raise RuntimeError(f"decord gives frames of shape {frame.shape}")
            waiting[index] = frame
            if frame.nbytes * len(waiting) >= WAITING_BYTES:
                pictures |= {i: finish(frame) for i, frame in waiting.items()}
                waiting.clear()
        del reader      # ends its thread
        pictures |= {i: finish(frame) for i, frame in waiting.items()}
    except (decord.DECORDError, UnicodeEncodeError) as error:       # it takes only names in UTF-8
        raise RuntimeError(str(error)) from error
    return _clip(pictures, picked, scan, scan.seconds(scan.pts[-1]), "decord", frame.shape[1], frame.shape[0])


# --------------------------------------------------------------------------------------------------------------- PyAV

def _frames_from_key(container, stream, scan: PacketScan, target: int) -> Iterator[tuple[int, Any]]:
    """Index and frame from the last key frame before frame `target` on.

    Raises: _UnexpectedFrameError when a frame is not the one that the packets promise, or the frames end too early.
    """
    key = bisect_right(scan.key_pts, scan.pts[target]) - 1
    start = scan.key_pts[key] if key >= 0 else scan.pts[0]
    seek(container, stream, start)
    index = bisect_left(scan.pts, start)
    for frame in decode_frames(container, stream):
        if frame.pts is None or frame.pts < start or frame.pts < scan.pts[0]:
            continue
        if index >= len(scan.pts) or frame.pts != scan.pts[index]:
            raise _UnexpectedFrameError
        yield index, frame
        index += 1
    if index <= target:
        raise _UnexpectedFrameError


def _should_jump(scan: PacketScan, index: int, target: int) -> bool:
    """Whether a key frame between frames `index` and `target` saves decoding at least one frame."""
    key = bisect_right(scan.key_pts, scan.pts[target]) - 1
    return key >= 0 and scan.key_pts[key] > scan.pts[index] and bisect_left(scan.pts, scan.key_pts[key]) > index + 1


def all_frames(container, stream, start_s: float, end_s: float | None, begins: int | None = None
               ) -> Iterator[tuple[float, Any]]:
    """Every frame of a segment that can be decoded, with its time in seconds. `begins`: pts in place of `start_s`."""
    origin, start, end = segment_bounds(container, stream, start_s, end_s)
    start = start if begins is None else begins
    base, rate = float(stream.time_base), frame_rate(stream)
    frames = decode_frames(container, stream)
    if start is not None:
        seek(container, stream, start)
        head = next(frames, None)
        if head is not None and head.pts is not None and head.pts <= start:
            frames = chain([head], frames)
        else:       # the seek went too far, or to an unknown place
            container.seek(0)
            frames = decode_frames(container, stream)
    latest = known = origin
    since = 0               # frames since the last one that had a time
    for frame in frames:
        if frame.pts is not None:
            known, since = frame.pts, 0
        latest = pts = max(known + round(since / rate / base), latest)
        since += 1
        if end is not None and pts >= end:
            return
        if start is None or pts >= start:
            yield (pts - origin) * base, frame


def _upright(frame, stream) -> np.ndarray:
    """The frame as it is shown: with square pixels, turned and mirrored."""
    width = max(1, round(frame.width * pixel_shape(stream)))
    picture = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
    turned = turns(frame)
    picture = picture.swapaxes(0, 1) if turned.on_its_side else picture
    return picture[::-1 if turned.top_bottom else 1, ::-1 if turned.left_right else 1]
