"""Draw an explanation: the frames of the video at the top, the words at the side, and a frame around the moment."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle

from hcmi.errors import shown
from hcmi.files import atomic_file
from hcmi.search.explain import Explanation
from hcmi.search.times import span_text, time_text
from hcmi.video import DecodeJob, run_one
from hcmi.wording import missing_letters_noted, shortened

INK, SOFT, MOMENT = "#22303c", "#8795a1", "#d9822b"
HEAT = LinearSegmentedColormap.from_list("heat", ["#f7fafc", "#cfe3f1", "#7fb2d9", "#1b6ca8", "#0b3558"])
COLUMNS = 0.12, 0.66, 1.32      # inches to the right of the heat map: cosine, weight, share
RIGHT = 1.85                    # inches of the margin that holds them
LABEL = 20                      # characters of a word that fit the left margin
LEAST_COSINE = 0.2              # the scales of relevance and of the levels reach at least this far
FRAME_PIXELS = 160
TIMEOUT_S = 20.0


def draw_explanation(explanation: Explanation, path: str | Path, frames_THXC: np.ndarray | None = None) -> None:
    """Write the picture to `path` (.png, .svg or .pdf). `frames_THXC`: default read from the video.

    Raises: DecodeError when the video is missing or cannot be decoded.
    """
    frames_THXC = read_frames(explanation) if frames_THXC is None else frames_THXC
    num_frames, num_words = len(explanation.times_s), max(len(explanation.words), 1)
    column = max(0.92, 9.0 / num_frames)
    left, width, strip = 1.75, 1.75 + RIGHT + column * num_frames, min(column, 1.5)
    heat, curve, foot = 0.3 * num_words, 0.75, 0.62 + 0.26 * (len(explanation.phrases[:4]) + 1)
    height = 0.95 + strip + heat + curve + foot + 0.5
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    grid = GridSpec(4, 1, figure=figure, height_ratios=[strip, heat, curve, foot], hspace=0.0, left=left / width,
                    right=1 - RIGHT / width, top=1 - 0.95 / height, bottom=0.15 / height)
    axes = [figure.add_subplot(grid[row]) for row in range(4)]
    _title(figure, explanation, left / width, width, height)
    chosen_T = (explanation.times_s >= explanation.hit.start_s) & (explanation.times_s <= explanation.hit.end_s)
    _frames(axes[0], frames_THXC, chosen_T)
    _heat(axes[1], explanation)
    _curve(axes[2], explanation, chosen_T)
    _levels(axes[3], explanation)
    with atomic_file(path) as temporary, missing_letters_noted(Path(path).name):
        figure.savefig(temporary, format=Path(path).suffix[1:].lower(), bbox_inches="tight", pad_inches=0.2)


def read_frames(explanation: Explanation) -> np.ndarray:
    """uint8 [T, H, X, 3]: the frames nearest to the explanation's times, cropped as for the model but larger.

    Raises: DecodeError when the video is missing or cannot be decoded.
    """
    hit, times_T = explanation.hit, explanation.times_s
    half = float(np.diff(times_T).mean()) / 2 if len(times_T) > 1 else 0.5
    job = DecodeJob(None, hit.path, 4 * len(times_T), FRAME_PIXELS, max(float(times_T[0]) - half, 0.0),
                    float(times_T[-1]) + half)
    decoded = run_one(job, TIMEOUT_S)
    nearest_T = np.abs(np.array(decoded.times_s)[:, None] - times_T).argmin(0)
    return decoded.frames[nearest_T]


def _title(figure: Figure, explanation: Explanation, left: float, width: float, height: float) -> None:
    hit = explanation.hit
    figure.text(left, 1 - 0.38 / height, f"“{shortened(explanation.query, 90)}”", fontsize=15, color=INK, weight="bold",
                va="center", parse_math=False)       # matplotlib would read what is between two dollars as mathematics
    below = 1 - 0.70 / height
    figure.text(left, below, f"{shown(Path(hit.path).name)}    rank {hit.rank}    score {hit.score:.3f}", fontsize=9.5,
                color=SOFT, va="center", parse_math=False)
    figure.text(1 - RIGHT / width, below, f"best moment  {span_text(hit.start_s, hit.end_s)}", fontsize=9.5,
                color=MOMENT, weight="bold", va="center", ha="right")


def _frames(axes: Axes, frames_THXC: np.ndarray, chosen_T: np.ndarray) -> None:
    """Thumbnails above the columns of the heat map; those of the moment are in full colour and have a border."""
    num_frames = len(frames_THXC)
    axes.set_xlim(-0.5, num_frames - 0.5)
    axes.set_ylim(0, 1)
    for at, frame in enumerate(frames_THXC):
        axes.imshow(frame, extent=(at - 0.47, at + 0.47, 0.03, 0.97), aspect="auto",
                    alpha=1.0 if chosen_T[at] else 0.45)
    for first, last in _runs(chosen_T):
        axes.add_patch(Rectangle((first - 0.49, 0.015), last - first + 0.98, 0.97, fill=False, edgecolor=MOMENT,
                                 linewidth=2.4, clip_on=False, zorder=5))
    axes.axis("off")


def _heat(axes: Axes, explanation: Explanation) -> None:
    """Cosine of each word and frame; the best frame of a word has a border. Right: what it adds to the score.

    Words with a larger weight are darker. The colours always stand for 0 to 1, so that noise stays pale.
    """
    matrix_WT = explanation.frame_word_TW.T
    if not matrix_WT.size:
        axes.axis("off")
        return
    image = axes.imshow(matrix_WT, aspect="auto", cmap=HEAT, interpolation="nearest", vmin=0.0, vmax=1.0)
    for word, frame in enumerate(explanation.word_frames_W):
        edge = "white" if float(np.asarray(image.norm(matrix_WT[word, frame]))) > 0.7 else INK
        axes.add_patch(Rectangle((frame - 0.47, word - 0.42), 0.94, 0.84, fill=False, edgecolor=edge,
                                 linewidth=1.6, zorder=4))
    columns = [explanation.word_cosines_W, explanation.word_weights_W]
    if len(explanation.word_shares_W):
        columns.append(explanation.word_shares_W)
    _columns(axes, -0.85, *("cosine", "× weight", "share")[:len(columns)], color=SOFT)
    for word, amounts in enumerate(zip(*columns, strict=True)):
        _columns(axes, word, *(f"{amount:.2f}" for amount in amounts))
    if abs(explanation.marks_share) >= 0.005:
        _columns(axes, len(explanation.words), "start and end", "", f"{explanation.marks_share:.2f}", color=SOFT)
    axes.set_xticks([])
    words = ["the query"] if explanation.words == (explanation.query,) else explanation.words     # it is the title
    labels = [shortened(word, LABEL) for word in words]
    axes.set_yticks(range(len(labels)), labels, fontsize=10.5)
    most = max(float(explanation.word_weights_W.max()), 1e-9)
    for label, weight in zip(axes.get_yticklabels(), explanation.word_weights_W, strict=True):
        label.set_parse_math(False)
        label.set_color(HEAT(0.6 + 0.4 * weight / most))     # lighter words were hard to read
        label.set_fontweight("bold" if weight > 0.5 * most else "normal")
    axes.tick_params(length=0, pad=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(len(explanation.times_s) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(explanation.words) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)


def _columns(axes: Axes, y: float, *texts: str, color: str = INK) -> None:
    """Texts in the columns to the right of the axes, at the height `y`; the third is bold."""
    for inches, text in zip(COLUMNS, texts, strict=False):
        axes.annotate(text, (1, y), xycoords=("axes fraction", "data"), xytext=(72 * inches, 0), va="center",
                      textcoords="offset points", annotation_clip=False, fontsize=9, color=color,
                      weight="bold" if inches == COLUMNS[2] and color == INK else "normal")


def _curve(axes: Axes, explanation: Explanation, chosen_T: np.ndarray) -> None:
    """Relevance of each frame to the whole query, as bars from zero on a scale that noise does not fill."""
    places, relevance_T = np.arange(len(explanation.times_s)), explanation.relevance_T
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(1.1 * min(-LEAST_COSINE / 2, float(relevance_T.min())),
                  1.1 * max(LEAST_COSINE, float(relevance_T.max())))
    for first, last in _runs(chosen_T):
        axes.axvspan(first - 0.5, last + 0.5, color=MOMENT, alpha=0.13, linewidth=0)
    axes.bar(places, relevance_T, width=0.6, color=INK)
    axes.axhline(0.0, color=SOFT, linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylabel("the query" + ", against\nother videos" * explanation.baseline, rotation=0, ha="right", va="center",
                    fontsize=9, color=SOFT, labelpad=8)
    axes.set_xticks(places, list(map(time_text, explanation.times_s)), fontsize=8.5, color=SOFT)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _levels(axes: Axes, explanation: Explanation) -> None:
    """Left: the score of each level as a bar. Right: which clip matches which phrase."""
    axes.axis("off")
    bars = axes.inset_axes((0.0, 0.0, 0.42, 0.72))
    names = list(explanation.hit.levels)
    values = [explanation.hit.levels[name] for name in names]
    bars.barh(range(len(names)), values, height=0.55, color=HEAT(0.75))
    bars.set_yticks(range(len(names)), [name.replace("_", " – ") for name in names], fontsize=9, color=INK)
    bars.set_ylim(max(len(names), 3) - 0.5, -0.5)
    bars.set_xlim(min(0.0, *values) * 1.25, max(LEAST_COSINE, *values) * 1.25)
    bars.vlines(0.0, -0.5, len(names) - 0.5, color=SOFT, linewidth=0.8)
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        weight = explanation.level_weights[name]
        times = "" if weight == 1 else f"  × {weight:g}"
        bars.annotate(f"{value:.2f}{times}", (max(value, 0), row), xytext=(5, 0), textcoords="offset points",
                      va="center", fontsize=9, color=INK)
    bars.set_xticks([])
    bars.tick_params(length=0)
    for spine in bars.spines.values():
        spine.set_visible(False)
    matches = explanation.phrases[:4]
    if matches:
        axes.text(0.53, 0.72, "phrases, and the clip that answers each", fontsize=9, color=SOFT, va="bottom")
    for row, match in enumerate(matches):
        y = 0.60 - 0.72 * row / 4
        axes.text(0.53, y, " … ".join(match.words), fontsize=9.5, color=INK, va="center", parse_math=False)
        axes.text(0.80, y, f"clip {match.clip + 1}, at {time_text(match.time_s)}", fontsize=9.5, color=INK, va="center")
        _columns(axes, y, f"{match.cosine:.2f}", f"{match.weight:.2f}", f"{match.share:.2f}")


def _runs(chosen_T: np.ndarray) -> list[tuple[int, int]]:
    """First and last position of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen_T.astype(int), [0]])))
    return [(int(first), int(last) - 1) for first, last in zip(edges[::2], edges[1::2], strict=True)]
