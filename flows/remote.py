"""DVC's remote, which other machines share: what a run has made is pushed to it, and what others have made is fetched.

With the outputs goes the run cache: which stage gave which outputs from which data. So a stage that one machine has
run is not run again on another one. A remote that cannot be reached ends no run. The next run pushes what is missing,
and so does `dvc push`.
"""

import sys

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows.child import run_in_child
from flows.stages import remote

RETRY_SECONDS = [10.0, 60.0]
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")      # as `open_repo`


class RemoteError(Exception):
    """Nothing came from the remote; the message is for the page."""


@task(name="push", task_run_name="push to {name}", cache_policy=NO_CACHE, persist_result=False,
      retries=len(RETRY_SECONDS), retry_delay_seconds=RETRY_SECONDS)
def push_to(name: str) -> None:
    """`dvc push`, of what the remote does not hold. Raises: ChildError."""
    run_in_child(*DVC, "push", "--run-cache", "--remote", name, log=get_run_logger().info)


@task(name="fetch", task_run_name="fetch from {name}", cache_policy=NO_CACHE, persist_result=False)
def fetch_from(name: str) -> None:
    """`dvc fetch`, of the run cache and what dvc.lock pins. Raises: ChildError."""
    run_in_child(*DVC, "fetch", "--run-cache", "--remote", name, log=get_run_logger().info)


def fetch(name: str) -> None:
    """Fetch from this remote. Raises: RemoteError."""
    state = fetch_from(name, return_state=True)
    if not state.is_completed():
        raise RemoteError(f"**Not fetched** from the remote `{name}`: {state.message} "
                          "Every stale stage runs on this machine.")


def push() -> str:
    """Push to the default remote. Returns what became of it, in one line for the page; nothing without a remote."""
    name = remote()
    if name is None:
        return ""
    state = push_to(name, return_state=True)
    if state.is_completed():
        return f"Pushed to the remote `{name}`."
    return f"**Not pushed** to the remote `{name}`: {state.message} The next run tries again, and so does `dvc push`."
