"""Which frames are decoded from which files, and the errors about the others."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_files import STEP, cut_off, grey_numbers, last_stands, write_grey, write_pictures, write_sound

from hcmi.errors import DecodeError
from hcmi.video import REASONS, probe
from hcmi.video import decode as frames
from hcmi.video.decode import decode_clip, decode_times
from hcmi.video.packets import PacketScan

DECODERS = ("decord", "pyav")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("gop", [1, 7, 250])
def test_decode_gives_the_middle_of_each_part_when_frames_abound(tmp_path, decoder, gop):
    video = write_grey(tmp_path / "v.mp4", num_frames=20, fps=10, gop=gop)
    clip = decode_clip(video, num_frames=5, size=32, decoder=decoder)
    assert grey_numbers(clip.frames) == [2, 6, 10, 14, 18]
    assert clip.times_s == pytest.approx((0.2, 0.6, 1.0, 1.4, 1.8))
    assert (clip.decoder, clip.num_decodable, clip.width, clip.height) == (decoder, 20, 64, 48)
    assert clip.frames.shape == (5, 32, 32, 3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decode_repeats_frames_when_there_are_too_few(tmp_path, decoder):
    clip = decode_clip(write_grey(tmp_path / "v.mp4", num_frames=2), 6, 16, decoder=decoder)
    assert grey_numbers(clip.frames) == [0, 0, 0, 1, 1, 1]
    assert clip.num_decodable == 2
    one = decode_clip(write_grey(tmp_path / "one.mp4", num_frames=1), 3, 16, decoder=decoder)
    assert grey_numbers(one.frames) == [0, 0, 0]


@pytest.mark.parametrize("waiting_bytes", [1, 64 * 48 * 3 * 2, 2**26])
def test_frames_are_the_same_when_few_may_wait(tmp_path, monkeypatch, waiting_bytes):
    monkeypatch.setattr(frames, "WAITING_BYTES", waiting_bytes)
    clip = decode_clip(write_grey(tmp_path / "v.mp4", num_frames=20), 5, 32)
    assert (clip.decoder, grey_numbers(clip.frames)) == ("decord", [2, 6, 10, 14, 18])


def test_something_else_is_kept_of_each_frame_when_asked(tmp_path):
    for name, decoder in (("v.mp4", "decord"), ("v.avi", "pyav")):
        video = write_grey(tmp_path / name, num_frames=2)
        clip = frames.decode_and_keep(video, 4, 16, lambda frame_HXC: [int(frame_HXC.mean())])
        assert (clip.decoder, clip.num_decodable, len(clip.frames)) == (decoder, 2, 4)
        assert clip.frames[0] is clip.frames[1]
        assert clip.frames[2] is clip.frames[3]
        assert clip.frames[0] != clip.frames[2]


def _scan(times: Sequence[int], base: float, own: int | None = None, end: int | None = None, fps: float = 1.0
          ) -> PacketScan:
    return PacketScan(list(times), [], 0, base, True, own is None, own, own, end, True, fps)


@given(st.integers(1, 500), st.integers(1, 64))
def test_spread_is_sorted_and_central_when_sizes_vary(available, wanted):
    scan = _scan(range(available), 0.1)
    picked = frames._spread(scan.times_s(range(available)), scan, wanted).indices
    assert picked == sorted(picked)
    assert picked[0] >= 0
    assert picked[-1] < available
    for part, index in enumerate(picked):
        assert index <= (part + 0.5) * available / wanted < index + 1


def _round(value: Fraction, how: str) -> int:
    return {"down": math.floor, "up": math.ceil, "nearest": round}[how](value)


@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from([1000, 90000, 600, 15360, 30000, 100]),
       st.fractions(1, 120, max_denominator=1001), st.sampled_from(["down", "up", "nearest"]), st.integers(0, 300),
       st.data())
def test_frames_are_chosen_by_number_when_the_rate_is_constant(count, wanted, ticks, fps, rounding, phase, data):
    """Whole files and segments of them, also where the rounding of times makes gaps of 33, 33 and 34 ms."""
    fps = min(fps, Fraction(ticks))
    pts = [_round(Fraction(phase, 7) + number * ticks / fps, rounding) for number in range(count)]
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    after = _round(Fraction(phase, 7) + (last + 1) * ticks / fps, rounding)
    own = data.draw(st.integers(pts[first - 1] + 1 if first else 0, pts[first]))
    end = data.draw(st.integers(pts[last] + 1, max(after, pts[last] + 1)))
    begun = pts[max(first - 1, 0) if own < pts[first] else first:last + 1]
    scan = _scan(begun, 1 / ticks, own if first else None, data.draw(st.sampled_from([end, None])), float(fps))
    picked = frames._spread(scan.times_s(range(len(begun))), scan, wanted)
    chosen = [begun[index] for index in picked.indices]
    oracle = pts[first:last + 1]
    assert chosen == [oracle[(2 * part + 1) * len(oracle) // (2 * wanted)] for part in range(wanted)]
    assert picked.times_s == pytest.approx([pts / ticks for pts in chosen])
    assert picked.count == len(oracle)


@given(st.lists(st.integers(0, 60), min_size=2, max_size=40), st.integers(0, 40), st.integers(1, 20), st.data())
def test_frames_are_those_shown_at_the_middles_when_the_rate_changes(gaps, lasts, wanted, data):
    times = np.cumsum([0, *gaps]).tolist()
    end = times[-1] + lasts if lasts else None
    own = data.draw(st.integers(1, times[1])) if times[1] else None
    scan = _scan(times, 0.5, own, end)
    picked = frames._spread(scan.times_s(range(len(times))), scan, wanted)
    if frames._is_steady(scan.times_s(range(len(times))), end and end / 2, scan, 0 if own is None else 1):
        return
    begins, ends = (own or 0) / 2, (end or 2 * times[-1] - times[-2]) / 2
    for part, (index, time_s) in enumerate(zip(picked.indices, picked.times_s, strict=True)):
        assert time_s == pytest.approx(begins + (part + 0.5) * (ends - begins) / wanted)
        assert index == max(number for number, time in enumerate(times) if time / 2 <= time_s + 1e-6)


@pytest.mark.parametrize("gop", [1, 10, 250])
def test_segment_gives_its_own_frames_when_cut_from_a_longer_video(tmp_path, gop):
    video = write_grey(tmp_path / "v.mp4", num_frames=60, fps=10, gop=gop)
    clip = decode_clip(video, 4, 16, start_s=2.0, end_s=2.8)
    assert grey_numbers(clip.frames) == [21, 23, 25, 27]
    assert clip.times_s == pytest.approx((2.1, 2.3, 2.5, 2.7))
    assert (clip.num_decodable, clip.decoder) == (8, "pyav")
    assert grey_numbers(decode_clip(video, 3, 16, start_s=5.4).frames) == [55, 57, 59]
    assert grey_numbers(decode_clip(video, 2, 16, end_s=0.4).frames) == [1, 3]
    assert decode_clip(video, 2, 16, end_s=6.0).decoder == "decord", "an end at the claimed duration is no cut"


@pytest.mark.parametrize("gop", [10, 250])
@pytest.mark.parametrize("ending", ["mkv", "flv", "ts", "mpg"])
def test_segment_is_the_same_when_the_container_has_no_index(tmp_path, ending, gop):
    """A jump in a transport or program stream lands at any packet: behind the key frame, or at no known time."""
    video = write_grey(tmp_path / f"v.{ending}", num_frames=60, fps=10, gop=gop)
    clip = decode_clip(video, 4, 16, start_s=2.0, end_s=2.8)
    assert grey_numbers(clip.frames) == [21, 23, 25, 27]
    assert clip.times_s == pytest.approx((2.1, 2.3, 2.5, 2.7))
    assert grey_numbers(decode_clip(video, 1, 16, start_s=3.0, end_s=3.5).frames) == [32]


def test_transport_stream_is_not_decoded_twice_when_its_packets_can_be_believed(tmp_path, monkeypatch):
    video = write_grey(tmp_path / "v.ts", num_frames=60, gop=20)
    seen = []
    decode = frames.decode_frames
    monkeypatch.setattr(frames, "decode_frames", lambda *args: (seen.append(f.pts) or f for f in decode(*args)))
    assert grey_numbers(decode_clip(video, 3, 16).frames) == [10, 30, 50]
    assert len(seen) <= 60


def test_segment_skips_what_lies_before_when_there_are_key_frames(tmp_path, monkeypatch):
    video = write_grey(tmp_path / "v.mp4", num_frames=200, gop=10, width=32, height=32)
    seen = []
    decode = frames.decode_frames
    monkeypatch.setattr(frames, "decode_frames", lambda *args: (seen.append(f.pts) or f for f in decode(*args)))
    clip = decode_clip(video, 2, 16, start_s=15.0, end_s=15.4)
    assert [round(t, 3) for t in clip.times_s] == [15.1, 15.3]
    assert len(seen) <= 10
    seen.clear()
    decode_clip(video, 2, 16, decoder="pyav")
    assert len(seen) <= 25, "the whole video, two frames: two jumps"


@pytest.mark.parametrize(("start_s", "end_s"), [(7.0, 8.0), (2.0, 2.1)])
def test_segment_is_too_short_when_it_holds_no_frame(tmp_path, start_s, end_s):
    video = write_grey(tmp_path / "v.mp4", num_frames=20)
    with pytest.raises(DecodeError, match=r"v\.mp4: need a video that can be decoded, got the segment start_s\.\.end_s "
                                          r"holds no frame\. Replace or remove the file\.") as error:
        decode_clip(video, 2, 16, start_s, end_s)
    assert error.value.reason == "too_short"


@pytest.mark.parametrize(("rotation", "bright"), [(0, "right"), (90, "top"), (180, "left"), (270, "bottom")])
@pytest.mark.parametrize("decoder", DECODERS)
def test_rotation_is_applied_when_the_header_asks_for_it(tmp_path, rotation, bright, decoder):
    video = write_grey(tmp_path / "v.mp4", num_frames=2, width=128, height=96, rotation=rotation, split=True)
    clip = decode_clip(video, 1, 48, decoder=decoder)
    frame = clip.frames[0].astype(int)
    halves = {"top": frame[:20], "bottom": frame[28:], "left": frame[:, :20], "right": frame[:, 28:]}
    assert max(halves, key=lambda name: halves[name].mean()) == bright
    upright = (128, 96) if rotation in (0, 180) else (96, 128)
    info = probe(video)
    assert (clip.width, clip.height) == (info.width, info.height) == upright


COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def _corners(picture_HXC: np.ndarray) -> str:
    """The colours of a picture's quarters, as it is read."""
    half = len(picture_HXC) // 2
    means = [rows[:, side].mean((0, 1)) for rows in (picture_HXC[:half], picture_HXC[half:])
             for side in (slice(half), slice(half, None))]
    return "".join(min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum()) for mean in means)


@pytest.mark.parametrize(("matrix", "corners"), [       # R G above B W is stored
    ((1, 0, 0, 1), "RGBW"), ((0, 1, -1, 0), "BRWG"), ((-1, 0, 0, -1), "WBGR"), ((0, -1, 1, 0), "GWRB"),
    ((-1, 0, 0, 1), "GRWB"),        # left and right exchanged
    ((1, 0, 0, -1), "BWRG"),        # top and bottom exchanged
    ((0, 1, 1, 0), "RBGW"), ((0, -1, -1, 0), "WGBR")])      # rows and columns exchanged, by each diagonal
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_picture_is_turned_and_mirrored_as_the_matrix_of_the_file_says(tmp_path, ending, matrix, corners):
    above, below = (np.repeat([COLOURS[left], COLOURS[right]], 64, 0) for left, right in ("RG", "BW"))
    picture = np.repeat([above, below], 48, 0).astype(np.uint8)
    video = write_pictures(tmp_path / f"v.{ending}", [picture] * 3, 10, matrix=matrix)
    size = (128, 96) if matrix[0] else (96, 128)
    for decoder, segment in (("auto", (0.0, None)), ("pyav", (0.0, None)), ("auto", (0.1, 0.2))):
        clip = decode_clip(video, 2, 32, *segment, decoder=decoder)
        assert (_corners(clip.frames[0]), clip.width, clip.height) == (corners, *size)
    assert (probe(video).width, probe(video).height) == size
    assert decode_clip(video, 2, 32).decoder == ("decord" if corners == "RGBW" else "pyav")


def _cut_off(source: Path, target: Path, share: float = 0.6) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[:int(len(content) * share)])
    return target


def _damage(source: Path, target: Path) -> Path:
    """Zeros over the last 40 % of the pictures' bytes; the index stays whole."""
    content = bytearray(source.read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    first = start + (end - start) * 6 // 10
    content[first:end] = bytes(end - first)
    target.write_bytes(content)
    return target


def _noisy(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = {"g": "250", "preset": "ultrafast"}
        for _ in range(40):
            picture = rng.integers(0, 255, (64, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize("start_s", [2, 3600])
def test_times_count_from_the_first_frame_when_the_clock_of_the_file_is_late(tmp_path, ending, start_s):
    """Matroska's header then gives the time of the end, 3604 s, and not the length."""
    video = write_grey(tmp_path / f"v.{ending}", num_frames=40, fps=10, gop=10, start_s=start_s)
    assert probe(video).duration_s == pytest.approx(4.0)
    assert decode_clip(video, 4, 16).times_s == pytest.approx((0.5, 1.5, 2.5, 3.5))
    assert grey_numbers(decode_clip(video, 4, 16, 1.0, 3.0).frames) == [12, 17, 22, 27]
    assert grey_numbers(decode_clip(video, 2, 16, 3.0, 4.0).frames) == [32, 37]


@pytest.mark.parametrize(("rotation", "size"), [(0, (96, 48)), (90, (48, 96))])
def test_picture_is_stretched_when_its_pixels_are_not_square(tmp_path, rotation, size):
    """48 x 48 pixels of twice the width: a square around the centre shows the middle half."""
    squeezed = write_grey(tmp_path / "v.mp4", width=48, split=True, pixel_shape=2, rotation=rotation)
    square = write_grey(tmp_path / "w.mp4", width=96, split=True, rotation=rotation)
    clip, other = decode_clip(squeezed, 2, 32), decode_clip(square, 2, 32)
    assert (clip.width, clip.height) == (probe(squeezed).width, probe(squeezed).height) == size
    assert np.abs(clip.frames.astype(int) - other.frames).mean() < 8
    assert decode_clip(squeezed, 2, 32, decoder="auto").decoder == "pyav"


def test_count_is_of_frames_that_decode_when_the_index_promises_more(tmp_path):
    clip = decode_clip(_damage(_noisy(tmp_path / "v.mp4"), tmp_path / "damaged.mp4"), 8, 16)
    assert clip.decoder == "pyav"
    assert 15 <= clip.num_decodable < 40
    assert clip.times_s[-1] < clip.num_decodable / 10


@pytest.mark.parametrize(("lost", "shown", "times_s"), [
    ([3], [2, 6, 10, 14, 18], [0.2, 0.6, 1.0, 1.4, 1.8]),
    ([2], [1, 6, 10, 14, 18], [0.2, 0.6, 1.0, 1.4, 1.8]),       # frame 1 is shown until frame 3
    (range(3, 20, 7), [2, 6, 9, 14, 18], [0.2, 0.6, 1.0, 1.4, 1.8]),
    (range(15, 20), [1, 4, 7, 10, 13], [0.1, 0.4, 0.7, 1.0, 1.3])])
def test_everything_is_decoded_when_frames_are_not_those_that_the_packets_promise(tmp_path, monkeypatch, lost, shown,
                                                                                  times_s):
    video = write_grey(tmp_path / "v.mp4", num_frames=20, fps=10)
    decode = frames.decode_frames
    monkeypatch.setattr(frames, "decode_frames", lambda *arguments: (
        frame for number, frame in enumerate(decode(*arguments)) if number not in lost))
    clip = decode_clip(video, 5, 32, decoder="pyav")
    left = [number for number in range(20) if number not in lost]
    assert clip.num_decodable == len(left)
    assert grey_numbers(clip.frames) == shown
    assert clip.times_s == pytest.approx(times_s)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
def test_end_of_the_pictures_is_that_of_the_last_packet(tmp_path, ending):
    grey = np.random.default_rng(0).integers(0, 255, 40, np.uint8)
    video = write_pictures(tmp_path / f"v.{ending}", (np.full((48, 64, 3), level, np.uint8) for level in grey), 10,
                           index_first=ending == "mp4", g="5", bf="0")
    off_s = 0.11 if ending == "avi" else 1e-6       # it has no presentation times: FFmpeg makes them up
    for decoder in ("auto", "pyav"):
        assert decode_clip(video, 4, 16, decoder=decoder).pictures_end_s == pytest.approx(4.0, abs=off_s)
    assert decode_times(video, [2.5, 3.9], 16, 2.0, None).pictures_end_s == pytest.approx(4.0, abs=off_s)
    assert decode_times(video, [2.5, 2.9], 16, 2.0, 3.0).pictures_end_s == pytest.approx(3.0), "of the segment"
    cut_off(video, 2.0)
    assert decode_clip(video, 4, 16).pictures_end_s == pytest.approx(2.0, abs=off_s)
    assert decode_times(video, [1.2, 3.0], 16, 1.0, None).pictures_end_s == pytest.approx(2.0, abs=off_s)
    with pytest.raises(DecodeError, match="holds no frame"):
        decode_times(video, [2.6, 3.0], 16, 2.5, None)


def test_end_of_the_pictures_is_that_of_the_last_frame_when_the_others_are_damaged(tmp_path):
    clip = decode_clip(_damage(_noisy(tmp_path / "v.mp4"), tmp_path / "damaged.mp4"), 8, 16)
    assert clip.pictures_end_s == pytest.approx(clip.num_decodable / 10)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_end_of_sound_is_told_from_that_of_pictures(tmp_path, ending):
    video = write_pictures(tmp_path / f"v.{ending}", [np.zeros((48, 64, 3), np.uint8)] * 20, 10, sound_s=5.0)
    clip = decode_clip(video, 4, 16)
    assert clip.pictures_end_s == pytest.approx(2.0)
    assert clip.sound_end_s == pytest.approx(5.0, abs=0.1)
    assert decode_clip(write_grey(tmp_path / "silent.mp4"), 4, 16).sound_end_s == 0.0


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_last_picture_ends_when_its_packet_says(tmp_path, ending):
    video = write_pictures(tmp_path / f"v.{ending}", [np.zeros((48, 64, 3), np.uint8)] * 20, 10, bf="0")
    assert decode_clip(last_stands(video, 3.0), 4, 16).pictures_end_s == pytest.approx(4.9)


def test_fallback_reads_what_decord_refuses_when_auto(tmp_path):
    video = write_grey(tmp_path / "v.avi", num_frames=20)
    clip = decode_clip(video, 5, 32)
    assert clip.decoder == "pyav"
    assert grey_numbers(clip.frames) == [2, 6, 10, 14, 18]
    stream = write_grey(tmp_path / "v.ts", num_frames=20)
    assert grey_numbers(decode_clip(stream, 5, 32).frames) == [2, 6, 10, 14, 18]
    assert decode_clip(stream, 5, 32).times_s == pytest.approx((0.2, 0.6, 1.0, 1.4, 1.8)), "its clock starts at 1.4 s"


def test_fallback_takes_over_when_decord_garbles_narrow_frames(tmp_path):
    video = write_grey(tmp_path / "v.mp4", width=24, height=24)
    clip = decode_clip(video, 5, 16)
    assert (clip.decoder, grey_numbers(clip.frames)) == ("pyav", [2, 6, 10, 14, 18])
    with pytest.raises(DecodeError, match=r"decord gives frames of shape \(24, 24, 4\)"):
        decode_clip(video, 5, 16, decoder="decord")


def test_fallback_takes_over_when_decord_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    clip = decode_clip(write_grey(tmp_path / "v.mp4"), 5, 32)
    assert (clip.decoder, grey_numbers(clip.frames)) == ("pyav", [2, 6, 10, 14, 18])


def _bad_files(folder: Path) -> dict[str, Path]:
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video at all")
    (folder / "folder.mp4").mkdir()
    return {"missing": folder / "missing.mp4", "empty_file": folder / "empty.mp4", "not_a_video": folder / "text.mp4",
            "unreadable": folder / "folder.mp4", "no_video_stream": write_sound(folder / "sound.mp4")}


@pytest.mark.parametrize(("reason", "next_step"), [
    ("missing", "Put it there, or correct its name."),
    *((reason, "Replace or remove the file.") for reason in ("empty_file", "not_a_video", "unreadable",
                                                             "no_video_stream"))])
@pytest.mark.parametrize("read", [probe, lambda path: decode_clip(path, 4, 16)], ids=["probe", "decode"])
def test_error_names_file_and_reason_when_there_is_no_video(tmp_path, reason, next_step, read):
    path = _bad_files(tmp_path)[reason]
    with pytest.raises(DecodeError) as error:
        read(path)
    assert error.value.reason == reason
    assert str(error.value) == (f"{path}: need a video that can be decoded, got {REASONS[reason]}. "
                                f"{next_step}")


def test_error_says_not_a_video_when_the_index_is_cut_off(tmp_path):
    with pytest.raises(DecodeError) as error:
        decode_clip(_cut_off(write_grey(tmp_path / "v.mp4"), tmp_path / "cut.mp4"), 4, 16)
    assert error.value.reason == "not_a_video"


def test_helper_sees_the_difference_when_a_frame_is_off_by_one():
    frames_THXC = np.full((2, 4, 4, 3), STEP, np.uint8)
    assert grey_numbers(frames_THXC) != [1, 2]


def test_odd_files_give_the_decoded_count_or_a_reason_when_read(shared_data):
    """98 real odd files against what FFmpeg decoded of each."""
    wrong, reasons = [], set()
    for entry in json.loads((shared_data / "odd_videos/probe.json").read_text()):
        expected, path = entry["decoded"], shared_data / "odd_videos" / entry["file"]
        try:
            clip = decode_clip(path, 8, 32)
        except DecodeError as error:
            reasons.add(error.reason)
            found = 0
        else:
            found = clip.num_decodable
            assert clip.frames.shape == (8, 32, 32, 3)
            assert list(clip.times_s) == sorted(clip.times_s)
        if found != expected:
            wrong.append((entry["file"], expected, found))
    assert not wrong
    assert reasons == {"empty_file", "not_a_video", "no_video_stream", "no_frames"}


def test_decoders_agree_to_the_pixel_when_both_read_real_clips(shared_data):
    videos = sorted(os.listdir(shared_data / "real_clips/videos"))
    for name in [*videos[::30], "3qqEKTPxLNs_1_15.avi"]:
        path = shared_data / "real_clips/videos" / name
        auto, pyav = decode_clip(path, 12, 64), decode_clip(path, 12, 64, decoder="pyav")
        assert np.array_equal(auto.frames, pyav.frames), name
        assert auto.times_s == pyav.times_s
        assert auto.num_decodable == pyav.num_decodable
        assert auto.decoder == ("pyav" if name.endswith(".avi") else "decord")


@pytest.mark.parametrize("name", ["with space.mp4", "-dash.mp4", "a:b.mp4", "ünï.mp4", "100%d.mp4", "file:x.mp4"])
def test_names_are_only_names_when_they_look_like_something_else(tmp_path, monkeypatch, name):
    shutil.copy(write_grey(tmp_path / "v.mp4"), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for decoder in DECODERS:
        assert decode_clip(name, 5, 16, decoder=decoder).num_decodable == 20


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def lecture(request, tmp_path_factory) -> Path:
    """Ten frames a second for 3 s; a slide (level 250) on the screen from 3 s to 20 s; then 2 s of frames again."""
    levels = [*range(0, 120, 4), 250, *range(120, 200, 4)]
    times = [*range(30), 30, *range(200, 220)]
    return write_pictures(tmp_path_factory.mktemp("lecture") / f"v.{request.param}",
                          (np.full((48, 64, 3), level, np.uint8) for level in levels), 10, times=times, crf="10",
                          preset="ultrafast", g="25")


@pytest.mark.parametrize(("start_s", "end_s", "times_s", "levels"), [
    (0.0, 6.0, (0.05, 2.95, 4.0, 5.9), (0, 116, 250, 250)), (6.0, 12.0, (6.1, 11.9), (250, 250)),
    (18.0, None, (18.1, 19.95, 20.05, 21.95), (250, 250, 120, 196)), (20.0, None, (20.05,), (120,))])
def test_picture_that_stands_still_is_shown_until_the_next_one(lecture, start_s, end_s, times_s, levels):
    frames = decode_times(lecture, times_s, 32, start_s, end_s).frames
    assert frames.mean((1, 2, 3)) == pytest.approx(levels, abs=4)


@pytest.mark.parametrize(("start_s", "end_s", "levels", "times_s"), [
    (0.0, None, (108, 250, 250, 250), (2.75, 8.25, 13.75, 19.25)),   # 22 s
    (9.0, 13.0, (250, 250, 250, 250), (9.5, 10.5, 11.5, 12.5)),     # no frame begins here
    (2.0, 6.0, (100, 250, 250, 250), (2.5, 3.5, 4.5, 5.5)),
    (18.0, 20.4, (250, 250, 250, 124), (18.3, 18.9, 19.5, 20.1)),
    (18.0, 20.05, (250, 250, 250, 250), (18.25625, 18.76875, 19.28125, 19.79375)),
    (20.0, 20.4, (120, 124, 128, 132), (20.0, 20.1, 20.2, 20.3)),   # a constant rate: when each frame begins
    (0.05, 0.35, (4, 8, 8, 12), (0.1, 0.2, 0.2, 0.3))])
def test_segment_shows_the_frame_at_the_middle_of_each_part_when_the_rate_changes(lecture, start_s, end_s, levels,
                                                                                 times_s):
    clip = decode_clip(lecture, 4, 32, start_s, end_s)
    assert clip.frames.mean((1, 2, 3)) == pytest.approx(levels, abs=2)
    assert clip.times_s == pytest.approx(times_s, abs=0.02)


def test_segment_is_too_short_when_it_begins_after_the_last_picture_has_ended(lecture):
    with pytest.raises(DecodeError) as found:
        decode_clip(lecture, 4, 32, 30.0, 31.0)     # after the end of the file
    assert found.value.reason == "too_short"
