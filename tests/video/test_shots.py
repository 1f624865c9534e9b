"""Finding the shots of a film, against films whose cuts are known."""

import numpy as np
import pytest
from video_files import write_pictures

import hcmi.video.shots
from hcmi.errors import ConfigError, DecodeError
from hcmi.video import CutsJob, DecoderPool, check_detector, cuts_jobs, find_cuts, shots_of

FPS = 10
LENGTHS = (31, 7, 24, 40, 18)       # frames of each shot; the second ends in the second part


def clip(number: int, length: int):
    """Pictures of a clip: a background of its own, on which a square moves."""
    generator = np.random.default_rng(number)
    ground = generator.integers(0, 255, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    for at in range(length):
        picture = ground.copy()
        picture[20:40, 2 * at % 70:2 * at % 70 + 20] = 255 - ground[0, 0]
        yield picture


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    pytest.importorskip("scenedetect", reason="scenedetect is not installed: pip install 'hcmi[shots]'")
    pictures = (picture for number, length in enumerate(LENGTHS) for picture in clip(number, length))
    return write_pictures(tmp_path_factory.mktemp("shots") / "film.mp4", pictures, FPS, g="25", crf="18")


def test_cuts_are_where_clips_are_joined(film):
    assert find_cuts(CutsJob(None, str(film), 0.0, 60.0)) == pytest.approx(np.cumsum(LENGTHS)[:-1] / FPS)


@pytest.mark.parametrize("part_s", [0.9, 3.1, 5.0])
def test_cuts_are_the_same_when_a_film_is_read_in_parts(film, part_s, monkeypatch):
    """Also where a part begins or ends at a cut (3.1)."""
    monkeypatch.setattr(hcmi.video.shots, "PART_SECONDS", part_s)
    jobs = list(cuts_jobs("film", str(film), 12.0))
    assert (jobs[0].start_s, jobs[-1].end_s >= 12.0) == (0.0, True)
    found = [find_cuts(job) for job in jobs]
    assert sum(found, ()) == pytest.approx(np.cumsum(LENGTHS)[:-1] / FPS)


def test_no_cut_is_lost_when_the_frame_rate_changes(tmp_path):
    """Six seconds of ten frames each, then two frames a second: shots of one second then have two frames."""
    pytest.importorskip("scenedetect", reason="scenedetect is not installed: pip install 'hcmi[shots]'")
    times = [*range(60), *range(60, 160, 5)]
    cuts_s = [2.0, 8.0, 9.0, 10.0, 12.5]
    numbers = [sum(cut_s * FPS <= time for cut_s in cuts_s) for time in times]
    film = write_pictures(tmp_path / "film.mkv", (next(clip(number, 1)) for number in numbers), FPS, times=times,
                          crf="18")
    assert find_cuts(CutsJob(None, str(film), 0.0, 60.0)) == pytest.approx(cuts_s)


def test_no_cut_is_lost_between_parts_when_pictures_stand_still(tmp_path, monkeypatch):
    """Slides, of which one is shown from before the part until well into it."""
    pytest.importorskip("scenedetect", reason="scenedetect is not installed: pip install 'hcmi[shots]'")
    times_s = [0, 4, 9, 13, 17, 20]
    film = write_pictures(tmp_path / "film.mkv", (next(clip(number, 1)) for number in range(len(times_s))), FPS,
                          times=[FPS * time_s for time_s in times_s], crf="18")
    monkeypatch.setattr(hcmi.video.shots, "PART_SECONDS", 6.0)
    found = [find_cuts(job) for job in cuts_jobs("film", str(film), 20.1)]
    assert sum(found, ()) == pytest.approx(times_s[1:])


def test_file_that_is_no_video_is_named(tmp_path):
    pytest.importorskip("scenedetect", reason="scenedetect is not installed: pip install 'hcmi[shots]'")
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with DecoderPool(1, 20.0, find_cuts) as pool:
        (_, found), = pool.map(cuts_jobs(0, str(tmp_path / "no.mp4"), 50.0))
    assert isinstance(found, DecodeError)


def test_shots_lie_between_cuts_by_hand():
    assert shots_of([], 40.0) == [(0.0, 40.0)]
    assert shots_of([30.0, 10.0], 40.0) == [(0.0, 10.0), (10.0, 30.0), (30.0, 40.0)]
    assert shots_of([0.5, 10.0, 10.4, 39.5], 40.0) == [(0.0, 10.0), (10.0, 40.0)], "none is shorter than 0.6 s"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need scenedetect to find shots, got no such package. Run `pip install"):
        check_detector()
