"""Progress on stderr with an estimate of the time left: a live bar on a terminal, now and then a line in a log."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} left{postfix}"
LINE_SECONDS = 10.0


class _Lines(tqdm):
    """tqdm for a log: a line at most every `LINE_SECONDS`, and one at the end, instead of a bar drawn over the last."""

    def __init__(self, *arguments: Any, **options: Any):
        self._told = time.monotonic()
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return False

    def close(self) -> None:
        if not self.disable:
            self._told -= LINE_SECONDS
            self.display()
            self.leave = False      # else tqdm tells the end once more
        super().close()


def track(items: Iterable | None = None, description: str = "", total: int | None = None, unit: str = "it") -> Any:
    """`tqdm` set up alike everywhere; without `items` it is driven by `.update(n)`."""
    common = {"desc": description, "total": total, "unit": unit, "file": sys.stderr}
    if sys.stderr.isatty():
        return tqdm(items, mininterval=0.2, maxinterval=0.2, dynamic_ncols=True, **common)
    return _Lines(items, mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, bar_format=LINE, delay=1e-9, **common)
