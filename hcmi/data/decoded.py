"""What decoding gives: a file's headers, a clip's frames, or one of a few reasons why there are none."""

from dataclasses import dataclass
from typing import Any

import numpy as np

REASONS = {
    "bad_name": "a name that is not one line of UTF-8 text",
    "outside": "a link that leads out of the folder",
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
    "unexpected": "an error that nobody foresaw",
}


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
        frames = self.frames_THWC
        assert frames.dtype == np.uint8, f"frames are {frames.dtype}"
        assert frames.shape == (len(self.times_s), *frames.shape[1:3], 3), (
            f"frames {frames.shape} and {len(self.times_s)} times do not agree")


@dataclass(frozen=True)
class KeptClip:
    """A `DecodedClip` with something else in place of each frame, the same object where a frame is repeated."""

    kept: tuple[Any, ...]
    times_s: tuple[float, ...]
    decoder: str
    num_decodable: int
    width: int
    height: int
