"""Real video files made on the spot: frame i is the grey level i * STEP, so a wrong frame is a wrong pixel."""

import contextlib
import os
import shutil
import socket
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 4
SOUND_RATE = 44100
# Names of good files that are not one line of UTF-8: as Latin-1 has them, and with control characters.
NO_LINES = ("caf\udce9.mp4", "d\udce9r/video.mp4", "new\nline.mp4", "red\x1b[31m.mp4", "tab\t.mp4", "line\u2028.mp4")
OF_SYSTEMS = ("._plain.mp4", ".Trash/plain.mp4", "__MACOSX/plain.mp4", "@eaDir/plain.mp4/SYNOVIDEO.mp4",
              "$RECYCLE.BIN/plain.mp4")
STILL_HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def write_pictures(path: Path, pictures: Iterable[np.ndarray], fps: int, codec: str = "libx264", rotation: int = 0,
                   start_s: int = 0, pixel_shape: int = 1, times: Sequence[int] = (), matrix: Sequence[int] = (),
                   sound_s: float = 0.0, index_first: bool = False, **options: str) -> Path:
    """A video file of these pictures, uint8 [H, X, 3]; the one writer of the tests. `options`: those of the codec.

    `start_s`: the time of the first frame. `pixel_shape`: width of a pixel in heights of it. `times`: when each picture
    begins, in units of 1 / fps; by default one after the other. `matrix`: (a, b, c, d) shows the point (x, y) of a
    picture at (a x + c y, b x + d y). `sound_s`: the length of its sound. `index_first`: the index of an MP4 file is
    before its pictures, so that it can be read where the file is cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        stream.options = options
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        sound = container.add_stream("aac", rate=SOUND_RATE) if sound_s else None
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_shape)
        for number, picture in enumerate((first, *pictures)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = start_s * fps + (times[number] if times else number), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _mux_sound(container, sound, sound_s)
    return path


def _mux_sound(container, stream, seconds: float) -> None:
    for start in range(0, round(seconds * SOUND_RATE), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def cut_off(path: Path, seconds: float) -> Path:
    """Take from the file all that follows the picture that ends at `seconds`, as where a copy was interrupted."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        end = next(packet.pos for packet in container.demux(stream) if packet.pts * stream.time_base >= seconds - 1e-3)
    os.truncate(path, end)
    return path


def last_stands(path: Path, seconds: float) -> Path:
    """Another file of the same packets, of which the last one lasts `seconds`."""
    longer = path.with_stem(f"{path.stem}-longer")
    with av.open(str(path)) as source, av.open(str(longer), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        packets[-1].duration = round(seconds / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    return longer


def write_grey(path: Path, num_frames: int = 20, fps: int = 10, width: int = 64, height: int = 48, gop: int = 250,
               codec: str = "libx264", rotation: int = 0, split: bool = False, start_s: int = 0,
               pixel_shape: int = 1) -> Path:
    """`split`: the left half stays black, so that rotation shows."""
    def picture(index: int) -> np.ndarray:
        made = np.full((height, width, 3), index * STEP % 256, np.uint8)
        if split:
            made[:, :width // 2] = 0
            made[:, width // 2:] = 250
        return made

    return write_pictures(path, map(picture, range(num_frames)), fps, codec, rotation, start_s, pixel_shape,
                          g=str(gop), crf="10", preset="ultrafast", sc_threshold="0")


def write_sound(path: Path) -> Path:
    """A file without pictures."""
    with av.open(str(path), "w") as container:
        _mux_sound(container, container.add_stream("aac", rate=SOUND_RATE), 1024 / SOUND_RATE)
    return path


def write_no_frames(path: Path) -> Path:
    """A container with a video stream in its header, and no packet."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def claim_seconds(path: Path, seconds: float) -> Path:
    """Write another length into the header of a Matroska file."""
    content = path.read_bytes()
    element = b"\x44\x89\x88"          # Duration, of eight bytes, in milliseconds
    before, after = content.split(element, 1)
    path.write_bytes(before + element + struct.pack(">d", 1000 * seconds) + after[8:])
    return path


def grey_numbers(frames_THXC: np.ndarray) -> list[int]:
    """Which frame of a grey video each frame is."""
    return [round(float(frame.mean()) / STEP) for frame in frames_THXC]


def write_odd_folder(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Good videos under names that look like something else, and what is no video under the name of one.

    The names of the good ones, and the reason for each of the others; names that are no UTF-8 as Python decodes them.
    Files of systems (`OF_SYSTEMS`), source code, a photo and a link to the folder itself are neither.
    """
    good = ["plain.mp4", "-dash.mp4", "--help.mp4", "with space.mp4", "a:b.mp4", "100%d;'\".mp4", "ünï/grün.mp4",
            "family 👩‍👩‍👧.mp4", "שלום עולם.mp4", "x" * 251 + ".mp4", *NO_LINES]
    for number, name in enumerate(good):
        write_grey(folder / "made.mp4", num_frames=20 + number).rename(_inside(folder, name))
    for name in OF_SYSTEMS:
        shutil.copy(folder / "plain.mp4", _inside(folder, name))
    (folder / "source.ts").write_text("export const answer = 42;\n" * 40)
    (folder / "photo.heic").write_bytes(STILL_HEIC)
    (folder / "up").symlink_to(".")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(folder):      # such a path may be 107 characters long
        made.bind("socket.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "broken.mp4").symlink_to("nowhere.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video " * 100)
    special = ("folder.mp4", "pipe.mp4", "socket.mp4", "loop.mp4", "device.mp4")
    return good, {**dict.fromkeys(special, "unreadable"),
                  "broken.mp4": "missing", "empty.mp4": "empty_file", "text.mp4": "not_a_video"}


def _inside(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return folder / name
