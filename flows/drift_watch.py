"""Report on the batches in data/incoming that nobody has judged: `python -m flows.drift_watch`, or daily once its
schedule is on. `python -m flows.drift_watch BATCH ...` judges the batches named, again where they have been judged.

A batch arrives when it arrives, so this is a flow outside the DAG. It reads pinned artefacts only: shards, model and
export exactly as dvc.lock has them, and of one run of the pipeline.
"""

import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed, State

from flows.batches import Ledger, complete, find_batches, look
from flows.child import ChildError, end_with_make_flows, run_in_child
from flows.server import check_server, run_name
from flows.stages import changed_outs, is_running, mixed_outs, pins

PINNED = ("shards", "train", "export")      # the stages whose artefacts the report reads
INCOMING = Path("data/incoming")
REPORTS = Path("reports/watch")             # not reports/drift, which belongs to the stage
STATES = {"ok": "Completed", "drift": "Drifted", "too small to judge": "TooSmall"}     # any other verdict: Failed
SEVERITY = ("Completed", "TooSmall", "Drifted")
QUIET_SECONDS = 60          # a batch in which nothing has changed for so long has been copied completely
PATIENCE_SECONDS = 1800     # a batch that still grows after so long is left to the next run
LOOK_SECONDS = 5


class WatchError(Exception):
    """No report can be made; one line says what to do."""


def check_pinned() -> None:
    """Raises: WatchError when an artefact is not what dvc.lock pins, or not made from the others."""
    changed = changed_outs(*PINNED) or mixed_outs(*PINNED)
    if changed:
        raise WatchError(f"{', '.join(changed)}: need what dvc.lock pins, got something else or nothing. "
                         "Run `make repro` or `dvc checkout`.")


def wait_for_pipeline() -> None:
    """Return when no stage is running: while the model is replaced, there is nothing to judge a batch with."""
    if is_running():
        get_run_logger().info("the pipeline is running; waiting until it is done")
    while is_running():
        time.sleep(LOOK_SECONDS)


@task(name="report", task_run_name="report {batch}", cache_policy=NO_CACHE, persist_result=False, retries=1,
      retry_delay_seconds=10, tags=["gpu"])
def report(batch: str) -> str:
    """Write reports/watch/<batch>/ and return the verdict: ok, drift, unreadable, too small to judge.

    Raises: ChildError.
    """
    folder = REPORTS / batch
    run_in_child(sys.executable, "-m", "hcmi", "drift", "--batch", batch, "--out", str(folder),
                 log=get_run_logger().info)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["verdicts"][batch]


def report_with_pinned(batch: str) -> str:
    """The verdict of a report that read one state of the artefacts from its start to its end.

    Waits for the pipeline outside the task: the task holds a slot for a GPU that the pipeline may need in order to end.
    Raises: ChildError, WatchError.
    """
    while True:
        wait_for_pipeline()
        check_pinned()
        before = pins(*PINNED)
        failure, verdict = None, ""
        try:
            verdict = report(batch)
        except ChildError as error:
            failure = error
        if pins(*PINNED) == before and not changed_outs(*PINNED):
            if failure:
                raise failure
            return verdict
        get_run_logger().info("%s: the pipeline has replaced what the report was made with; judging again", batch)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two watches at once would judge a batch twice: the second waits for the first."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    with open(REPORTS / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@flow(name="drift-watch", flow_run_name=run_name("drift-watch"), persist_result=False)
def drift_watch(batches: list[str] | None = None, quiet_seconds: float = QUIET_SECONDS) -> State:
    """Judge every complete batch that has not been judged, or just `batches`.

    The run ends as Completed, Drifted (an alert can listen for it), TooSmall or Failed: the worst of its batches.
    """
    end_with_make_flows()
    with one_at_a_time():
        return judge(batches or [], quiet_seconds)


def judge(named: list[str], quiet_seconds: float) -> State:
    """Judge each batch once its copy is complete; a verdict counts only if the batch did not change meanwhile."""
    logger = get_run_logger()
    found = {folder.name: folder for folder in find_batches(INCOMING)}
    unknown = [name for name in named if name not in found]
    if unknown:
        raise WatchError(f"{INCOMING}: need a batch called {unknown[0]!r}, got {', '.join(found) or 'none'}. "
                         "Correct the name.")
    ledger, verdicts, waiting = Ledger(REPORTS), {}, [found[name] for name in named] or list(found.values())
    for folder, seen in complete(waiting, quiet_seconds, PATIENCE_SECONDS):
        content = ledger.content(folder, seen)
        waiting.remove(folder)
        if content in ledger.verdicts and not named:
            continue
        try:
            verdicts[folder.name] = report_with_pinned(folder.name)
        except ChildError as error:
            logger.error(str(error))
            verdicts[folder.name] = f"no report, {error}"
            continue
        if ledger.content(folder, look(folder)) == content:
            ledger.record(content, folder.name, verdicts[folder.name])
    for folder in waiting:
        logger.info("%s: still being copied; the next run looks at it again", folder)
    return outcome(verdicts, [folder.name for folder in waiting])


def outcome(verdicts: dict[str, str], growing: list[str]) -> State:
    """The state that the run ends in: that of its worst verdict."""
    parts = [f"{name}: {verdict}. {REPORTS / name / 'index.html'}" for name, verdict in verdicts.items()]
    parts += [f"{name}: still being copied" for name in growing]
    message = "; ".join(parts) or f"{INCOMING}: every batch has been judged"
    get_run_logger().info(message)
    names = [STATES.get(verdict) for verdict in verdicts.values()]
    if None in names:
        return Failed(message=message)
    return Completed(name=max(["Completed", *filter(None, names)], key=SEVERITY.index), message=message)


if __name__ == "__main__":
    try:
        check_server()
        end = drift_watch(sys.argv[1:], return_state=True)
        if end.is_failed():
            end.result()
        print(end.message)
    except (ChildError, WatchError) as error:
        sys.exit(f"flows.drift_watch: {error}")
