"""DVC's view of the pipeline: the stages in order, which are stale, whether one is running; and running one of them.

This module does not import Prefect, because the child process that runs a stage would have to load it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro

from flows.repair import free_dead_locks, holds, keeping_lock, restore_lock
from hcmi.files import is_locked, lock

LOOK_SECONDS = 5
LOCK = Path(".hcmi/pipeline.lock")      # held during a run of the whole pipeline, also between two stages


@dataclass(frozen=True)
class Step:
    """One stage of dvc.yaml (or one tracked data file): its name, the stages it depends on, whether it uses a GPU."""

    name: str
    after: tuple[str, ...]
    gpu: bool


def open_repo() -> Repo:
    """The project as DVC sees it. Another DVC process that holds its lock, such as a `dvc push`, is waited for: without
    that DVC gives up after 3 seconds, also when it is to record what a stage has made.
    """
    return Repo(_wait_for_lock=True)


def plan() -> list[Step]:
    """The stages in the order in which `dvc repro` runs them; read from dvc.yaml each time."""
    with open_repo() as repo:
        graph = get_active_graph(repo.index.graph)
        return [Step(stage.addressing, tuple(sorted(before.addressing for before in graph.successors(stage))),
                     bool((stage.meta or {}).get("gpu"))) for stage in plan_repro(graph)]


def is_stale(stage: str) -> bool:
    """Whether `dvc repro` would run this stage now."""
    try:
        return _is_stale(stage)
    except (DvcException, NotImplementedError):     # DVC reads its list and dvc.lock to answer
        free_dead_locks()
        restore_lock()
        return _is_stale(stage)


def _is_stale(stage: str) -> bool:
    with open_repo() as repo:
        return bool(repo.status(targets=[stage]))


def changed_outs(*stages: str) -> list[str]:
    """The outputs of these stages whose bytes differ from what dvc.lock pins, or that dvc.lock does not pin."""
    with open_repo() as repo:
        return sorted(str(out) for name in stages for stage in repo.stage.collect(name) for out in stage.outs
                      if out.hash_info.value is None or out.status())


def remote() -> str | None:
    """The name of the default remote; None where there is none."""
    with open_repo() as repo:
        return repo.config["core"].get("remote")


def outs_of_stages() -> set[str]:
    """Every path that a stage of dvc.yaml makes, relative to the project's folder. No .dvc file is read for it."""
    with open_repo() as repo:
        return {str(out) for stage in repo.stage.collect("dvc.yaml") for out in stage.outs}


def how_kept(folders: Iterable[Path]) -> dict[Path, str]:
    """How DVC keeps each of these folders: as it is (`same`), as it was (`changed`), or not at all (`new`).

    `behind`: DVC keeps more files than the folder has, or what another machine made of it. So a `dvc pull` was stopped
    or not run, and DVC would forget something if it were given the folder.
    """
    with open_repo() as repo:
        return {folder: _how_kept(repo, folder) for folder in folders}


def _how_kept(repo: Repo, folder: Path) -> str:
    if not Path(f"{folder}.dvc").exists():
        return "new"
    out = repo.stage.collect(f"{folder}.dvc")[0].outs[0]
    try:
        if not out.workspace_status():
            return "same"
    except (DvcException, OSError):     # a file that cannot be read: `dvc add` says which
        return "changed"
    num_files = sum(len(names) for *_, names in os.walk(folder))
    return "behind" if num_files < (out.meta.nfiles or 0) or out.changed_cache() else "changed"


def pins(*stages: str) -> dict[str, str | None]:
    """Output of these stages -> the hash that dvc.lock pins."""
    with open_repo() as repo:
        return {str(out): out.hash_info.value for name in stages for stage in repo.stage.collect(name)
                for out in stage.outs}


def mixed_outs(*stages: str) -> list[str]:
    """Outputs of these stages that were made, according to dvc.lock, from other outputs than dvc.lock pins now.

    Such outputs match the lock but do not belong together: a run was stopped between two stages. What the stage `code`
    writes does not count: outputs of earlier code still belong together.
    """
    with open_repo() as repo:
        pinned = {out.fs_path: out.hash_info.value for stage in repo.index.stages if stage.addressing != "code"
                  for out in stage.outs}
        return sorted(str(out) for name in stages for stage in repo.stage.collect(name)
                      if any(pinned.get(dep.fs_path, dep.hash_info.value) != dep.hash_info.value for dep in stage.deps)
                      for out in stage.outs)


@contextmanager
def running(say: Callable[[str], object]) -> Iterator[None]:
    """Hold the pipeline during a run of all its stages; wait while another run, or a `dvc repro` by hand, holds it."""
    if is_locked(LOCK):
        say("another run of the pipeline is in progress; waiting for its end")
    with lock(LOCK):
        if dvc_is_writing():
            say("`dvc repro` is running; waiting for its end")
        while dvc_is_writing():
            time.sleep(LOOK_SECONDS)
        if restore_lock():
            say("DVC was killed while it wrote dvc.lock; the one before is back, and what is missing runs again")
        yield


def is_running() -> bool:
    """Whether a run of the pipeline is in progress, or DVC is writing an output of a stage for another command."""
    return is_locked(LOCK) or dvc_is_writing()


def dvc_is_writing() -> bool:
    """Whether a `dvc repro` is running a stage."""
    with open_repo() as repo:
        path = Path(repo.tmp_dir or "", "rwlock")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):       # none, or being written at this moment
            return False
        return any(holds(entry, path) for entry in entries.get("write", {}).values())


def wait_for_pipeline(say: Callable[[str], object]) -> None:
    """Return when no stage is running."""
    if is_running():
        say("the pipeline is running; waiting for its end")
    while is_running():
        time.sleep(LOOK_SECONDS)


def reproduce(stage: str, pull: bool = False) -> None:
    """Run this stage alone, or restore it from DVC's run cache, and record it in dvc.lock.

    `pull`: also from the run cache of the remote, where another machine has pushed what it has run.

    When the stage fails, this ends the process with one line on stderr and exit code 1: `python -m flows.stages STAGE`
    runs in a child process (`flows.child`), and the command of the stage has printed the reason.
    """
    try:
        free_dead_locks()
        with keeping_lock(), open_repo() as repo:
            repo.reproduce(stage, single_item=True, pull=pull)
    except DvcException as error:
        sys.exit(f"{error}: {error.__cause__}" if error.__cause__ else str(error))


if __name__ == "__main__":
    reproduce(sys.argv[1], pull="--pull" in sys.argv[2:])
