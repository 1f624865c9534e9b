"""From verdicts to the lists of accepted batches. Every step may be repeated: a batch is accepted once.

`data/accepted.json` lists the training data, and the `dataset` stage depends on it. `data/searched.json`, beside it,
lists what belongs in the search index: a batch that is only made searchable makes no stage run again.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hcmi.dataset import Accepted, accept, file_contents, read_accepted
from hcmi.errors import DataError
from hcmi.files import write_json
from hcmi.incoming.batches import Ledger, arrivals, find_batches, is_query_log, look
from hcmi.incoming.verdicts import action

BY_HAND = "by hand"
SEARCHED = "searched.json"      # beside the list of accepted batches


def judged_batches(incoming: Path, ledger: Ledger) -> list[Accepted]:
    """The arrivals with videos that have been judged as they are now; `accepted` is the time of this call."""
    found = []
    for folder in arrivals(incoming):
        if is_query_log(folder):
            continue
        content = ledger.content(folder, look(folder))
        if content in ledger.verdicts:
            verdict = ledger.verdicts[content]["verdict"]
            found.append(Accepted(folder.name, content, verdict, _now()))
    return found


def searched_batches(path: str | Path) -> dict[str, str]:
    """Content -> name of the batches that belong in the search index; `path` is the list of accepted batches.

    Raises: DataError when the list beside it is broken.
    """
    beside = Path(path).with_name(SEARCHED)
    try:
        return dict(json.loads(beside.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{beside}: need a list of batches, got something else. Restore it from git.") from error


def accept_judged(incoming: Path, ledger: Ledger, path: str | Path) -> list[Accepted]:
    """Accept each batch whose verdict allows it (`ACTIONS`). Returns those that were not on the lists."""
    allowed = [entry for entry in judged_batches(incoming, ledger) if action(entry.verdict).train]
    return [entry for entry in allowed if _accept(path, incoming, ledger, entry, action(entry.verdict).search)]


def accept_named(incoming: Path, ledger: Ledger, path: str | Path, names: Collection[str],
                 check: Callable[[Path], object]) -> list[Accepted]:
    """Accept these batches whatever their verdict, to be searched too, or none of them.

    `check` raises for the folder of a batch that cannot be used: on the list, it would stop every later call.
    Raises: DataError when a batch is not there, and what `check` raises.
    """
    folders = {folder.name: folder for folder in find_batches(incoming)}
    found = []
    for name in names:
        if name not in folders:
            raise DataError(f"{incoming}: need a batch called {name!r}, got {', '.join(folders) or 'none'}. "
                            "Correct the name.")
        check(folders[name])
        content = ledger.content(folders[name], look(folders[name]))
        verdict = ledger.verdicts.get(content, {}).get("verdict", "not judged")
        found.append(Accepted(name, content, f"{verdict}, {BY_HAND}", _now()))
    return [entry for entry in found if _accept(path, incoming, ledger, entry, searched=True)]


def _accept(path: str | Path, incoming: Path, ledger: Ledger, entry: Accepted, searched: bool) -> bool:
    """Put a batch on the list of training data and, with `searched`, on the other. Returns whether one changed.

    A batch that has changed meanwhile is put on none: it is judged again. What is searched of a batch that has grown
    stays on the lists where the whole of it may not be searched.
    """
    known, folder = searched_batches(path), incoming / entry.batch
    wanted = searched and entry.content not in known
    if not wanted and entry.content in {old.content for old in read_accepted(path)}:
        return False
    entry = replace(entry, files=file_contents(folder))
    if ledger.content(folder, look(folder)) != entry.content:
        return False
    if wanted:
        write_json(Path(path).with_name(SEARCHED), known | {entry.content: entry.batch})
    return accept(path, entry, () if searched else known) or wanted


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
