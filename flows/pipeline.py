"""The pipeline of dvc.yaml as a Prefect flow: `python -m flows.pipeline`, with or without a server.

DVC decides whether a stage runs. Prefect decides when and where: one task a stage, retried once; stages that use a GPU
run one at a time (tag `gpu`). The dependencies are read from dvc.yaml and written nowhere else.
"""

import sys
import time
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed, State

from flows.artifacts import Progress, show, table, what_now
from flows.child import end_with_make_flows, run_in_child
from flows.promote import page, promote, said
from flows.remote import RemoteError, fetch, push
from flows.server import run, run_name
from flows.stages import is_stale, plan, remote, running

GPU_TAG = "gpu"


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retries=1,
      retry_delay_seconds=10)
def run_stage(stage: str, pull: bool = False) -> str:
    """Run one stage if it is stale according to DVC. `pull`: take its outputs from the remote, where it has been run.

    Returns: `fresh` or `ran`.

    Raises: ChildError.
    """
    logger = get_run_logger()
    if not is_stale(stage):
        logger.info("fresh: nothing to run")
        return "fresh"
    progress = Progress(stage)

    def log(line: str) -> None:
        logger.info(line)
        progress.read(line)

    run_in_child(sys.executable, "-m", "flows.stages", stage, *(["--pull"] if pull else []), log=log)
    return "ran"


@flow(name="pipeline", flow_run_name=run_name("retrain"), persist_result=False)
def pipeline(then_promote: bool = False, share: bool = False) -> State:
    """Run every stale stage, in the order of dvc.yaml. Waits while another run of the pipeline is in progress.

    `then_promote`: serve the model that results, if it is not worse than the one that is served. `share`: with DVC's
    remote, if there is one. A stage that another machine has run on the same data is not run again, and what is made
    here is pushed.
    Returns: stage -> `fresh` or `ran`; `promote` -> what was decided; `fetch`, `push` -> what became of it.
    """
    end_with_make_flows()
    with running(get_run_logger().info):
        outcome: dict[str, str] = {}
        pull = False
        if share and (store := remote()):
            try:
                fetch(store)
                pull = True
            except RemoteError as error:
                outcome["fetch"] = str(error)
        outcome |= run_stages(pull)
        if then_promote:
            found: Any = promote(wait=False)        # the call gives the data of the state
            outcome["promote"] = said(found)
            show("decision", *page(found))
        if share and (pushed := push()):
            outcome["push"] = pushed
            show("push", "Push", pushed)
        return Completed(message=in_one_line(outcome), data=outcome)


def run_stages(pull: bool) -> dict[str, str]:
    """One task a stage; each waits for the stages that it depends on. What ran is on the page of the run."""
    outcome: dict[str, str] = {}
    seconds: dict[str, float] = {}
    states: dict = {}
    try:
        for step in plan():
            one = run_stage.with_options(tags=[GPU_TAG] if step.gpu else [])
            after = [states[name] for name in step.after]
            started = time.monotonic()
            states[step.name] = one(step.name, pull, wait_for=after, return_state=True)
            seconds[step.name] = time.monotonic() - started
            outcome[step.name] = states[step.name].result()
        return outcome
    finally:
        if seconds:
            report(outcome, seconds)


def report(outcome: dict[str, str], seconds: dict[str, float]) -> None:
    """The artifact: what ran, for how long, and what a person has to do. A tracked file that is fresh is left out."""
    todo = [f"Correct what the log of the task `{name}` says last, and start `retrain` again: it goes on where this "
            "run has stopped." for name in seconds if name not in outcome]
    if "ran" in outcome.values() and not todo and Path(".git").exists():
        todo = ["Commit to git: `dvc.lock`, and what has changed in `metrics/`."]
    show("stages", "Stages", what_now(todo), table(["stage", "outcome", "seconds"], [
        [name, outcome.get(name, "**failed**"), f"{took:.1f}"] for name, took in seconds.items()
        if outcome.get(name) != "fresh" or not name.endswith(".dvc")]))


def in_one_line(outcome: dict[str, str]) -> str:
    """What a run did, for the list of runs and for messages."""
    ran = [name for name, what in outcome.items() if what == "ran"]
    others = [what for what in outcome.values() if what not in ("ran", "fresh")]
    return "; ".join([f"ran {', '.join(ran)}" if ran else "every stage is fresh", *others])


if __name__ == "__main__":
    for name, what in run(pipeline).result().items():
        print(f"{name}: {what}")
