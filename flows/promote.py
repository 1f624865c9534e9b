"""Serve the newly trained model if it is not worse than the served one: `python -m flows.promote`, or after a retrain.

The flow `pipeline` calls it in the deployment `retrain`. `hcmi promote` decides; this flow reports.
"""

import sys
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed, State

from flows.artifacts import show, table, what_now
from flows.child import end_with_make_flows, run_for_json
from flows.server import run, run_name
from flows.stages import wait_for_pipeline

STATES = {"promoted": "Promoted", "refused": "Refused", "unchanged": "Completed"}
# Decision -> title of the page, and what follows.
PAGES = {"promoted": ("The new model is served", "If search gets worse, `hcmi rollback` serves the release before."),
         "refused": ("The new model is refused", "The served release stays. The next model is compared again."),
         "unchanged": ("There is no new model", "")}


@task(name="compare", task_run_name="compare with what is served", cache_policy=NO_CACHE, persist_result=False,
      retries=1, retry_delay_seconds=10, tags=["gpu"])
def compare(not_worse: bool) -> dict[str, Any]:
    """The decision of `hcmi promote`, which has been carried out. Raises: ChildError."""
    return run_for_json(sys.executable, "-m", "hcmi", "promote", "--json", *(["--not-worse"] if not_worse else []),
                        log=get_run_logger().info)


@flow(name="promote", flow_run_name=run_name("promote"), persist_result=False)
def promote(not_worse: bool = False, wait: bool = True) -> State:
    """Compare the trained model with the served one, and serve it if it is not worse. Returns what `compare` does.

    The run ends as Promoted, Refused, Completed (there is no new model) or Failed. `wait`: for a run of the pipeline to
    end; the pipeline itself does not.
    """
    end_with_make_flows()
    if wait:
        wait_for_pipeline(get_run_logger().info)
    found = compare(not_worse)
    show("promote", *page(found))
    get_run_logger().info(said(found))
    return Completed(name=STATES[found["decision"]], message=said(found), data=found)


def said(found: dict[str, Any]) -> str:
    """The decision in one line: `promoted v2: why`."""
    return " ".join(filter(None, (found["decision"], found["version"]))) + f": {found['why']}"


def page(found: dict[str, Any]) -> tuple[str, ...]:
    """The artifact, its title first: what a person has to do, what was decided and why, and the figures."""
    rows = [[one["where"], f"{one['champion']:.1f}", f"{one['challenger']:.1f}",
             f"{one['difference']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]", one["queries"]]
            for one in (found["test"], found["batches"]) if one]
    figures = table(["compared on", "R@1 served, %", "R@1 new, %", "difference, 95 % interval", "queries"], rows)
    title, then = PAGES[found["decision"]]
    tags = f"The served release: {found['tags']}" if found["tags"] else ""
    asks = "`" in tags      # it names a command
    return (title, what_now([tags] if asks else []), said(found), then, figures if rows else "",
            "" if asks else tags, "`hcmi releases` lists all releases.")


if __name__ == "__main__":
    print(run(promote, "--not-worse" in sys.argv[1:]).message)
