"""How a long video is divided into windows: parts of equal length that overlap, by which it is searched."""

import math
from typing import TYPE_CHECKING

from hcmi.video.files import refusal

if TYPE_CHECKING:           # a decoding process starts without pydantic
    from hcmi.config import WindowsConfig

MAX_HOURS = 10.0        # a header that claims more is more often wrong than right


def cut(duration_s: float, windows: "WindowsConfig") -> list[tuple[float, float | None]]:
    """(start_s, end_s) of the windows of a video in order; None is the end of the file.

    A video of at most `windows.whole_seconds`, or of one window, is not divided. The last window ends with the video,
    so it may overlap the one before it by more.
    """
    if duration_s <= max(windows.whole_seconds, windows.seconds):
        return [(0.0, None)]
    step_s = windows.seconds - windows.overlap_seconds
    count = math.ceil((duration_s - windows.seconds) / step_s - 1e-9)
    starts = [*(round(number * step_s, 3) for number in range(count)), round(duration_s - windows.seconds, 3)]
    return [*((start, round(start + windows.seconds, 3)) for start in starts[:-1]), (starts[-1], None)]


def check_length(path: str, duration_s: float) -> None:
    """Raises: DecodeError for a video that claims to be longer than MAX_HOURS."""
    if duration_s > 3600 * MAX_HOURS:
        raise refusal("too_long", path, f"{duration_s / 3600:.1f} hours")
