"""Open a video file with PyAV, read its packets without decoding them, seek in it, and decode its frames in order.

The packets say which frames a file really has and when each is shown. Headers are not trusted: many are wrong.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from hcmi.video.decoded import VideoInfo
from hcmi.video.files import NOT_OPENED, check_file, check_no_text, is_still_image, one_file, refusal

SEEKS_ANYWHERE = frozenset({"mpegts", "mpeg"})      # these have no index: a seek may land behind the key frame
LEADS_S = (1.0, 10.0, 100.0)    # so seek this much earlier, and check that a key frame follows in time
FLAT = 24                       # grey levels; a picture with less contrast, such as a black one, has no look
STRANGE_SHAPE = 8               # a pixel of a stranger shape than this is a fault of the header
LATE_START_S = 0.5
DEFAULT_FPS = 25.0              # of a file that has neither a frame rate nor frame times


@dataclass(frozen=True)
class PacketScan:
    """The frames of a segment according to its packets, sorted by time."""

    pts: list[int]              # presentation times, in units of `time_base`
    key_pts: list[int]          # packets at which decoding can start
    origin: int                 # pts of second 0 of the file
    time_base: float            # seconds
    trusted: bool               # every packet has its own time, and none is damaged or hidden
    whole: bool                 # the segment is the whole file
    start: int | None           # pts of the first frame that may be shown in the segment; None: where the file begins
    own: int | None             # pts from which frames begin within the segment, at or after `start`
    end: int | None             # pts at which the last frame ends; None where no packet says so
    timed: bool                 # every packet has a time
    fps: float                  # as the headers claim
    sound_end_s: float = 0.0    # seconds into the file at which the last packet of sound ends; 0 without sound

    def times_s(self, indices: Sequence[int]) -> list[float]:
        """Seconds into the file of the frames at these indices."""
        return [self.seconds(self.pts[i]) for i in indices]

    def seconds(self, pts: int) -> float:
        """Seconds into the file."""
        return (pts - self.origin) * self.time_base


def probe(path: str | Path) -> VideoInfo:
    """What the headers of a file claim.

    The first frame is decoded for how it is turned. If the headers give no duration, all packets are read for it.

    Raises: DecodeError with a reason from `REASONS`.
    """
    with open_video(path) as (container, stream):
        width, height = round(stream.width * pixel_shape(stream)), stream.height
        fps = frame_rate(stream)
        frames, codec = max(stream.frames, 0), stream.codec_context.name
        duration_s = claimed_seconds(container, stream) or 0.0
        first = next(decode_frames(container, stream), None)
    if first is None:
        raise refusal("no_frames", path)
    if duration_s <= 0:
        with open_video(path) as (container, stream):
            scan = scan_packets(container, stream, 0.0, None)
            span = (scan.pts[-1] - scan.pts[0]) * stream.time_base if scan.pts else 0
        duration_s = float(span) + 1 / fps
    if turns(first).on_its_side:
        width, height = height, width
    return VideoInfo(width, height, fps, duration_s, frames, codec, look_of(first))


class Turns(NamedTuple):
    """How a stored picture becomes the one that is shown: rows become columns first, and then it is mirrored."""

    on_its_side: bool
    left_right: bool
    top_bottom: bool


def turns(frame) -> Turns:
    """What the display matrix of a file says, to the nearest quarter turn.

    The matrix shows the point (x, y) of a picture at (a x + c y, b x + d y). `frame.rotation` does not tell a mirrored
    picture from a turned one.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turns(False, False, False)
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    return Turns(True, c < 0, b < 0) if abs(b) + abs(c) > abs(a) + abs(d) else Turns(False, a < 0, d < 0)


def look_of(frame: av.VideoFrame) -> int | None:
    """64 bits that hardly change when a picture is encoded again or resized: where brightness rises from left to right.

    They are those of an 8 x 9 grid of mean brightness, as a signed integer; None where the picture is flat.
    Source: difference hash (dHash), N. Krawetz 2013.
    """
    grid = frame.reformat(width=9, height=8, format="gray", interpolation="AREA").to_ndarray().astype(np.int16)
    if np.ptp(grid) < FLAT:
        return None
    return int(np.packbits(np.diff(grid, axis=1) > 0).view(">i8")[0])


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple]:
    """Yield the container and its first video stream that is not a cover picture. Raises: DecodeError."""
    check_file(path)
    with one_file(path):
        check_no_text(path)
        try:        # FFmpeg reads `name:with:colons` as a protocol unless the path starts with a slash
            container = av.open(os.path.abspath(path), metadata_errors="ignore")
        except (av.error.FFmpegError, ValueError) as error:
            if getattr(error, "errno", None) in NOT_OPENED:
                raise
            raise refusal("not_a_video", path) from error
    with container:
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos or is_still_image(path, container.format.name):
            raise refusal("no_video_stream", path)
        stream = videos[0]
        if stream.codec_context is None:
            raise refusal("unsupported_codec", path)
        stream.codec_context.thread_count = 1       # the pool runs one process per core
        yield container, stream


def frame_rate(stream) -> float:
    """Frames per second as the headers claim."""
    return float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def pixel_shape(stream) -> float:
    """Width of a stored pixel in heights of it, where the picture is stored squeezed (anamorphic); else 1."""
    shape = float(stream.sample_aspect_ratio or 1)
    return shape if 1 / STRANGE_SHAPE <= shape <= STRANGE_SHAPE else 1.0


def claimed_seconds(container, stream) -> float | None:
    """How long the file is from its first frame on, as its headers claim; None where they say nothing.

    Matroska states either the length or the time of the end, which differ where the first frame is not at 0 (as in
    recordings that were cut). There the last packets decide. The position in the file is lost.
    """
    if not container.duration:
        return None
    claimed, start = container.duration / av.time_base, (container.start_time or 0) / av.time_base
    if container.format.name != "matroska,webm" or start < LATE_START_S or claimed <= start:
        return claimed
    seek(container, stream, round(claimed / stream.time_base))
    last = max((packet.pts + (packet.duration or 0) for packet in _packets(container, stream)
                if packet.pts is not None), default=None)
    container.seek(0)
    return claimed - start if last is None else float(last * stream.time_base) - start


def segment_bounds(container, stream, start_s: float, end_s: float | None) -> tuple[int, int | None, int | None]:
    """Origin, start and end of a segment in the stream's time base.

    Start is None at the beginning of the file. End is None where `end_s` is, or at or after the claimed duration.
    """
    base = stream.time_base
    if container.start_time is not None:
        origin = round(container.start_time / av.time_base / base)
    else:
        origin = stream.start_time or 0
    claimed = claimed_seconds(container, stream)
    if end_s is not None and claimed is not None and end_s >= claimed - 1e-3:
        end_s = None
    start = None if start_s <= 0 else origin + round(start_s / base)
    return origin, start, None if end_s is None else origin + round(end_s / base)


def scan_packets(container, stream, start_s: float, end_s: float | None) -> PacketScan:
    """Read the packets of a segment without decoding them.

    A picture that stands still is one frame, which may begin before the segment: the frame that is shown at the start
    is among those of the segment.
    """
    origin, start, end = segment_bounds(container, stream, start_s, end_s)
    if start is not None:
        seek(container, stream, start)
    found = _packet_times(container, stream, start, end)
    if start is not None and min(found.key_pts, default=start + 1) > start:     # the seek went too far
        container.seek(0)
        found = _packet_times(container, stream, start, end)
    pts, trusted, whole, first = found.pts, found.trusted, start is None and end is None, start
    if found.earlier is not None and (not pts or (start is not None and min(pts) > start)):
        first = found.earlier
        pts.append(first)
    if len(set(pts)) != len(pts) or (whole and stream.frames not in (0, len(pts))):
        trusted = False
    return PacketScan(sorted(pts), sorted(found.key_pts), origin, float(stream.time_base), trusted, whole, first, start,
                      found.end, found.timed, frame_rate(stream),
                      max(found.sound_end_s - origin * float(stream.time_base), 0.0))


@dataclass(frozen=True)
class _Packets:
    """What the packets of a segment say, in the order of the file."""

    pts: list[int]              # of the segment's frames
    key_pts: list[int]
    trusted: bool               # they look sound
    timed: bool                 # each has a time: else no frame is known to be the last
    earlier: int | None         # pts of an earlier frame that is still shown at the start
    end: int | None             # pts at which the last frame ends
    sound_end_s: float          # on the clock of the file


def _packet_times(container, stream, start: int | None, end: int | None) -> _Packets:
    """Read packets from the current position to the end of the segment."""
    pts, key_pts = [], []
    earlier: tuple[int, int] | None = None      # pts and end of the last frame that begins before the segment
    last: tuple[int, int] | None = None         # and of the last one within it
    later = followed = False                    # whether a frame follows the one, and the other
    # AVI stores no presentation times, only the order of the packets
    trusted, timed = len(container.streams.video) == 1 and container.format.name != "avi", True
    sound_end_s = 0.0
    for packet in _packets(container, stream, *container.streams.audio):
        if packet.stream is not stream:
            if packet.pts is not None:
                sound_end_s = max(sound_end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            continue
        if packet.pts is None:
            trusted = timed = False
            continue
        if packet.is_keyframe:
            key_pts.append(packet.pts)
        span = packet.pts, packet.pts + (packet.duration or 0)
        if start is not None and packet.pts < start:
            earlier = max(earlier or span, span)
        else:
            later = True
        if packet.is_discard or packet.is_corrupt:
            trusted = False
        elif (start is None or packet.pts >= start) and (end is None or packet.pts < end):
            pts.append(packet.pts)
            last = max(last or span, span)
        followed = followed or (end is not None and packet.pts >= end)
        if end is not None and packet.dts is not None and packet.dts >= end:
            break
    still = None                                # the earlier frame, where it is shown at the start
    if earlier is not None and start is not None and timed:
        # what the header says counts only where the packet says nothing: the file may have been cut off
        ends = earlier[1] if earlier[1] > earlier[0] else (stream.start_time or 0) + (stream.duration or 0)
        still = (earlier[0], ends) if later or ends > start else None
    last = last or still
    until = end if followed else None
    if until is None and last is not None and last[1] > last[0]:
        until = last[1] if end is None else min(last[1], end)
    return _Packets(pts, key_pts, trusted, timed, still and still[0], until, sound_end_s)


def _packets(container, *streams) -> Iterator:
    try:
        for packet in container.demux(*streams):
            if packet.size:
                yield packet
    except av.error.FFmpegError:        # the file is cut off; the packets before the cut are good
        return


def decode_frames(container, stream) -> Iterator:
    """Frames in presentation order from the current position; packets that cannot be decoded are passed over."""
    for packet in _packets(container, stream):
        try:
            yield from stream.decode(packet)
        except av.error.FFmpegError:
            continue
    try:
        yield from stream.decode(None)
    except av.error.FFmpegError:
        return


def seek(container, stream, pts: int) -> None:
    """Go to the last key frame at or before `pts`, or to some earlier place."""
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
    except av.error.FFmpegError:        # then decode from the beginning of the file
        pass
    container.seek(0)
