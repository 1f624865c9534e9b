"""From verdicts to the list of accepted batches. Every step may be repeated: a batch is accepted once."""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from hcmi.dataset import Accepted, accept
from hcmi.errors import DataError
from hcmi.incoming.batches import Ledger, find_batches, look
from hcmi.incoming.verdicts import action
from hcmi.scenes import BATCHES

BY_HAND = "by hand"


def judged_batches(incoming: Path, ledger: Ledger) -> list[Accepted]:
    """The batches that are there and have been judged as they are now; `accepted` is the time of this call.

    Those that the pipeline makes itself, to show a report, are left out: nobody has to act on them.
    """
    found = []
    for folder in find_batches(incoming):
        if folder.name in BATCHES:
            continue
        content = ledger.content(folder, look(folder))
        if content in ledger.verdicts:
            verdict = ledger.verdicts[content]["verdict"]
            found.append(Accepted(folder.name, content, verdict, action(verdict).search, _now()))
    return found


def accept_judged(incoming: Path, ledger: Ledger, path: str | Path) -> list[Accepted]:
    """Accept each batch whose verdict allows it (`ACTIONS`). Returns those that were not on the list."""
    return [entry for entry in judged_batches(incoming, ledger)
            if action(entry.verdict).train and accept(path, entry)]


def accept_named(incoming: Path, ledger: Ledger, path: str | Path, names: Collection[str]) -> list[Accepted]:
    """Accept these batches whatever their verdict, to be searched too. Raises: DataError when one is not there."""
    folders = {folder.name: folder for folder in find_batches(incoming)}
    found = []
    for name in names:
        if name not in folders:
            raise DataError(f"{incoming}: need a batch called {name!r}, got {', '.join(folders) or 'none'}. "
                            "Correct the name.")
        content = ledger.content(folders[name], look(folders[name]))
        verdict = ledger.verdicts.get(content, {}).get("verdict", "not judged")
        found.append(Accepted(name, content, f"{verdict}, {BY_HAND}", True, _now()))
    return [entry for entry in found if accept(path, entry)]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
