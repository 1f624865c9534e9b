"""Progress on stderr with an estimate of the time left: a live bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def track(items: Iterable | None = None, description: str = "", total: int | None = None, unit: str = "it") -> Any:
    """`tqdm` set up alike everywhere; without `items` it is driven by `.update(n)`."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(items, desc=description, total=total, unit=unit, file=sys.stderr, mininterval=interval,
                maxinterval=interval, dynamic_ncols=sys.stderr.isatty(), leave=True)
