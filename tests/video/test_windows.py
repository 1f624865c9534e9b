"""Dividing long videos, against values worked out by hand and against what windows are for."""

from itertools import pairwise

import pytest

from hcmi.config import WindowsConfig
from hcmi.errors import DecodeError
from hcmi.video import check_length, cut

WINDOWS = WindowsConfig(cut="fixed", seconds=4.0, overlap_seconds=3.0, whole_seconds=30.0)


def test_short_videos_stay_whole_and_long_ones_are_divided_by_hand():
    assert cut(0.0, WINDOWS) == cut(30.0, WINDOWS) == [(0.0, None)]
    apart = WindowsConfig(cut="fixed", seconds=10.0, overlap_seconds=0.0, whole_seconds=30.0)
    assert cut(40.0, apart) == [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, None)]
    assert cut(31.0, apart) == [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (21.0, None)]
    half = WindowsConfig(cut="fixed", seconds=10.0, overlap_seconds=5.0, whole_seconds=0.0)
    assert cut(10.0, half) == [(0.0, None)]
    assert cut(22.5, half) == [(0.0, 10.0), (5.0, 15.0), (10.0, 20.0), (12.5, None)]


@pytest.mark.parametrize("duration_s", [30.1, 31.0, 77.7, 600.0, 3601.5])
@pytest.mark.parametrize(("seconds", "overlap"), [(4.0, 3.0), (4.0, 0.0), (2.5, 1.7), (30.0, 29.0)])
def test_every_moment_no_longer_than_the_overlap_lies_within_a_window(duration_s, seconds, overlap):
    rule = WindowsConfig(cut="fixed", seconds=seconds, overlap_seconds=overlap, whole_seconds=30.0)
    windows = [(start, duration_s if end is None else end) for start, end in cut(duration_s, rule)]
    assert windows[0][0] == 0
    assert windows[-1][1] == duration_s
    assert all(end - start == pytest.approx(seconds, abs=2e-3) for start, end in windows)
    for (start, end), (later, _) in pairwise(windows):
        assert start < later
        assert end - later >= overlap - 2e-3


def test_video_that_claims_more_than_ten_hours_is_refused():
    check_length("film.mp4", 36000.0)
    with pytest.raises(DecodeError, match=r"^film.mp4: need .*, got more than 10 hours \(12.0 hours\). Cut it into "):
        check_length("film.mp4", 12 * 3600.0)
