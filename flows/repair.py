"""What DVC leaves behind when it is killed while it writes a file of its own, and what later runs do about it.

This module does not import Prefect: see flows/stages.py.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.repo import Repo

from hcmi.files import atomic_file

DVC_LOCK, KEPT = Path("dvc.lock"), Path(".hcmi/dvc.lock")
BROKEN = ".broken"


@contextmanager
def keeping_lock() -> Iterator[None]:
    """Keep a copy of dvc.lock while a stage runs, and after one that failed; an empty copy where there is none yet."""
    restore_lock()
    text = DVC_LOCK.read_bytes() if DVC_LOCK.exists() else b""
    with atomic_file(KEPT) as temporary:
        temporary.write_bytes(text)
    yield
    KEPT.unlink(missing_ok=True)


def restore_lock() -> bool:
    """Put the copy back if there is one and dvc.lock was cut short. Returns whether it was.

    DVC writes the file in place, so one that was killed meanwhile leaves an empty or half a file, which it refuses
    ever after. A stage that is missing in the copy runs again, or comes from DVC's run cache.
    """
    if not KEPT.exists() or _is_whole():
        return False
    if text := KEPT.read_bytes():
        with atomic_file(DVC_LOCK) as temporary:
            temporary.write_bytes(text)
    else:
        DVC_LOCK.unlink()
    return True


def _is_whole() -> bool:
    """Whether DVC takes its dvc.lock, or there is none."""
    with Repo() as repo:
        try:
            Lockfile(repo, str(DVC_LOCK)).load()
            return True
        except (DvcException, NotImplementedError):      # the latter is what its YAML says of a version cut short
            return False


def set_aside_broken(files: Iterable[Path]) -> list[Path]:
    """Rename the .dvc files among these that DVC does not take, so that they end in `BROKEN`. Returns their old names.

    DVC writes them in place too, and with one that was cut short it refuses every command, also for other data.
    """
    with Repo() as repo:
        broken = [file for file in files if file.exists() and not _is_taken(repo, file)]
    for file in broken:
        file.replace(f"{file}{BROKEN}")
    return broken


def _is_taken(repo: Repo, file: Path) -> bool:
    try:
        return bool(repo.stage.collect(str(file))[0].outs)
    except (DvcException, LookupError):     # the latter where the text is YAML all the same, but without a part
        return False


def free_dead_locks() -> None:
    """Delete DVC's list of readers and writers when none of the listed processes is alive.

    DVC removes a dead process from the list itself, with two exceptions: another process has the same number now (after
    a restart of the machine), or DVC was killed while it wrote the list. In both cases DVC refuses every later command.
    """
    with Repo() as repo:
        if not repo.tmp_dir:
            return
        path = Path(repo.tmp_dir, "rwlock")
        with make_lock(str(path.with_name("rwlock.lock")), tmp_dir=repo.tmp_dir):
            try:
                entries = json.loads(path.read_text(encoding="utf-8"))
                readers = [entry for infos in entries.get("read", {}).values() for entry in infos]
                alive = any(holds(entry, path) for entry in [*entries.get("write", {}).values(), *readers])
            except FileNotFoundError:
                return
            except (ValueError, TypeError, KeyError, AttributeError):
                alive = False
            if not alive:
                path.unlink()


def holds(entry: dict[str, Any], path: Path) -> bool:
    """Whether the process that wrote this entry into the file is alive.

    Another process may have its number now: one that started later. A clock that was set in between makes the times
    useless, so a process with the command of the entry counts too.
    """
    try:
        process = psutil.Process(entry["pid"])
        same = bool(entry.get("cmd")) and entry["cmd"] in " ".join(process.cmdline())
        return same or process.create_time() < path.stat().st_mtime
    except (psutil.Error, OSError):
        return False
