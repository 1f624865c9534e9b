"""Video files in, frames out: which frames there really are, and some of them, upright, resized and cropped.

A first pass over the packets (nothing is decoded) finds the frames and their times; headers are not believed. decord
then decodes what it is known to read rightly (8 bits, MP4 or Matroska, H.264 and its like, a sane index); PyAV decodes
everything else, and checks what it got against the packets. Where both read, they give the same pixels (tested).
Call these functions through `hcmi.video.pool` for files you do not trust: a native decoder can hang or crash, and only a
process can be stopped.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from hcmi.video.crop import centre_crop
from hcmi.video.decoded import Decoded, VideoInfo
from hcmi.video.files import NOT_OPENED, check_file, one_file, refusal

# One packet is one shown frame in these; VP8, VP9 and AV1 have hidden frames, which decord counts and repeats.
DECORD_CODECS = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"})
# After a jump in an AVI, decord 0.6 returned frame 0 for frame 60 of MSVD clips; transport streams have no index.
DECORD_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
MIN_DECORD_PIXELS = 16      # decord 0.6 miscounts the bytes of narrower frames
SEEKS_ANYWHERE = frozenset({"mpegts", "mpeg"})      # there is no index: a jump lands at any packet, not at a key frame
LEADS_S = (1.0, 10.0, 100.0)    # so jump to so long before, and look whether a key frame follows in time
DEFAULT_FPS = 25.0          # of a file that tells neither its rate nor the times of its frames
# Of frames read before one is finished: meanwhile decord makes pictures of those to be skipped, 10 % of its time.
WAITING_BYTES = 2**26
Keep = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class _Scan:
    """The shown frames of a segment according to its packets, in order of time."""

    pts: list[int]              # in the stream's time base
    key_pts: list[int]          # packets at which decoding can start
    origin: int                 # pts of second 0 of the file
    trusted: bool               # every packet has a time of its own, and nothing looks damaged or hidden
    whole: bool                 # the segment is the whole file


def probe(path: str | Path) -> VideoInfo:
    """What the headers claim; decodes the first frame, for its rotation, and reads the packets of a file whose headers
    give no duration.

    Raises: DecodeError with a reason from `REASONS`.
    """
    with _open(path) as (container, stream):
        width, height = stream.width, stream.height
        fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        frames, codec = max(stream.frames, 0), stream.codec_context.name
        duration_s = container.duration / av.time_base if container.duration else 0.0
        first = next(_decode(container, stream), None)
    if first is None:
        raise refusal("no_frames", path)
    if duration_s <= 0:
        with _open(path) as (container, stream):
            scan = _scan(container, stream, 0.0, None)
            span = (scan.pts[-1] - scan.pts[0]) * stream.time_base if scan.pts else 0
        duration_s = float(span) + 1 / fps
    if first.rotation % 180:
        width, height = height, width
    return VideoInfo(width, height, fps, duration_s, frames, codec)


def decode_clip(path: str | Path, num_frames: int, size: int, start_s: float = 0.0, end_s: float | None = None,
                decoder: str = "auto") -> Decoded[np.ndarray]:
    """`num_frames` frames of `size` x `size` pixels: the middle ones of as many equal parts of start_s <= t < end_s.

    Shortest side resized (bicubic) and centre cropped as CLIP does; rotation applied. An `end_s` of None, or at or past
    the claimed duration, means the last frame there is. A clip of fewer than `num_frames` frames repeats some; one
    frame is enough. `decoder` is `auto` (decord, and PyAV where decord fails, is missing, or its index cannot be
    believed), `decord` or `pyav`. Segments go to PyAV, which jumps to them; decord reads a whole file to open it.

    Raises: DecodeError with a reason from `REASONS`.
    """
    clip = decode_and_keep(path, num_frames, size, np.asarray, start_s, end_s, decoder)
    return Decoded(np.stack(clip.frames), clip.times_s, clip.decoder, clip.num_decodable, clip.width, clip.height)


def decode_and_keep(path: str | Path, num_frames: int, size: int, keep: Keep, start_s: float = 0.0,
                    end_s: float | None = None, decoder: str = "auto") -> Decoded[tuple]:
    """`decode_clip`, but what `keep` makes of each square frame [H,X,3] as soon as it is there. Raises: DecodeError."""
    def finish(picture: np.ndarray) -> Any:
        return keep(centre_crop(picture, size))
    with _open(path) as (container, stream):
        scan = _scan(container, stream, start_s, end_s)
        usable = scan.trusted and scan.whole and _suits_decord(container, stream)
        time_base = float(stream.time_base)
    if scan.pts and (decoder == "decord" or (decoder == "auto" and usable)):
        picked = _spread(len(scan.pts), num_frames)
        try:
            pictures, width, height = _decord_pictures(path, sorted(set(picked)), len(scan.pts), finish)
        except (RuntimeError, ImportError, OSError) as error:
            if decoder == "decord":
                raise refusal("no_frames", path, str(error).strip().splitlines()[-1]) from error
        else:
            times = [(scan.pts[i] - scan.origin) * time_base for i in picked]
            return _clip(pictures, picked, times, "decord", len(scan.pts), width, height)
    return _decode_with_pyav(path, num_frames, finish, start_s, end_s, scan)


def _suits_decord(container, stream) -> bool:
    pixels = stream.codec_context.format
    return (stream.codec_context.name in DECORD_CODECS and container.format.name in DECORD_CONTAINERS
            and min(stream.width, stream.height) >= MIN_DECORD_PIXELS
            and pixels is not None and all(part.bits == 8 for part in pixels.components))


def _clip(kept: dict[int, Any], picked: Sequence[int], times: Sequence[float], decoder: str, count: int, width: int,
          height: int) -> Decoded[tuple]:
    return Decoded(tuple(kept[i] for i in picked), tuple(round(t, 6) for t in times), decoder, count, width, height)


def _spread(available: int, wanted: int) -> list[int]:
    """The middle ones of `wanted` equal parts of `available` frames; repeats when there are too few."""
    return [(2 * part + 1) * available // (2 * wanted) for part in range(wanted)]


@contextmanager
def _open(path: str | Path) -> Iterator[tuple]:
    """The container and its first video stream that is not a cover picture. Raises: DecodeError."""
    check_file(path)
    with one_file(path):
        try:        # FFmpeg takes `name:with:colons` for a protocol unless it starts with a slash
            container = av.open(os.path.abspath(path), metadata_errors="ignore")
        except (av.error.FFmpegError, ValueError) as error:
            if getattr(error, "errno", None) in NOT_OPENED:
                raise
            raise refusal("not_a_video", path) from error
    with container:
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos:
            raise refusal("no_video_stream", path)
        stream = videos[0]
        if stream.codec_context is None:
            raise refusal("unsupported_codec", path)
        stream.codec_context.thread_count = 1       # the pool runs one process per core
        yield container, stream


def _window(container, stream, start_s: float, end_s: float | None) -> tuple[int, int | None, int | None]:
    """Origin, first and end of a segment in the stream's time base; None where the file's own start or end is meant."""
    base = stream.time_base
    if container.start_time is not None:
        origin = round(container.start_time / av.time_base / base)
    else:
        origin = stream.start_time or 0
    claimed = container.duration / av.time_base if container.duration else None
    if end_s is not None and claimed is not None and end_s >= claimed - 1e-3:
        end_s = None
    first = None if start_s <= 0 else origin + round(start_s / base)
    return origin, first, None if end_s is None else origin + round(end_s / base)


def _scan(container, stream, start_s: float, end_s: float | None) -> _Scan:
    """Read the packets of a segment, decoding none."""
    origin, first, end = _window(container, stream, start_s, end_s)
    if first is not None:
        _seek(container, stream, first)
    pts, key_pts, trusted = _packet_times(container, stream, first, end)
    if first is not None and min(key_pts, default=first + 1) > first:       # jumped too far
        container.seek(0)
        pts, key_pts, trusted = _packet_times(container, stream, first, end)
    whole = first is None and end is None
    if len(set(pts)) != len(pts) or (whole and stream.frames not in (0, len(pts))):
        trusted = False
    return _Scan(sorted(pts), sorted(key_pts), origin, trusted, whole)


def _packet_times(container, stream, first: int | None, end: int | None) -> tuple[list[int], list[int], bool]:
    """From the current position on: pts of the segment's frames, of key frames, and whether nothing looks odd."""
    pts, key_pts = [], []
    # AVI has no times of presentation, only an order of storage
    trusted = len(container.streams.video) == 1 and container.format.name != "avi"
    for packet in _packets(container, stream):
        if packet.pts is None:
            trusted = False
            continue
        if packet.is_keyframe:
            key_pts.append(packet.pts)
        if packet.is_discard or packet.is_corrupt:
            trusted = False
        elif (first is None or packet.pts >= first) and (end is None or packet.pts < end):
            pts.append(packet.pts)
        if end is not None and packet.dts is not None and packet.dts >= end:
            break
    return pts, key_pts, trusted


def _packets(container, stream) -> Iterator:
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError:        # a cut-off file: what came before is good
        return


def _decode(container, stream) -> Iterator:
    """Frames in order of presentation from the current position on, going on past packets that cannot be decoded."""
    for packet in _packets(container, stream):
        try:
            yield from stream.decode(packet)
        except av.error.FFmpegError:
            continue
    try:
        yield from stream.decode(None)
    except av.error.FFmpegError:
        return


def _seek(container, stream, pts: int) -> None:
    """Go to the last key frame that is not behind `pts`, or to some place before it."""
    try:
        if container.format.name not in SEEKS_ANYWHERE:
            container.seek(pts, stream=stream, backward=True)
            return
        for lead_s in LEADS_S:
            before = pts - round(lead_s / stream.time_base)
            container.seek(before, stream=stream, backward=True)
            key = next((packet for packet in _packets(container, stream) if packet.is_keyframe), None)
            if key is not None and key.pts is not None and key.pts <= pts:
                container.seek(before, stream=stream, backward=True)
                return
    except av.error.FFmpegError:        # read from the start
        pass
    container.seek(0)


def _decord_pictures(path: str | Path, indices: list[int], expected: int, finish: Keep) -> tuple[dict, int, int]:
    """Finished pictures by index, and the upright width and height. Raises: RuntimeError, ImportError, OSError."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
        if len(reader) != expected:
            raise RuntimeError(f"decord sees {len(reader)} frames where there are {expected}")
        pictures: dict[int, Any] = {}
        waiting: dict[int, np.ndarray] = {}
        for index in indices:
            # get_batch is no faster and hangs on some files (dmlc/decord issues 269, 373, 375)
            frame = reader[index].asnumpy()
            if frame.shape[2] != 3:     # it divides the bytes of a padded row by the width
                raise RuntimeError(f"decord gives frames of shape {frame.shape}")
            waiting[index] = frame
            if frame.nbytes * len(waiting) >= WAITING_BYTES:
                pictures |= {i: finish(frame) for i, frame in waiting.items()}
                waiting.clear()
        del reader      # and its thread
        pictures |= {i: finish(frame) for i, frame in waiting.items()}
    except decord.DECORDError as error:
        raise RuntimeError(str(error)) from error
    return pictures, frame.shape[1], frame.shape[0]


def _decode_with_pyav(path: str | Path, num_frames: int, finish: Keep, start_s: float, end_s: float | None,
                      scan: _Scan) -> Decoded[tuple]:
    """Jump from key frame to key frame where the packets can be believed; else decode all, to know what there is."""
    with _open(path) as (container, stream):
        base = float(stream.time_base)
        if scan.pts and scan.trusted:
            picked = _spread(len(scan.pts), num_frames)
            pictures, width, height = _pictures_by_jumping(container, stream, scan, picked, finish)
            if len(pictures) == len(set(picked)):
                times = [(scan.pts[i] - scan.origin) * base for i in picked]
                return _clip(pictures, picked, times, "pyav", len(scan.pts), width, height)
    with _open(path) as (container, stream):
        times = [time for time, _ in _all_frames(container, stream, start_s, end_s)]
    if not times:
        raise refusal("no_frames" if scan.whole else "too_short", path)
    picked = _spread(len(times), num_frames)
    pictures = {}
    with _open(path) as (container, stream):
        for index, (_, frame) in enumerate(_all_frames(container, stream, start_s, end_s)):
            if index in picked:
                picture = _upright(frame)
                pictures[index] = finish(picture)
                height, width = picture.shape[:2]
    return _clip(pictures, picked, [times[i] for i in picked], "pyav", len(times), width, height)


def _pictures_by_jumping(container, stream, scan: _Scan, picked: Sequence[int], finish: Keep
                         ) -> tuple[dict, int, int]:
    """Finished pictures by index; stops early, so that some are missing, when frames are not those promised."""
    wanted = sorted(set(picked))
    pictures: dict[int, Any] = {}
    width = height = 0
    while len(pictures) < len(wanted):
        target = scan.pts[wanted[len(pictures)]]
        key = bisect_right(scan.key_pts, target) - 1
        start = scan.key_pts[key] if key >= 0 else scan.pts[0]
        _seek(container, stream, start)
        due = bisect_left(scan.pts, start)          # the next frame that the packets promise
        before = len(pictures)
        for frame in _decode(container, stream):
            if frame.pts is None or frame.pts < start or frame.pts < scan.pts[0]:
                continue
            if due >= len(scan.pts) or frame.pts != scan.pts[due]:
                return pictures, width, height
            if due == wanted[len(pictures)]:
                picture = _upright(frame)
                pictures[due] = finish(picture)
                height, width = picture.shape[:2]
                if len(pictures) == len(wanted):
                    break
                following = bisect_right(scan.key_pts, scan.pts[wanted[len(pictures)]]) - 1
                if following >= 0 and scan.key_pts[following] > frame.pts and (
                        bisect_left(scan.pts, scan.key_pts[following]) > due + 1):
                    break
            due += 1
        if len(pictures) == before:
            break
    return pictures, width, height


def _all_frames(container, stream, start_s: float, end_s: float | None) -> Iterator[tuple[float, av.VideoFrame]]:
    """Every frame of a segment that can be decoded, with its time in seconds."""
    origin, first, end = _window(container, stream, start_s, end_s)
    base = float(stream.time_base)
    rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
    frames = _decode(container, stream)
    if first is not None:
        _seek(container, stream, first)
        head = next(frames, None)
        if head is not None and head.pts is not None and head.pts <= first:
            frames = chain([head], frames)
        else:       # jumped too far, or nobody knows where to
            container.seek(0)
            frames = _decode(container, stream)
    latest = known = origin
    since = 0               # frames, from the one whose time is known
    for frame in frames:
        if frame.pts is not None:
            known, since = frame.pts, 0
        latest = pts = max(known + round(since / rate / base), latest)
        since += 1
        if end is not None and pts >= end:
            return
        if first is None or pts >= first:
            yield (pts - origin) * base, frame


def _upright(frame) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")
    return np.rot90(picture, frame.rotation // 90 % 4) if frame.rotation else picture
