"""Words as people write them, for messages, reports, pages and pictures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

IRREGULAR = {"batch": "batches", "history": "histories", "query": "queries"}


def plural(count: int, one: str, many: str = "") -> str:
    """`1 clip`, `2 clips`."""
    return f"{count:,} {noun(count, one, many)}"


def noun(count: int, one: str, many: str = "") -> str:
    """`clip` for 1, else `clips`."""
    return one if count == 1 else many or IRREGULAR.get(one, f"{one}s")


def shortened(text: str, length: int) -> str:
    """The text on one line, or its first characters with an ellipsis: `length` in all."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length - 1]}…"


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
        warnings.warn(f"{name}: boxes stand for {plural(len(boxes), 'different letter')}, because the font of pictures "
                      "lacks them.", stacklevel=4)
