"""Draw what `hcmi search` answers, for the README:

    python docs/picture.py "a query" docs/images/search.png

Needs a finished pipeline; takes some seconds. Frames outside the moment that was found are pale.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hcmi import Retriever
from hcmi.data.frames import decode_clip
from hcmi.picture import INK, MOMENT, SOFT
from hcmi.types import Hit

FRAMES, PIXELS = 10, 96
WIDTH, MARGIN, TITLE, HEADER, TIMES = 9.0, 0.15, 0.55, 0.30, 0.30     # inches
GAP = 0.04      # between frames, of a frame's width


def draw(query: str, hits: list[Hit], path: Path) -> None:
    """Write the picture as PNG, with nothing in it that changes from run to run."""
    frame = (WIDTH - 2 * MARGIN) / FRAMES
    height = TITLE + len(hits) * (HEADER + frame + TIMES) + MARGIN
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    figure.text(MARGIN / WIDTH, 1 - 0.32 / height, f'hcmi search "{query}"', family="monospace", fontsize=10.5,
                color=INK, weight="bold", va="center")
    top = height - TITLE
    for hit in hits:
        middle = (top - HEADER / 2) / height
        figure.text(MARGIN / WIDTH, middle, f"{hit.rank}", fontsize=11, color=INK, weight="bold", va="center")
        figure.text((MARGIN + 0.25) / WIDTH, middle, f"{Path(hit.path).name}    score {hit.score:.2f}", fontsize=9.5,
                    color=SOFT, va="center")
        figure.text(1 - MARGIN / WIDTH, middle, f"{hit.start_s:.1f} – {hit.end_s:.1f} s", fontsize=9.5, color=MOMENT,
                    weight="bold", va="center", ha="right")
        top -= HEADER + frame
        _strip(figure.add_axes((MARGIN / WIDTH, top / height, 1 - 2 * MARGIN / WIDTH, frame / height)), hit)
        top -= TIMES
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _strip(axes: Axes, hit: Hit) -> None:
    """Frames of the whole video side by side, each with its time; a frame around those of the moment."""
    clip = decode_clip(hit.path, FRAMES, PIXELS)
    times_T = np.array(clip.times_s)
    inside_T = (times_T >= hit.start_s) & (times_T <= hit.end_s)
    axes.set(xlim=(-0.5, FRAMES - 0.5), ylim=(0, 1))
    axes.set_axis_off()
    for at, (pixels_HXC, time_s) in enumerate(zip(clip.frames_THWC, times_T, strict=True)):
        axes.imshow(pixels_HXC, extent=(at - 0.5 + GAP / 2, at + 0.5 - GAP / 2, GAP / 2, 1 - GAP / 2), aspect="auto",
                    alpha=1.0 if inside_T[at] else 0.35)
        axes.text(at, -0.05, f"{time_s:.1f} s", fontsize=8, va="top", ha="center",
                  color=MOMENT if inside_T[at] else SOFT)
    first, last = np.flatnonzero(inside_T)[[0, -1]] if inside_T.any() else (0, -1)
    axes.add_patch(Rectangle((first - 0.5, 0), last - first + 1, 1, fill=False, edgecolor=MOMENT, linewidth=2.2,
                             clip_on=False, zorder=5))


def main(query: str, path: str, top: str = "3") -> None:
    draw(query, Retriever().search(query, top=int(top)), Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
