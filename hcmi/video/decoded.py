"""The results of decoding: what the headers claim, the frames of a clip, or the reason why there are none."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

REASONS = {
    "bad_name": "a name that no file can have",
    "outside": "a link that leads out of the folder",
    "missing": "no such file",
    "unreadable": "not a regular file, or no permission to read it",
    "empty_file": "zero bytes",
    "not_a_video": "no container that FFmpeg knows, or a broken header",
    "no_video_stream": "sound, subtitles or pictures only",
    "unsupported_codec": "no decoder for the video stream",
    "no_frames": "a video stream without a frame that can be decoded",
    "too_short": "the segment start_s..end_s holds no frame",
    "too_long": "more than 10 hours",
    "timeout": "not decoded within shards.decode_timeout_s",
    "crashed": "the decoder took its process down",
    "unexpected": "an unexpected error",
}
# Every reading of the same bytes gives these; the others may have passed the next time.
LASTING_REASONS = frozenset(("empty_file", "not_a_video", "no_video_stream", "unsupported_codec", "no_frames",
                             "too_short", "too_long"))
MACHINE_REASONS = frozenset(("timeout", "crashed", "unexpected"))       # as likely the machine's fault as the file's


@dataclass(frozen=True)
class VideoInfo:
    """What the headers of a file claim."""

    width: int                  # upright
    height: int
    fps: float
    duration_s: float
    num_frames_claimed: int     # 0 where the headers say nothing
    codec: str
    look: int | None = None     # 64 bits of what the first frame looks like (`look_of`); None where it is flat


Frames = TypeVar("Frames")


@dataclass(frozen=True)
class Decoded(Generic[Frames]):
    """Frames of one clip in order of time; a clip with fewer frames than were asked for repeats some.

    `frames` holds an array [T,H,X,3] of uint8 RGB, or a tuple with a JPEG file (or anything else) for each frame, or
    None where the frames stay on disk.
    """

    frames: Frames
    times_s: tuple[float, ...]      # at which each frame is shown, in seconds into the file
    decoder: str                    # decord | pyav
    num_decodable: int              # frames in the clip; parts that were jumped over are counted by their packets
    width: int                      # upright, before resizing
    height: int
    pictures_end_s: float | None = None     # of the last picture, in seconds into the file; None where nothing says so
    sound_end_s: float = 0.0                # of the last packet of sound; 0 without sound

    def __post_init__(self) -> None:
        frames: Any = self.frames
        if frames is None:
            return
        assert len(frames) == len(self.times_s), f"{len(frames)} frames and {len(self.times_s)} times do not agree"
        if isinstance(frames, np.ndarray):
            assert frames.dtype == np.uint8, f"frames are {frames.dtype}"
            assert frames.ndim == 4, f"frames {frames.shape}: need [T,H,X,3]"
            assert frames.shape[3] == 3, f"frames {frames.shape}: need three colours"
