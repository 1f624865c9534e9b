"""Whether a challenger may replace the champion, from paired differences of R@1. Pure."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """R@1 of text to video in per cent of champion and challenger on the same queries, and their difference.

    `low`, `high`: the 95 % interval of challenger minus champion.
    """

    where: str
    champion: float
    challenger: float
    low: float
    high: float
    queries: int

    @property
    def better(self) -> bool:
        return self.low > 0

    @property
    def worse(self) -> bool:
        return self.high < 0

    def __str__(self) -> str:
        return (f"{self.where}: R@1 {self.challenger:.1f} instead of {self.champion:.1f}, difference "
                f"{self.challenger - self.champion:+.1f} [{self.low:+.1f}, {self.high:+.1f}], {self.queries} queries")

    def to_record(self) -> dict[str, Any]:
        return vars(self) | {"difference": self.challenger - self.champion}


def decide(test: Difference, batches: Difference | None, margin: float, must_be_better: bool = True
           ) -> tuple[bool, str]:
    """Whether to promote, and why, in one line.

    On the test set a loss of more than `margin` points must be ruled out: the interval's lower end is above it. On the
    newest batches, which have fewer queries, the challenger must not be shown to be worse. With `must_be_better` it
    must be shown to be better on one of the two; otherwise many small losses could add up over many promotions. [ours]
    """
    points = "1 point" if margin == 1 else f"{margin:g} points"
    if test.low < -margin:
        return False, f"{test}. A loss of more than {points} cannot be ruled out."
    if batches is not None and batches.worse:
        return False, f"{batches}. It is worse there."
    found = [test] if batches is None else [test, batches]
    figures = "; ".join(map(str, found))
    # the margin lets a small loss pass, also one that is shown
    loss = f"worse on the {test.where} by less than the margin of {points}" if test.worse else "not worse"
    better = [one.where for one in found if one.better]
    if better:
        return True, f"{figures}. Better on the {' and the '.join(better)}, and {loss}."
    if must_be_better:
        said = loss.capitalize() if test.worse else "Not shown to be better"
        return False, f"{figures}. {said}. `hcmi promote --not-worse` promotes it all the same."
    return True, f"{figures}. {loss.capitalize()}."
