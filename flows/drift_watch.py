"""Report on the batches in data/incoming that have not been judged: `python -m flows.drift_watch`, or daily once its
schedule is on. `python -m flows.drift_watch BATCH ...` judges the named batches, also if they have been judged before.

Batches arrive at any time, so this is a flow outside the DAG. It reads the release that is served, which no run of the
pipeline changes. Without a release it reads pinned artefacts only: shards, model and export as dvc.lock has them, all
from one run of the pipeline. The flow `ingest` judges in the same way, and acts on the verdicts.
"""

import json
import sys
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed, Failed, State

from flows.artifacts import show, what_now
from flows.child import ChildError, end_with_make_flows, run_in_child
from flows.server import run, run_name
from flows.stages import changed_outs, mixed_outs, pins, wait_for_pipeline
from hcmi.errors import ReleaseError, shown
from hcmi.incoming import Ledger, Verdict, arrivals, find_batches, judge_new, judging_alone, worst
from hcmi.releases import Release, Releases

PINNED = ("shards", "train", "export")      # the stages whose artefacts the report reads
INCOMING = Path("data/incoming")
REPORTS = Path("reports/watch")             # not reports/drift, which belongs to the stage
# New videos must not wait for the GPU, which training may hold for hours, nor take memory that it counts on.
ON_PROCESSOR = ("env", "CUDA_VISIBLE_DEVICES=")
NO_REPORT = Verdict("no report", "", final=False)
QUIET_SECONDS = 60          # a batch that has not changed for this long is complete


class WatchError(Exception):
    """No report can be made; the message says what to do."""


def check_pinned() -> None:
    """Raises: WatchError when an artefact differs from what dvc.lock pins, or was not made from the others."""
    changed = changed_outs(*PINNED) or mixed_outs(*PINNED)
    if changed:
        raise WatchError(f"{', '.join(changed)}: need what dvc.lock pins, got something else or nothing. "
                         "Run `make repro` or `dvc checkout`.")


@task(name="report", task_run_name=lambda: f"report {shown(task_run.parameters['batch'])}", cache_policy=NO_CACHE,
      persist_result=False, retries=1, retry_delay_seconds=10, tags=["gpu"])
def report(batch: str) -> Verdict:
    """Write reports/watch/<batch>/ and return the verdict.

    Raises: ChildError, also when the machine was in such trouble that the batch could not be judged.
    """
    folder = REPORTS / batch
    release = Releases().current()
    place, of_release = ((), []) if release is None else (ON_PROCESSOR, _options(release))
    run_in_child(*place, sys.executable, "-m", "hcmi", "drift", "--batch", batch, "--out", str(folder), *of_release,
                 log=get_run_logger().info)
    verdict = Verdict.of(json.loads((folder / "report.json").read_text(encoding="utf-8")), batch)
    if not verdict.final:
        raise ChildError(f"hcmi drift: {verdict.why}")
    return verdict


def _options(release: Release) -> list[str]:
    return ["--model", str(release.model), "--export", str(release.export), "--shards", str(release.shards)]


def report_with_pinned(batch: str) -> Verdict:
    """The verdict of a report during which the artefacts did not change.

    A release never changes, so only a project without one waits for the pipeline. It waits outside the task, because
    the task holds a GPU slot that the pipeline may need.
    Raises: ChildError, WatchError.
    """
    if Releases().current() is not None:
        return report.with_options(tags=[])(batch)      # on the processor: see ON_PROCESSOR
    while True:
        wait_for_pipeline(get_run_logger().info)       # no batch can be judged while the model is being replaced
        check_pinned()
        before = pins(*PINNED)
        failure, verdict = None, NO_REPORT
        try:
            verdict = report(batch)
        except ChildError as error:
            failure = error
        if pins(*PINNED) == before and not changed_outs(*PINNED):
            if failure:
                raise failure
            return verdict
        get_run_logger().info("%s: the pipeline replaced the artefacts during the report; judging again", shown(batch))


@flow(name="drift-watch", flow_run_name=run_name("drift-watch"), persist_result=False)
def drift_watch(batches: list[str] | None = None, quiet_seconds: float = QUIET_SECONDS) -> State:
    """Judge every complete batch that has not been judged, or just `batches`.

    The run ends as Completed, Changed, CannotTell, SearchHurt (an alert can listen for it) or Failed: the worst of its
    batches.
    """
    end_with_make_flows()
    with judging_alone(REPORTS, get_run_logger().info):
        verdicts, growing = judge(batches or [], quiet_seconds)
    clips = [batch for batch, verdict in verdicts.items() if not verdict.is_query_log]
    waiting = ["The flow `ingest`, or `hcmi add`, acts on these verdicts."] if clips else []
    show("drift-watch", "New batches", what_now([*waiting, *todo(verdicts)]), verdicts_text(verdicts, growing))
    return outcome(verdicts, growing)


def judge(named: list[str], quiet_seconds: float) -> tuple[dict[str, Verdict], list[str]]:
    """Judge the batches that have not been judged, or just those that are named (`judge_new`).

    Returns: batch -> verdict, or why there is no report; and the batches that are still being copied.
    """
    found = {folder.name: folder for folder in find_batches(INCOMING)}
    unknown = [name for name in named if name not in found]
    if unknown:
        raise WatchError(f"{INCOMING}: need a batch called {unknown[0]!r}, got {', '.join(found) or 'none'}. "
                         "Correct the name.")
    wanted = [found[name] for name in dict.fromkeys(named)] or arrivals(INCOMING)
    return judge_new(wanted, Ledger(REPORTS), _report_or_why, quiet_seconds, again=bool(named))


def _report_or_why(batch: str) -> Verdict:
    try:
        return report_with_pinned(batch)
    except (ChildError, WatchError, ReleaseError) as error:     # `ingest` has more to do than to judge
        get_run_logger().error(str(error))
        return NO_REPORT._replace(why=str(error))


def verdicts_text(verdicts: dict[str, Verdict], growing: list[str]) -> str:
    """For the page of the run: a list, because the page cuts the columns of a table that do not fit."""
    lines = [f"- **`{name}`: {verdict.word}.** {verdict.why} What follows: {verdict.action.said}."
             f"{_report_of(name, verdict, ' Report: `{}`.')}" for name, verdict in verdicts.items()]
    lines += [f"- `{name}` is still being copied, and is left to the next run." for name in growing]
    return "\n".join(lines) or "Every batch has been judged."


def todo(verdicts: dict[str, Verdict]) -> list[str]:
    """What a person may do about these batches."""
    return [f"`{name}`: {verdict.action.todo_for(name)}" for name, verdict in verdicts.items()
            if verdict.action.todo]


def _report_of(name: str, verdict: Verdict, said: str) -> str:
    return "" if verdict.action.state is None else said.format(REPORTS / name / "index.html")


def outcome(verdicts: dict[str, Verdict], growing: list[str], *more: str, failed: str = "") -> State:
    """The final state of the run: that of its worst verdict, or Failed. `more`: what else its message says."""
    ordered = sorted(verdicts.items(), key=lambda item: item[1].action.state is not None)   # failures come first
    parts = [f"{name}: {verdict.word}. {verdict.why}{_report_of(name, verdict, ' {}')}" for name, verdict in ordered]
    parts += [f"{name}: still being copied" for name in growing]
    parts = parts or [f"{INCOMING}: every batch has been judged"]
    message = "; ".join(map(shown, [*parts, *more, *filter(None, [failed])]))    # a server takes UTF-8 alone
    get_run_logger().info(message)
    states = [verdict.action.state for verdict in verdicts.values()]
    if failed or None in states:
        return Failed(message=message)
    return Completed(name=worst([state for state in states if state]), message=message)


if __name__ == "__main__":
    print(run(drift_watch, sys.argv[1:]).message)
