"""Where a film cuts from one shot to the next, as PySceneDetect finds it (the extra `hcmi[shots]`)."""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hcmi.errors import ConfigError
from hcmi.video.decode import all_frames
from hcmi.video.packets import frame_rate, open_video, scan_packets

PART_SECONDS = 60.0
MARGIN_SECONDS = 1.0        # that parts share, since the detector compares a frame with those before and after it
SHORTEST_SHOT_S = 0.6       # PySceneDetect's own default
PIXELS = 256                # width of the pictures that are compared, PySceneDetect's own default
# ContentDetector: on films of Scenes' validation split the first answer is right more often than with AdaptiveDetector
# (93.5 and 84.5 of 100, for 89.5 and 83), which finds all cuts but takes fast motion for cuts too.


@dataclass(frozen=True)
class CutsJob:
    """A part of a film whose cuts are wanted. `key` is for the caller."""

    key: Any
    path: str
    start_s: float
    end_s: float


def check_detector() -> None:
    """Raises: ConfigError when PySceneDetect is not installed."""
    if importlib.util.find_spec("scenedetect") is None:
        raise ConfigError("windows.cut shots: need scenedetect to find shots, got no such package. Run "
                          "`pip install 'hcmi[shots]'`, or set windows.cut to fixed.")


def cuts_jobs(key: Any, path: str, duration_s: float) -> Iterator[CutsJob]:
    """One job for each minute of a film."""
    start_s = 0.0
    while start_s < duration_s:
        end_s = start_s + PART_SECONDS
        yield CutsJob(key, path, start_s, end_s)
        start_s = end_s


def find_cuts(job: CutsJob) -> tuple[float, ...]:
    """The seconds of the first frame of each shot that begins within the part, but for the start of the film.

    Raises: DecodeError with a reason from `REASONS`.
    """
    from scenedetect import ContentDetector, FrameTimecode

    start_s, end_s = max(job.start_s - MARGIN_SECONDS, 0.0), job.end_s + MARGIN_SECONDS
    with open_video(job.path) as (container, stream):
        begins = scan_packets(container, stream, start_s, end_s).start      # of the picture that is shown there
    cuts_s: list[float] = []
    with open_video(job.path) as (container, stream):
        rate = frame_rate(stream)
        # as many frames as come next to it, less a half, because times are rounded
        shortest_s = min((max(1, round(SHORTEST_SHOT_S * rate)) - 0.5) / rate, SHORTEST_SHOT_S)
        detector = ContentDetector(min_scene_len=shortest_s)
        width = min(PIXELS, stream.width)
        height = max(1, round(stream.height * width / stream.width))
        for time_s, frame in all_frames(container, stream, start_s, end_s, begins):
            picture = frame.reformat(width, height, "bgr24").to_ndarray()
            cuts_s += [cut.seconds for cut in detector.process_frame(FrameTimecode(time_s, rate), picture)]
    return tuple(time_s for time_s in cuts_s if time_s > 0 and job.start_s <= time_s < job.end_s)


def shots_of(cuts_s: Iterable[float], duration_s: float) -> Sequence[tuple[float, float]]:
    """(start_s, end_s) of all shots of a film, given its cuts in any order; none is shorter than SHORTEST_SHOT_S."""
    edges = [0.0]
    for cut_s in sorted(cuts_s):
        if cut_s - edges[-1] >= SHORTEST_SHOT_S and duration_s - cut_s >= SHORTEST_SHOT_S:
            edges.append(cut_s)
    return list(pairwise([*edges, duration_s]))
