"""Shards written by webdataset, and their index by tarfile.

The left half of frame f of clip c is grey level c, the right half f, so that a wrong clip or frame is a wrong pixel.
"""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

SIZE = 16


def jpeg(clip: int, frame: int, size: int = SIZE) -> bytes:
    pixels = np.full((size, size, 3), clip, np.uint8)
    pixels[:, size // 2:] = frame
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def clip_and_frame(frames_HXC) -> tuple[np.ndarray, np.ndarray]:
    """Which clip and frame these pixels show [...]."""
    frames = np.asarray(frames_HXC)
    return frames[..., SIZE // 2, SIZE // 4, 0], frames[..., SIZE // 2, -SIZE // 4, 0]


def make_shards(folder, videos, num_frames=6, num_captions=2, split="train", per_shard=4, sha256=None):
    """Write `len(videos)` clips; `videos[clip]` names the video a clip comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = num_frames if isinstance(num_frames, list) else [num_frames] * len(videos)
    held = num_captions if isinstance(num_captions, list) else [num_captions] * len(videos)
    for number, start in enumerate(range(0, len(videos), per_shard)):
        with wds.TarWriter(str(folder / f"{split}-{number:06d}.tar"), mtime=0) as writer:
            for clip in range(start, min(start + per_shard, len(videos))):
                captions = [f"clip {clip} caption {caption}" for caption in range(held[clip])]
                writer.write({"__key__": f"v{clip:04d}", "json": json.dumps({
                    "video_id": f"v{clip:04d}", "captions": captions, "path": f"videos/{videos[clip]}.mp4",
                    "split": split, "start_s": 0.0, "end_s": 1.0, "duration_s": 1.0, "sha256": sha256 or videos[clip],
                    "tags": {},
                    "times_s": [0.1 * f for f in range(stored[clip])], "decoder": "decord", "num_decodable": 9,
                    "width": 640, "height": 360}).encode(),
                    **{f"{f:02d}.jpg": jpeg(clip, f) for f in range(stored[clip])}})
    write_index(folder)
    return folder


def write_index(folder):
    rows = []
    for path in sorted(folder.glob("*.tar")):
        clips = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                clips.setdefault(key, {})[kind] = (member.offset_data, member.size)
        for key, members in clips.items():
            offsets, sizes = zip(*(members[kind] for kind in sorted(members) if kind != "json"), strict=True)
            rows.append({"split": path.name.rsplit("-", 1)[0], "shard": path.name, "video_id": key,
                         "json_offset": members["json"][0], "json_size": members["json"][1],
                         "frame_offsets": offsets, "frame_sizes": sizes})
    schema = pa.schema([("split", pa.string()), ("shard", pa.string()), ("video_id", pa.string()),
                        ("json_offset", pa.int64()), ("json_size", pa.int64()),
                        ("frame_offsets", pa.list_(pa.int64())), ("frame_sizes", pa.list_(pa.int32()))])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "index.parquet")
