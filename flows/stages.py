"""What DVC says about the pipeline: its stages in order, which are stale, whether one runs, and one reproduced alone.

No Prefect here, so that the child process that reproduces a stage does not pay for importing it.
"""

import fcntl
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro

LOCK = Path(".hcmi/pipeline.lock")      # held by a run of the whole pipeline, between its stages too


@dataclass(frozen=True)
class Step:
    """One stage of dvc.yaml (or one tracked data file): its name, what it comes after, whether it wants a GPU."""

    name: str
    after: tuple[str, ...]
    gpu: bool


def plan() -> list[Step]:
    """The stages in the order in which `dvc repro` runs them; read from dvc.yaml each time."""
    with Repo() as repo:
        graph = get_active_graph(repo.index.graph)
        return [Step(stage.addressing, tuple(sorted(before.addressing for before in graph.successors(stage))),
                     bool((stage.meta or {}).get("gpu"))) for stage in plan_repro(graph)]


def is_stale(stage: str) -> bool:
    """Whether `dvc repro` would run this stage now."""
    with Repo() as repo:
        return bool(repo.status(targets=[stage]))


def changed_outs(*stages: str) -> list[str]:
    """The outputs of these stages that are not, byte for byte, what dvc.lock pins (or that it does not pin at all)."""
    with Repo() as repo:
        return sorted(str(out) for name in stages for stage in repo.stage.collect(name) for out in stage.outs
                      if out.hash_info.value is None or out.status())


def pins(*stages: str) -> dict[str, str | None]:
    """Output of these stages -> the hash that dvc.lock pins."""
    with Repo() as repo:
        return {str(out): out.hash_info.value for name in stages for stage in repo.stage.collect(name)
                for out in stage.outs}


def mixed_outs(*stages: str) -> list[str]:
    """Outputs of these stages that dvc.lock says were made from other outputs than it pins now.

    Each is what the lock pins, and yet they do not belong together: a run that was stopped between two stages.
    """
    with Repo() as repo:
        pinned = {out.fs_path: out.hash_info.value for stage in repo.index.stages for out in stage.outs}
        return sorted(str(out) for name in stages for stage in repo.stage.collect(name)
                      if any(pinned.get(dep.fs_path, dep.hash_info.value) != dep.hash_info.value for dep in stage.deps)
                      for out in stage.outs)


@contextmanager
def running(say: Callable[[str], object]) -> Iterator[None]:
    """Hold the pipeline for a run of all its stages; wait where another has it. Free again however the process ends."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with open(LOCK, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run of the pipeline is under way; waiting until it is done")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_running() -> bool:
    """Whether a run of the pipeline is under way, or DVC writes an output of a stage at somebody's command."""
    if LOCK.exists():
        with open(LOCK, encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    with Repo() as repo:
        path = Path(repo.tmp_dir or "", "rwlock")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):       # none, or being written at this moment
            return False
        return any(_holds(entry["pid"], path) for entry in entries.get("write", {}).values())


def free_dead_locks() -> None:
    """Empty DVC's list of who reads and writes what where none of its processes is alive.

    DVC forgets a dead process by itself, unless its number has gone to another one since (after a restart of the
    machine they begin anew) or it was killed while it wrote the list: then every later run is refused.
    """
    with Repo() as repo:
        if not repo.tmp_dir:
            return
        path = Path(repo.tmp_dir, "rwlock")
        with make_lock(str(path.with_name("rwlock.lock")), tmp_dir=repo.tmp_dir):
            try:
                entries = json.loads(path.read_text(encoding="utf-8"))
                readers = [entry for infos in entries.get("read", {}).values() for entry in infos]
                alive = any(_holds(entry["pid"], path) for entry in [*entries.get("write", {}).values(), *readers])
            except FileNotFoundError:
                return
            except (ValueError, TypeError, KeyError, AttributeError):
                alive = False
            if not alive:
                path.unlink()


def _holds(pid: int, path: Path) -> bool:
    """Whether the process that put this number into the file is still alive: one that began later is another."""
    try:
        return psutil.Process(pid).create_time() < path.stat().st_mtime
    except (psutil.Error, OSError):
        return False


def reproduce(stage: str) -> None:
    """Run this stage alone, restoring it from DVC's run cache where that can be done, and record it in dvc.lock.

    Ends the process with one line on stderr and exit code 1 where the stage fails: `python -m flows.stages STAGE`
    runs in a child (`flows.child`), and the stage's own command has printed why.
    """
    try:
        free_dead_locks()
        with Repo() as repo:
            repo.reproduce(stage, single_item=True)
    except DvcException as error:
        sys.exit(f"{error}: {error.__cause__}" if error.__cause__ else str(error))


if __name__ == "__main__":
    reproduce(sys.argv[1])
