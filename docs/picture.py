"""Draw what `hcmi search` answers: python docs/picture.py "a query" docs/images/search.png

Needs a finished pipeline. Frames inside the moment that was found have a coloured edge.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hcmi.data.frames import decode_clip

FRAMES, PIXELS, EDGE = 8, 112, 4
INSIDE, OUTSIDE = (31, 119, 180), (255, 255, 255)


def strip(hit: dict) -> np.ndarray:
    """The clip's frames side by side, uint8 [H, X, 3]."""
    clip = decode_clip(hit["path"], FRAMES, PIXELS)
    parts = []
    for frame_HXC, time_s in zip(clip.frames_THWC, clip.times_s, strict=True):
        inside = hit["start_s"] <= time_s <= hit["end_s"]
        part = np.empty((PIXELS + 2 * EDGE, PIXELS + 2 * EDGE, 3), np.uint8)
        part[:] = INSIDE if inside else OUTSIDE
        part[EDGE:-EDGE, EDGE:-EDGE] = frame_HXC
        parts.append(part)
    return np.concatenate(parts, axis=1)


def draw(query: str, hits: list[dict], path: Path) -> None:
    """Write the picture as PNG, with nothing in it that changes from run to run."""
    figure = Figure(figsize=(9, 0.6 + 1.5 * len(hits)), layout="constrained", dpi=100)
    figure.suptitle(f'hcmi search "{query}"', x=0.01, ha="left", family="monospace", fontsize=11)
    for row, hit in enumerate(hits):
        axes = figure.add_subplot(len(hits), 1, row + 1)
        axes.imshow(strip(hit), interpolation="none")
        axes.set_title(f"{hit['rank']}.  {hit['video_id']}   score {hit['score']:.3f}   "
                       f"{hit['start_s']:.1f} to {hit['end_s']:.1f} s", loc="left", fontsize=9)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main(query: str, path: str, top: str = "3") -> None:
    done = subprocess.run(["hcmi", "search", query, "--top", top, "--json"], check=True, capture_output=True, text=True)
    draw(query, json.loads(done.stdout), Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
