"""The curves of a training run as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hcmi.evaluate import save_figure, style_axes
from hcmi.files import atomic_file

COLOURS = ("#1b6ca8", "#d9822b", "#7a5195", "#5c8a3a", "#b3475b", "#6b6b6b", "#1d9a9a")
BEST = "#2e8b57"
LEVELS = ("frame_word", "clip_phrase", "video_sentence")


@dataclass(frozen=True)
class _Panel:
    """Figures of the history that are drawn together; those that a run does not have are left out."""

    title: str
    axis: str
    names: Sequence[str]
    labels: Sequence[str]
    logarithmic: bool = False


RECALLS = ("R@1", "R@5", "R@10")
TERMS = (*LEVELS, "multi_grained", "sum", "balance", "margin")
PANELS = (
    _Panel("Loss on the training split, by its terms", "loss",
           [f"train/loss_{name}" for name in TERMS], TERMS),
    _Panel("Validation, text to video", "%", [f"val/{name}" for name in RECALLS], RECALLS),
    _Panel("Validation, video to text", "%", [f"val/v2t_{name}" for name in RECALLS], RECALLS),
    _Panel("Logit scales", "scale", [f"train/logit_scale_{name}" for name in (*LEVELS, "multi_grained")],
           [*LEVELS, "multi_grained"]),
    _Panel("Norm of the gradient, before clipping", "norm", ["train/gradient_norm"], ["mean over steps"]),
    _Panel("Learning rates", "rate", ["train/lr", "train/backbone_lr"], ["new layers", "towers"], logarithmic=True),
)


def draw_curves(history: Sequence[dict], best_epoch: int, path: str | Path) -> None:
    """Draw what training did, epoch by epoch, and mark the epoch that is kept.

    `history`: one row of figures per epoch, with `epoch`, counted from 0. Times are not drawn: they differ between
    equal runs, whose pictures are equal.
    """
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    best = history[best_epoch]["val/R@1"]
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        _draw(axes, panel, history)
        axes.axvline(best_epoch + 1, color=BEST, linestyle=":", zorder=0)
        if "val/R@1" in panel.names:
            axes.plot(best_epoch + 1, best, "o", color=BEST, markersize=9,
                      label=f"kept: epoch {best_epoch + 1}, {best:.1f} %")
        if axes.has_data() and axes.get_legend_handles_labels()[0]:
            axes.legend(framealpha=1, edgecolor="white", fontsize="small")
    with atomic_file(path) as temporary:
        save_figure(figure, temporary)


def _draw(axes: Axes, panel: _Panel, history: Sequence[dict]) -> None:
    epochs = [row["epoch"] + 1 for row in history]
    for name, label, colour in zip(panel.names, panel.labels, COLOURS[:len(panel.names)], strict=True):
        values = [row.get(name, nan) for row in history]
        if any(value == value and (value > 0 or not panel.logarithmic) for value in values):
            style = "--" if panel.logarithmic and label != panel.labels[0] else "-"      # both rates may be equal
            axes.plot(epochs, values, style, color=colour, marker="o", markersize=4, label=label)
    if panel.logarithmic and axes.has_data():
        axes.set_yscale("log")
    if panel.axis == "%":
        axes.set_ylim(0, 103)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=panel.title, xlabel="epoch", ylabel=panel.axis)
    style_axes(axes)
