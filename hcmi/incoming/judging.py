"""Which batches are judged, and which verdicts are kept: one rule for `hcmi add` and the flows."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hcmi.files import is_locked, lock
from hcmi.incoming.batches import Ledger, complete, look
from hcmi.incoming.verdicts import Verdict

PATIENCE_S = 1800.0     # a batch that still changes after this long is left to the next run


@contextmanager
def judging_alone(reports: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Held by all that judge: two runs at once would judge a batch twice. The second one says that it waits."""
    if is_locked(reports / ".lock"):
        say("another run judges batches; waiting for its end")
    with lock(reports / ".lock"):
        yield


def judge_new(batches: Iterable[Path], ledger: Ledger, report: Callable[[str], Verdict], quiet_s: float,
              again: bool = False) -> tuple[dict[str, Verdict], list[str]]:
    """Judge each complete batch whose content has no verdict; with `again`, each complete batch.

    `report`: name of a batch -> its verdict. A verdict is recorded if it is final and the batch did not change while it
    was judged; otherwise the next call judges the batch again.
    Returns: batch -> verdict; and the batches that are still being copied.
    """
    waiting, verdicts = list(batches), dict[str, Verdict]()
    for folder, seen in complete(waiting, quiet_s, PATIENCE_S):
        waiting.remove(folder)
        content = ledger.content(folder, seen)
        if content in ledger.verdicts and not again:
            continue
        verdict = verdicts[folder.name] = report(folder.name)
        if verdict.final and ledger.content(folder, look(folder)) == content:
            ledger.record(content, folder.name, verdict.word)
    return verdicts, [folder.name for folder in waiting]
