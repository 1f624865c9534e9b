"""Report on the newest batch in data/incoming: `python -m flows.drift_watch`, or daily once its schedule is on.

A batch arrives when it arrives, so this is a flow outside the DAG. It reads pinned artefacts only: shards, model and
export exactly as dvc.lock has them.
"""

import json
import sys
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed, State

from flows.child import ChildError, run_in_child
from flows.stages import changed_outs

PINNED = ("shards", "train", "export")      # the stages whose artefacts the report reads
INCOMING = Path("data/incoming")
REPORTS = Path("reports/watch")             # not reports/drift, which belongs to the stage
STATES = {"ok": "Completed", "drift": "Drifted", "too small to judge": "TooSmall"}     # any other verdict: Failed


class WatchError(Exception):
    """No report can be made; one line says what to do."""


def newest_batch(incoming: Path = INCOMING) -> str:
    """The folder in `incoming` whose files changed last; of several at once, the last by name.

    Raises: WatchError when there is none.
    """
    batches = {folder.name: max((file.stat().st_mtime for file in folder.rglob("*") if file.is_file()), default=None)
               for folder in (sorted(incoming.iterdir()) if incoming.is_dir() else ()) if folder.is_dir()}
    found = [(when, name) for name, when in batches.items() if when is not None and not name.startswith(".")]
    if not found:
        raise WatchError(f"{incoming}: need a batch (a folder with videos/), found none. Copy one there.")
    return max(found)[1]


def check_pinned() -> None:
    """Raises: WatchError when an artefact is not what dvc.lock pins."""
    changed = changed_outs(*PINNED)
    if changed:
        raise WatchError(f"{', '.join(changed)}: need what dvc.lock pins, got something else or nothing. "
                         "Run `make repro` or `dvc checkout`.")


@task(name="report", task_run_name="report-{batch}", cache_policy=NO_CACHE, persist_result=False, retries=1,
      retry_delay_seconds=10, tags=["gpu"])
def report(batch: str) -> str:
    """Write reports/watch/<batch>/ and return the verdict: ok, drift, unreadable, too small to judge.

    Raises: ChildError.
    """
    logger = get_run_logger()
    folder = REPORTS / batch
    run_in_child("hcmi", "drift", "--batch", batch, "--out", str(folder), log=logger.info)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["verdicts"][batch]


@flow(name="drift-watch", persist_result=False)
def drift_watch() -> State:
    """Judge the newest batch. The run ends as Completed, Drifted (an alert can listen for it), TooSmall or Failed."""
    check_pinned()
    batch = newest_batch()
    verdict = report(batch)
    message = f"{batch}: {verdict}. {REPORTS / batch / 'index.html'}"
    get_run_logger().info(message)
    return Completed(name=STATES[verdict], message=message) if verdict in STATES else Failed(message=message)


if __name__ == "__main__":
    try:
        end = drift_watch(return_state=True)
        if end.is_failed():
            end.result()
        print(end.message)
    except (ChildError, WatchError) as error:
        sys.exit(f"flows.drift_watch: {error}")
