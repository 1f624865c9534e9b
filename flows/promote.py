"""Serve the newly trained model if it is not worse than the served one: `python -m flows.promote`, or after a retrain.

The flow `pipeline` calls it in the deployment `retrain`. `hcmi promote` decides; this flow reports.
"""

import sys
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed, State

from flows.artifacts import show, table
from flows.child import ChildError, end_with_make_flows, run_for_json
from flows.server import check_server, run_name
from flows.stages import wait_for_pipeline

STATES = {"promoted": "Promoted", "refused": "Refused", "unchanged": "Completed"}


@task(name="compare", task_run_name="compare with what is served", cache_policy=NO_CACHE, persist_result=False,
      retries=1, retry_delay_seconds=10, tags=["gpu"])
def compare(not_worse: bool) -> dict[str, Any]:
    """The decision of `hcmi promote`, which has been carried out. Raises: ChildError."""
    return run_for_json(sys.executable, "-m", "hcmi", "promote", "--json", *(["--not-worse"] if not_worse else []),
                        log=get_run_logger().info)


@flow(name="promote", flow_run_name=run_name("promote"), persist_result=False)
def promote(not_worse: bool = False, wait: bool = True) -> State:
    """Compare the trained model with the served one, and serve it if it is not worse.

    The run ends as Promoted, Refused, Completed (there is no new model) or Failed. `wait`: for a run of the pipeline to
    end; the pipeline itself does not.
    """
    end_with_make_flows()
    if wait:
        wait_for_pipeline(get_run_logger().info)
    found = compare(not_worse)
    report(found)
    message = " ".join(filter(None, (found["decision"], found["version"]))) + f": {found['why']}"
    get_run_logger().info(message)
    return Completed(name=STATES[found["decision"]], message=message)


def report(found: dict[str, Any]) -> None:
    """The artifact: what was decided and why, the figures, and what a person can do."""
    rows = [[one["where"], f"{one['champion']:.1f}", f"{one['challenger']:.1f}",
             f"{one['difference']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]", one["queries"]]
            for one in (found["test"], found["batches"]) if one]
    figures = table(["compared on", "R@1 served, %", "R@1 new, %", "difference, 95 % interval", "queries"], rows)
    nexts = {"promoted": "Nothing has to be done. If search gets worse: `hcmi rollback` serves the one before.",
             "refused": "Nothing has to be done: the served release stays. The next model is compared again.",
             "unchanged": "Nothing has to be done."}
    title = f"{STATES[found['decision']]} {found['version'] or ''}".strip()
    show("promote", title, f"**What now?** {nexts[found['decision']]} `hcmi releases` lists all releases.",
         found["why"], figures if rows else "")


if __name__ == "__main__":
    try:
        check_server()
        print(promote("--not-worse" in sys.argv[1:], return_state=True).message)
    except ChildError as error:
        sys.exit(f"flows.promote: {error}")
