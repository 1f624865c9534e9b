"""The style that all plots share, and how they are saved."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def style_axes(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG, without the name of the library in it, so that equal figures are equal bytes."""
    with missing_letters_noted(path.name):
        figure.savefig(path, dpi=110, format="png", metadata={"Software": None})


@contextmanager
def missing_letters_noted(name: str) -> Iterator[None]:
    """Warn once of letters that the font does not have and the picture `name` shows as boxes, and not once a letter."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    boxes = {str(one.message) for one in found if "missing from font" in str(one.message)}
    for one in found:
        if str(one.message) not in boxes:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if boxes:
        warnings.warn(f"{name}: {len(boxes)} different letters are drawn as boxes, because the font of pictures does "
                      f"not have them.", stacklevel=4)
