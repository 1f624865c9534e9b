"""The curves of a training run as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hcmi.evaluate import save_figure, style_axes
from hcmi.files import atomic_file

COLOURS = {"train/loss": "#d9822b", "val/R@1": "#1b6ca8"}
BEST = "#2e8b57"


def draw_curves(history: Sequence[dict], best_epoch: int, path: str | Path) -> None:
    """Draw training loss and validation recall, epoch by epoch, and mark the epoch that is kept.

    `history`: one row of figures per epoch, with `epoch`, counted from 0.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in history]
    for axes, name in ((left, "train/loss"), (right, "val/R@1")):
        axes.plot(epochs, [row[name] for row in history], color=COLOURS[name], marker="o", markersize=4)
        axes.axvline(best_epoch + 1, color=BEST, linestyle=":", zorder=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = history[best_epoch]["val/R@1"]
    left.set(title="Loss on the training split", xlabel="epoch", ylabel="loss")
    right.set(title="Validation: is the right clip first?", xlabel="epoch", ylabel="R@1, %")
    right.plot(best_epoch + 1, best, "o", color=BEST, markersize=9, label=f"kept: epoch {best_epoch + 1}, {best:.1f} %")
    right.legend(loc="lower right", framealpha=1, edgecolor="white")
    style_axes(left)
    style_axes(right)
    with atomic_file(path) as temporary:
        save_figure(figure, temporary)
