"""What DVC says about the pipeline: its stages in order, which are stale, and one reproduced on its own.

No Prefect here, so that the child process that reproduces a stage does not pay for importing it.
"""

import sys
from dataclasses import dataclass

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro


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


def reproduce(stage: str) -> None:
    """Run this stage alone, restoring it from DVC's run cache where that can be done, and record it in dvc.lock.

    Ends the process with one line on stderr and exit code 1 where the stage fails: `python -m flows.stages STAGE`
    runs in a child (`flows.child`), and the stage's own command has printed why.
    """
    try:
        with Repo() as repo:
            repo.reproduce(stage, single_item=True)
    except DvcException as error:
        sys.exit(f"{error}: {error.__cause__}" if error.__cause__ else str(error))


if __name__ == "__main__":
    reproduce(sys.argv[1])
