"""New videos in, nothing worse out: `python -m flows.ingest [FOLDER]`, or hourly once its schedule is on.

New files of a folder become a batch, every new batch is judged, and what follows from the verdict is done. Each step is
recorded where it takes effect, and is done only if it is not recorded there. So a run that is killed at any time is
continued by the next one, and nothing is done twice:

    step                                    recorded in
    files become a batch                    data/incoming/<batch>, data/incoming/inbox.json
    the batch is judged                     reports/watch/judged.json
    it is accepted                          data/accepted.json, data/searched.json
    DVC keeps it                            data/incoming/<batch>.dvc
    it joins the served index               the index, releases/<version>/batches.json
    a training run is started               the server (by a key of its own), reports/watch/retrain.json
"""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar
from uuid import UUID

from dvc.exceptions import DvcException
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import State

from flows.artifacts import show, what_now
from flows.child import ChildError, end_with_make_flows, run_for_json, run_in_child
from flows.drift_watch import (
    INCOMING,
    ON_PROCESSOR,
    QUIET_SECONDS,
    REPORTS,
    judge,
    outcome,
    todo,
    verdicts_text,
)
from flows.remote import DVC, push
from flows.repair import free_dead_locks, set_aside_broken
from flows.server import run, run_name
from flows.stages import how_kept, outs_of_stages
from hcmi.dataset import read_accepted
from hcmi.errors import DataError, ReleaseError, shown
from hcmi.files import write_json
from hcmi.incoming import (
    SEARCHED,
    Collected,
    Ledger,
    Verdict,
    accept_judged,
    action,
    collect,
    judged_batches,
    judging_alone,
    look,
)
from hcmi.releases import CURRENT, Releases
from hcmi.video import is_text
from hcmi.wording import plural

INBOX = "data/inbox"
ACCEPTED = Path("data/accepted.json")
RETRAIN = "pipeline/retrain"        # a deployment, as `flow/name`
COOL_DOWN_HOURS = 24.0
DECODE_SECONDS = 20.0               # for the first frame of a new file

Result = TypeVar("Result")


@task(name="collect", task_run_name="new files of {inbox}", cache_policy=NO_CACHE, persist_result=False, retries=1,
      retry_delay_seconds=10)
def take_in(inbox: str, quiet_seconds: float) -> Collected:
    """A batch of the new files of a folder or a bucket. Raises: DataError."""
    if os.path.islink(inbox) and not os.path.exists(inbox):
        raise DataError(f"{inbox}: need a folder of new videos, got a link to {os.readlink(inbox)}, where nothing is. "
                        "Mount the disk, or correct the link.")
    found = collect(inbox, INCOMING, f"{datetime.now():%Y-%m-%d}", quiet_seconds, DECODE_SECONDS)
    logger = get_run_logger()
    logger.info("%s: %s%s", shown(inbox), plural(len(found.files), "new file"),
                f" in the batch {found.batch}" if found.batch else "")
    for name, reason in found.quarantined.items():
        logger.warning("%s cannot be read and is left out: %s", shown(name), shown(reason))
    for remark in found.remarks:
        logger.warning("%s", shown(remark))
    return found


@task(name="add", task_run_name="add to the served index", cache_policy=NO_CACHE, persist_result=False, retries=1,
      retry_delay_seconds=10)
def add_accepted() -> dict[str, int]:
    """Add the accepted batches that the served index does not hold. Returns batch -> clips. Raises: ChildError."""
    return run_for_json(*ON_PROCESSOR, sys.executable, "-m", "hcmi", "add", "--accepted-only", "--json",
                        log=get_run_logger().info)["added"]


@flow(name="ingest", flow_run_name=run_name("ingest"), persist_result=False)
def ingest(inbox: str = INBOX, quiet_seconds: float = QUIET_SECONDS, cool_down_hours: float = COOL_DOWN_HOURS,
           retrain: str = RETRAIN) -> State:
    """Take in, judge, accept, add, and start a training run (the deployment `retrain`) where search is hurt.

    The run ends as Completed, Changed, CannotTell or SearchHurt: the worst of its batches; or as Failed, when a batch
    has no report, or nothing could be taken in, as where `inbox` is not there, or nothing could be added. What can be
    done is done all the same.
    """
    end_with_make_flows()
    took, failed = Collected(), ""
    with judging_alone(REPORTS, get_run_logger().info):
        if inbox != INBOX or os.path.lexists(inbox):    # a project without a data/inbox copies its batches itself
            took, failed = _or_why(take_in(inbox, quiet_seconds, return_state=True), Collected())
        verdicts, growing = judge([], quiet_seconds)
        accept_judged(INCOMING, Ledger(REPORTS), ACCEPTED)
    tracked, untracked = track_accepted()
    added, not_added = add_or_why()
    pushed = push()         # before a training run, which would wait for it
    started = start_retrain(cool_down_hours, retrain)
    report(took, verdicts, growing, added, tracked, untracked, started, [failed, not_added, pushed])
    return outcome(verdicts, growing, *(f"{name}: {plural(count, 'clip')} added" for name, count in added.items()),
                   *([started] if started else []), failed="; ".join(filter(None, [failed, not_added])))


def add_or_why() -> tuple[dict[str, int], str]:
    """What joined the served index, or why nothing could; nothing where no release is served."""
    try:
        if Releases().current() is None:
            return {}, ""
    except ReleaseError as error:
        return {}, str(error)
    return _or_why(add_accepted(return_state=True), {})


def _or_why(state: State[Result], nothing: Result) -> tuple[Result, str]:
    """What a task gave; or `nothing`, and why it failed: a bucket that is away keeps no batch waiting, for example."""
    if state.is_completed():
        return state.result(), ""
    return nothing, f"{state.result(raise_on_failure=False)} The next run tries again."


def track_accepted() -> tuple[list[str], list[str]]:
    """Give the accepted batches to DVC, so that the next training run of any machine has them.

    Returns: the batches that are new to DVC, or have changed; and what a person has to do about those that it cannot be
    given. One that DVC does not take now, such as during `dvc repro`, is given to it by the next run.
    """
    folders = [folder for folder in dict.fromkeys(INCOMING / entry.batch for entry in read_accepted(ACCEPTED))
               if folder.is_dir()]
    todo = {folder: why for folder in folders if (why := _not_for_dvc(folder))}
    folders = [folder for folder in folders if folder not in todo]
    for file in set_aside_broken(Path(f"{folder}.dvc") for folder in folders):
        get_run_logger().warning("%s: need a file that DVC takes, got one that was cut short; it is made again", file)
    done, kept = [], how_kept(folders)
    todo |= {folder: f"`{folder.name}` is not what DVC keeps of it: `dvc pull {quote(f'{folder}.dvc')}` brings that, "
                     f"`dvc add {quote(str(folder))}` keeps what is here in its place."
             for folder in folders if kept[folder] == "behind"}
    wanted = [folder for folder in folders if kept[folder] in ("new", "changed")]
    try:
        made = outs_of_stages() if wanted else set()
    except DvcException as error:       # of dvc.yaml or dvc.lock
        return [], [*todo.values(), f"DVC can be given no batch: {error}"]
    if wanted:
        free_dead_locks()
    for folder in wanted:
        if str(folder) in made:         # a stage makes it
            continue
        try:
            run_in_child(*DVC, "add", "--quiet", str(folder), log=get_run_logger().info)
            done.append(folder.name)
        except ChildError as error:
            get_run_logger().warning("%s: not given to DVC yet; the next run tries again. %s", folder.name, error)
    return done, list(todo.values())


def _not_for_dvc(folder: Path) -> str:
    """Why DVC can never be given this batch, and what to do; nothing where it can."""
    said = f"DVC cannot keep `{shown(folder.name)}`:"
    if not is_text(folder.name):
        return f"{said} its name is not UTF-8. Rename the folder, and correct the name in `{ACCEPTED}` and " \
               f"`{ACCEPTED.with_name(SEARCHED)}`."
    odd = [name for name in map(os.fsdecode, sorted(look(folder))) if not is_text(name)]
    return f"{said} the name of its file `{shown(odd[0])}` is not UTF-8. Rename the file; the batch is then judged " \
           "again." if odd else ""


def start_retrain(cool_down_hours: float, deployment: str = RETRAIN) -> str:
    """Start this deployment for the batches that hurt search and for which none has been started, or one that failed.

    At most one in `cool_down_hours`; batches that arrive earlier are waited for by the next. Returns what was done.
    """
    path = REPORTS / "retrain.json"
    hurt = [entry for entry in judged_batches(INCOMING, Ledger(REPORTS)) if action(entry.verdict).retrain]
    if not hurt:
        return ""
    done = _without_failed(_read(path))
    hurt = [entry for entry in hurt if entry.content not in done["contents"]]
    if not hurt:
        return ""
    names = ", ".join(entry.batch for entry in hurt)
    until = datetime.fromisoformat(done["when"]) + timedelta(hours=cool_down_hours)
    if until > datetime.now(UTC):
        return f"retrain for {names}: not before {until:%Y-%m-%d %H:%M} UTC, because the last was started less than " \
               f"{cool_down_hours:g} hours ago"
    if get_current_settings().api.url is None:
        return f"retrain for {names}: need a server, got none. Run `python -m flows.pipeline`, then `hcmi promote`"
    if deployment != RETRAIN and (missing := not_in_git({entry.batch: entry.content for entry in hurt})):
        return f"retrain for {names}: another machine trains on what is in git; commit and push " \
               f"{', '.join(f'`{file}`' for file in missing)}, then it is started"
    contents = sorted(entry.content for entry in hurt)
    key = "search-hurt-" + hashlib.sha256(" ".join([*contents, done["run"]]).encode()).hexdigest()[:16]
    try:        # the server knows the key: a run that is killed before the next line starts no second one
        run: Any = run_deployment(deployment, timeout=0, idempotency_key=key, as_subflow=False)
    except ObjectNotFound:
        return f"retrain for {names}: need the deployment {deployment}, got none. Start `make flows`"
    write_json(path, {"contents": [*done["contents"], *contents], "run": str(run.id), "run_contents": contents,
                      "when": datetime.now(UTC).isoformat(timespec="seconds")})
    return f"retrain for {names}: started, [its page](/runs/flow-run/{run.id})"     # it gets another name when it runs


def _without_failed(done: dict[str, Any]) -> dict[str, Any]:
    """What was started, without the contents of the last run if that has failed or crashed: it has to be started again.

    One that a person has cancelled stays done.
    """
    try:
        run = UUID(done["run"])
    except ValueError:      # none, or the file is damaged
        return done
    if get_current_settings().api.url is None:
        return done
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run).state
        except ObjectNotFound:
            return done
    if state is None or not (state.is_failed() or state.is_crashed()):
        return done
    return {**done, "contents": [one for one in done["contents"] if one not in done["run_contents"]]}


def not_in_git(batches: dict[str, str]) -> list[Path]:
    """The files that another machine needs for these batches (name -> content), and that git has not, or not like this.

    Such a machine takes the newest commit of `origin` (prefect.remote.yaml); `@{upstream}` stands for it where git does
    not know which branch that is.
    """
    def git(*words: str) -> bytes | None:
        found = subprocess.run(["git", *words], capture_output=True)
        return found.stdout if found.returncode == 0 else None

    newest = "origin/HEAD" if git("rev-parse", "--verify", "--quiet", "origin/HEAD") is not None else "@{upstream}"
    made = outs_of_stages()
    files = [INCOMING / f"{batch}.dvc" for batch in batches if str(INCOMING / batch) not in made]
    missing = [file for file in files
               if not file.exists() or git("show", f"{newest}:./{file.as_posix()}") != file.read_bytes()]
    try:        # other batches may have been accepted since
        known = {entry["content"] for entry in json.loads(git("show", f"{newest}:./{ACCEPTED.as_posix()}") or b"[]")}
    except (ValueError, KeyError, TypeError):
        known = set()
    return missing if known.issuperset(batches.values()) else [ACCEPTED, *missing]


def _read(path: Path) -> dict[str, Any]:
    """For which contents a run has been started; when the last was: long ago, where that is not known; and its id."""
    never = datetime.fromtimestamp(0, UTC)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        contents, when = list(found["contents"]), datetime.fromisoformat(found["when"]).astimezone(UTC)
        run, run_contents = str(found.get("run", "")), list(found.get("run_contents", ()))
    except (OSError, ValueError, KeyError, TypeError):      # none has been started, or the file is damaged
        return {"contents": [], "when": never.isoformat(), "run": "", "run_contents": []}
    ahead = when > datetime.now(UTC)        # the clock has been set since, so the time says nothing
    return {"contents": contents, "when": (never if ahead else when).isoformat(), "run": run,
            "run_contents": run_contents}


def report(took: Collected, verdicts: dict[str, Verdict], growing: list[str], added: dict[str, int], tracked: list[str],
           untracked: list[str], started: str, remarks: list[str]) -> None:
    """The artifact: what came in, what was decided, and what a person has to do.

    `untracked`: what to do about batches that DVC has not. `remarks`: about bucket, index and remote.
    """
    came = [f"{plural(len(took.files), 'new file')} came: batch `{took.batch}`."] if took.batch else []
    came += [f"Still being written: {plural(len(took.waiting), 'file')}."] if took.waiting else []
    came += [f"`{name}` cannot be read and is left out: {reason}" for name, reason in took.quarantined.items()]
    came += [f"Captions came to the batch `{name}`: it is judged again." for name in took.captioned]
    came += took.remarks
    done = [f"`{name}`: {plural(count, 'clip')} can be searched now." for name, count in added.items()]
    done += [started + "."] if started else []
    done += filter(None, remarks)
    files = [ACCEPTED, ACCEPTED.with_name(SEARCHED), *(INCOMING / f"{name}.dvc" for name in tracked)]
    wanted = [*([f"Commit to git: {', '.join(f'`{file}`' for file in files)}."] if tracked else []), *untracked]
    if not os.path.lexists(Releases().root / CURRENT):
        wanted.append(f"No release is served, which accepted batches can join. {Releases().how_to_serve()}")
    show("ingest", "New videos", what_now([*todo(verdicts), *wanted]), "  \n".join(came),
         verdicts_text(verdicts, growing), "  \n".join(done))


if __name__ == "__main__":
    print(run(ingest, *sys.argv[1:2]).message)
