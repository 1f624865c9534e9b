"""Real video files made on the spot: frame i is the grey level i * STEP, so a wrong frame is a wrong pixel."""

from pathlib import Path

import av
import numpy as np

STEP = 4


def write_grey(path: Path, num_frames: int = 20, fps: int = 10, width: int = 64, height: int = 48, gop: int = 250,
               codec: str = "libx264", rotation: int = 0, split: bool = False) -> Path:
    """`split`: the left half stays black, so that rotation shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": str(gop), "crf": "10", "preset": "ultrafast", "sc_threshold": "0"}
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            picture = np.full((height, width, 3), index * STEP % 256, np.uint8)
            if split:
                picture[:, :width // 2] = 0
                picture[:, width // 2:] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey_numbers(frames_THWC: np.ndarray) -> list[int]:
    """Which frame of a grey video each frame is."""
    return [round(float(frame.mean()) / STEP) for frame in frames_THWC]
