import numpy as np
import pytest

from hcmi.video import Decoded


def test_record_refuses_times_when_they_do_not_match_the_frames():
    with pytest.raises(AssertionError, match=r"2 frames and 1 times do not agree"):
        Decoded(np.zeros((2, 4, 4, 3), np.uint8), (0.0,), "pyav", 2, 4, 4)
