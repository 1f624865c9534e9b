"""What the packets of a file say before anything is decoded."""

import pytest
from video_files import write_grey

from hcmi.video import probe
from hcmi.video.packets import open_video, scan_packets, seek


def test_probe_gives_size_rate_and_length_when_the_file_is_good(tmp_path):
    info = probe(write_grey(tmp_path / "v.mp4", num_frames=20, fps=10))
    assert (info.width, info.height, info.fps, info.num_frames_claimed, info.codec) == (64, 48, 10.0, 20, "h264")
    assert info.duration_s == pytest.approx(2.0)


@pytest.mark.parametrize("rotation", [0, 90])
def test_probe_gives_the_upright_size_when_the_header_asks_for_a_rotation(tmp_path, rotation):
    info = probe(write_grey(tmp_path / "v.mp4", width=128, height=96, rotation=rotation))
    assert (info.width, info.height) == ((96, 128) if rotation else (128, 96))


@pytest.mark.parametrize(("start_s", "end_s", "frames"), [
    (0.0, None, range(60)), (2.0, 2.8, range(20, 28)), (5.4, None, range(54, 60)), (0.0, 6.0, range(60)),
    (7.0, 8.0, ())])
@pytest.mark.parametrize("ending", ["mp4", "ts"])
def test_scan_lists_the_frames_of_a_segment_and_their_times(tmp_path, ending, start_s, end_s, frames):
    video = write_grey(tmp_path / f"v.{ending}", num_frames=60, fps=10, gop=7)
    with open_video(video) as (container, stream):
        scan = scan_packets(container, stream, start_s, end_s)
    assert scan.times_s(range(len(scan.pts))) == pytest.approx([frame / 10 for frame in frames])
    assert scan.trusted
    assert scan.whole == (len(frames) == 60)


def test_scan_is_not_trusted_when_the_container_has_no_presentation_times(tmp_path):
    with open_video(write_grey(tmp_path / "v.avi")) as (container, stream):
        assert not scan_packets(container, stream, 0.0, None).trusted


def test_seek_lands_on_the_key_frame_before_the_time(tmp_path):
    with open_video(write_grey(tmp_path / "v.mp4", num_frames=30, gop=10)) as (container, stream):
        pts = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        seek(container, stream, sorted(pts)[15])
        packet = next(container.demux(stream))
        assert (packet.is_keyframe, packet.pts) == (True, sorted(pts)[10])
