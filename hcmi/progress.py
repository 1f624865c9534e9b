"""Progress on stderr with an estimate of the time left: a live bar on a terminal, a line from time to time in a log."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from hcmi.wording import noun

LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} left{postfix}"
LINE_SECONDS = 10.0


class _Lines(tqdm):
    """tqdm for a log: instead of a bar, a line at most every `LINE_SECONDS` and one at the end."""

    def __init__(self, *arguments: Any, unit: str, **options: Any):
        self._written_at, self._written_n = time.monotonic(), -1
        super().__init__(*arguments, unit=unit, **options)
        if not self.disable and self.total is not None and unit != "B":
            self.unit = noun(self.total, unit)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None and time.monotonic() - self._written_at >= LINE_SECONDS:
            self._write()
        return False

    def close(self) -> None:
        if not self.disable:
            if self._written_n != self.n:       # else the last line has been written already
                self._write()
            self.leave = False      # tqdm would write the end itself
        super().close()

    def _write(self) -> None:
        self._written_at, self._written_n = time.monotonic(), self.n
        self.fp.write(f"{self}\n")
        self.fp.flush()


def track(items: Iterable | None = None, description: str = "", total: int | None = None, unit: str = "item",
          shown: bool = True) -> Any:
    """`tqdm` with the same settings everywhere; without `items` it is driven by `.update(n)`."""
    common: dict[str, Any] = {"desc": description, "total": total, "unit": unit, "file": sys.stderr,
                              "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(items, mininterval=0.2, maxinterval=0.2, dynamic_ncols=True, **common)
    return _Lines(items, mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, bar_format=LINE, delay=1e-9, **common)


def note(line: str) -> None:
    """A line on stderr that does not disturb the bars."""
    tqdm.write(line, file=sys.stderr)
