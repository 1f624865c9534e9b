"""Which clips of shards that an earlier version wrote are decoded again."""

import hashlib

import numpy as np
import pytest
from stage_world import contents, make_clip, stage
from video_files import write_pictures

from hcmi.shards import stage as shards_stage
from hcmi.shards.kept_shards import is_even
from hcmi.types import Clip
from hcmi.video import decode as frames
from hcmi.video import encode_job


def _by_number(times_s, scan, wanted):
    """How versions before chose frames."""
    indices = [(2 * part + 1) * len(times_s) // (2 * wanted) for part in range(wanted)]
    return frames._Picked(indices, [times_s[index] for index in indices], len(times_s))


@pytest.mark.parametrize(("times_s", "count", "end_s", "even"), [
    ((0.2, 0.6, 1.0, 1.4, 1.8), 20, 2.0, True),
    ((0.2, 0.6, 1.0, 1.4, 1.8), 20, 2.15, True),        # sound that is a little longer
    ((0.2, 0.6, 1.0, 1.4, 1.8), 20, 10.0, False),       # the last picture stands still, or sound is longer
    ((0.2, 0.6, 1.0, 1.6, 2.0), 20, 2.2, False),
    ((0.067, 0.2, 0.333, 0.467, 0.6), 20, 0.667, True),         # 30 frames a second, in milliseconds
    ((0.0, 0.0, 0.1, 0.1, 0.1), 2, 0.2, True),
    ((0.0, 0.0, 0.0, 0.0, 0.0), 1, 0.1, False),         # one frame says nothing; it is quickly decoded
    ((1.0, 3.0, 5.0, 7.0, 9.0), 7, 10.0, False)])       # the middles of a film with a changing rate
def test_frames_are_even_when_the_rate_can_be_constant(times_s, count, end_s, even):
    assert is_even({"times_s": times_s, "num_decodable": count, "start_s": 0.0, "end_s": end_s}) == even
    assert not is_even({"times_s": times_s})


def test_only_clips_with_a_changing_rate_are_decoded_again_when_an_earlier_version_wrote_the_shards(
        tmp_path, monkeypatch):
    """A picture every tenth of a second for 2 s, and one that stands still until the last one at 9.9 s."""
    still = write_pictures(tmp_path / "still.mkv", (np.full((64, 64, 3), 4 * level, np.uint8) for level in range(22)),
                           10, times=[*range(21), 99], crf="10", g="5")
    clips = [make_clip(tmp_path, number, end_s=(20 + number % 3) / 10, duration_s=(20 + number % 3) / 10)
             for number in range(11)]
    clips.append(Clip("still", str(still), "train", ("a",), 0.0, 10.0, 10.0,
                      hashlib.sha256(still.read_bytes()).hexdigest(), {}))
    with monkeypatch.context() as before:
        before.setattr(frames, "_spread", _by_number)
        before.setattr(shards_stage, "_run", lambda jobs, config: ((job, encode_job(job)) for job in jobs))
        stage(tmp_path, clips)
    (tmp_path / "shards.work" / shards_stage.CHECKED).unlink()
    old = contents(tmp_path / "shards")
    summary = stage(tmp_path, clips)
    assert (summary["decoded"], summary["reused"]) == (1, 11)
    assert contents(tmp_path / "shards") != old
    stage(tmp_path, clips, name="fresh")
    assert contents(tmp_path / "shards") == contents(tmp_path / "fresh")
    assert stage(tmp_path, clips)["decoded"] == 0, "a clip is decoded again once"
