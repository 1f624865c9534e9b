"""Video files in, frames out: which frames there really are, and some of them, upright, resized and cropped.

A first pass over the packets (nothing is decoded) finds the frames and their times; headers are not believed. decord
then decodes what it is known to read rightly (8 bits, MP4 or Matroska, H.264 and its like, a sane index); PyAV decodes
everything else, and checks what it got against the packets. Where both read, they give the same pixels (tested).
Call these functions through `hcmi.data.pool` for files you do not trust: a native decoder can hang or crash, and only a
process can be stopped.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from hcmi.errors import DecodeError

REASONS = {
    "missing": "no such file",
    "unreadable": "not a regular file, or no permission to read it",
    "empty_file": "zero bytes",
    "not_a_video": "no container that FFmpeg knows, or a broken header",
    "no_video_stream": "sound, subtitles or pictures only",
    "unsupported_codec": "no decoder for the video stream",
    "no_frames": "a video stream of which not one frame can be decoded",
    "too_short": "the segment start_s..end_s holds no frame",
    "timeout": "not decoded within shards.decode_timeout_s",
    "crashed": "the decoder took its process down",
}
# One packet is one shown frame in these; VP8, VP9 and AV1 have hidden frames, which decord counts and repeats.
DECORD_CODECS = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"})
# After a jump in an AVI, decord 0.6 returned frame 0 for frame 60 of MSVD clips; transport streams have no index.
DECORD_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
MIN_DECORD_PIXELS = 16      # decord 0.6 miscounts the bytes of narrower frames
DEFAULT_FPS = 25.0          # of a file that tells neither its rate nor the times of its frames
# Of frames read before one is finished: meanwhile decord makes pictures of those to be skipped, 10 % of its time.
WAITING_BYTES = 2**26
MAX_ASPECT = 8              # a longer strip is cropped to this before it is resized, to bound memory
Keep = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class VideoInfo:
    """What a file's headers claim; `num_frames_claimed` is 0 where they say nothing."""

    width: int              # upright
    height: int
    fps: float
    duration_s: float
    num_frames_claimed: int
    codec: str


@dataclass(frozen=True)
class DecodedClip:
    """Frames of one clip in order of time; a clip with fewer frames than were asked for repeats some."""

    frames_THWC: np.ndarray         # uint8, RGB, square
    times_s: tuple[float, ...]      # of each frame, seconds into the file
    decoder: str                    # decord | pyav
    num_decodable: int              # frames in the clip; of a long video the parts jumped over count by their packets
    width: int                      # upright, before resizing
    height: int

    def __post_init__(self) -> None:
        shape, count = self.frames_THWC.shape, len(self.times_s)
        assert self.frames_THWC.dtype == np.uint8, f"frames are {self.frames_THWC.dtype}"
        assert (shape[0], *shape[3:]) == (count, 3), f"frames {shape} and {count} times do not agree"


@dataclass(frozen=True)
class KeptClip:
    """A `DecodedClip` with something else in place of each frame, the same object where a frame is repeated."""

    kept: tuple[Any, ...]
    times_s: tuple[float, ...]
    decoder: str
    num_decodable: int
    width: int
    height: int


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
        raise _error("no_frames", path)
    if duration_s <= 0:
        with _open(path) as (container, stream):
            scan = _scan(container, stream, 0.0, None)
            span = (scan.pts[-1] - scan.pts[0]) * stream.time_base if scan.pts else 0
        duration_s = float(span) + 1 / fps
    if first.rotation % 180:
        width, height = height, width
    return VideoInfo(width, height, fps, duration_s, frames, codec)


def decode_clip(path: str | Path, num_frames: int, size: int, start_s: float = 0.0, end_s: float | None = None,
                decoder: str = "auto") -> DecodedClip:
    """`num_frames` frames of `size` x `size` pixels: the middle ones of as many equal parts of start_s <= t < end_s.

    Shortest side resized (bicubic) and centre cropped as CLIP does; rotation applied. An `end_s` of None, or at or past
    the claimed duration, means the last frame there is. A clip of fewer than `num_frames` frames repeats some; one
    frame is enough. `decoder` is `auto` (decord, and PyAV where decord fails, is missing, or its index cannot be
    believed), `decord` or `pyav`. Segments go to PyAV, which jumps to them; decord reads a whole file to open it.

    Raises: DecodeError with a reason from `REASONS`.
    """
    clip = decode_and_keep(path, num_frames, size, np.asarray, start_s, end_s, decoder)
    return DecodedClip(np.stack(clip.kept), clip.times_s, clip.decoder, clip.num_decodable, clip.width, clip.height)


def decode_and_keep(path: str | Path, num_frames: int, size: int, keep: Keep, start_s: float = 0.0,
                    end_s: float | None = None, decoder: str = "auto") -> KeptClip:
    """`decode_clip`, but what `keep` makes of each square frame [H,X,3] as soon as it is there. Raises: DecodeError."""
    def finish(picture: np.ndarray) -> Any:
        return keep(_square(picture, size))
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
                raise _error("no_frames", path, str(error).strip().splitlines()[-1]) from error
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
          height: int) -> KeptClip:
    return KeptClip(tuple(kept[i] for i in picked), tuple(round(t, 6) for t in times), decoder, count, width, height)


def _spread(available: int, wanted: int) -> list[int]:
    """The middle ones of `wanted` equal parts of `available` frames; repeats when there are too few."""
    return [(2 * part + 1) * available // (2 * wanted) for part in range(wanted)]


def _error(reason: str, path: str | Path, detail: str = "") -> DecodeError:
    found = REASONS[reason] + (f" ({detail})" if detail else "")
    return DecodeError(reason, f"{path}: need a video that can be decoded, got {found}. Replace or remove the file.")


@contextmanager
def _open(path: str | Path) -> Iterator[tuple]:
    """The container and its first video stream that is not a cover picture. Raises: DecodeError."""
    if not os.path.exists(path):
        raise _error("missing", path)
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        raise _error("unreadable", path)
    if os.path.getsize(path) == 0:
        raise _error("empty_file", path)
    try:        # FFmpeg takes `name:with:colons` for a protocol unless it starts with a slash
        container = av.open(os.path.abspath(path), metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        raise _error("not_a_video", path) from error
    with container:
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos:
            raise _error("no_video_stream", path)
        stream = videos[0]
        if stream.codec_context is None:
            raise _error("unsupported_codec", path)
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
    whole = first is None and end is None
    if len(set(pts)) != len(pts) or (whole and stream.frames not in (0, len(pts))):
        trusted = False
    return _Scan(sorted(pts), sorted(key_pts), origin, trusted, whole)


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
    try:
        container.seek(pts, stream=stream, backward=True)
    except av.error.FFmpegError:        # some containers have no index: read from the start
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
                      scan: _Scan) -> KeptClip:
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
        raise _error("no_frames" if scan.whole else "too_short", path)
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
    if first is not None:
        _seek(container, stream, first)
    latest = origin
    for index, frame in enumerate(_decode(container, stream)):
        pts = frame.pts if frame.pts is not None else origin + round(index / rate / base)
        latest = pts = max(pts, latest)
        if end is not None and pts >= end:
            return
        if first is None or pts >= first:
            yield (pts - origin) * base, frame


def _upright(frame) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")
    return np.rot90(picture, frame.rotation // 90 % 4) if frame.rotation else picture


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    """CLIP's geometry: shortest side to `size` (bicubic, the longer one rounded down), then the centre."""
    height, width = picture.shape[:2]
    limit = MAX_ASPECT * min(height, width)
    top, left = max(height - limit, 0) // 2, max(width - limit, 0) // 2
    picture = picture[top:top + limit, left:left + limit]
    height, width, short = *picture.shape[:2], min(picture.shape[:2])
    wide, high = size * width // short, size * height // short
    left, top = (wide - size) // 2, (high - size) // 2
    image = Image.fromarray(np.ascontiguousarray(picture))
    if width > height:
        # Pillow's own two passes, across and then down, cropped in between: the same pixels, a tenth sooner
        image = image.resize((wide, height), Image.Resampling.BICUBIC).crop((left, 0, left + size, height))
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC).crop((0, top, size, top + size)))
