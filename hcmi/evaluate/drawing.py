"""The style that all plots share, and how they are saved."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hcmi.wording import missing_letters_noted


def style_axes(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG, without the name of the library in it, so that equal figures are equal bytes."""
    with missing_letters_noted(path.name):
        figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
