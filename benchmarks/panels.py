"""Plots of the training benchmarks. They are not in `runs.py`, because its processes need no matplotlib."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def panels(titles: Sequence[str], xlabel: str, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A row of small plots of the same style, one for each title."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    row = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(xlabel, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, row
