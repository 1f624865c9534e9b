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
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

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
from flows.drift_watch import INCOMING, ON_PROCESSOR, QUIET_SECONDS, REPORTS, judge, outcome, todo, verdicts_text
from flows.remote import DVC, push
from flows.repair import free_dead_locks
from flows.server import run, run_name
from flows.stages import kept_sizes, outs_of_stages
from hcmi.dataset import read_accepted
from hcmi.files import lock, write_json
from hcmi.incoming import SEARCHED, Collected, Ledger, Verdict, accept_judged, action, collect, judged_batches, look
from hcmi.releases import Releases
from hcmi.wording import plural

INBOX = "data/inbox"
ACCEPTED = Path("data/accepted.json")
RETRAIN = "pipeline/retrain"        # a deployment, as `flow/name`
COOL_DOWN_HOURS = 24.0
DECODE_SECONDS = 20.0               # for the first frame of a new file


@task(name="collect", task_run_name="new files of {inbox}", cache_policy=NO_CACHE, persist_result=False, retries=1,
      retry_delay_seconds=10)
def take_in(inbox: str, quiet_seconds: float) -> Collected:
    """A batch of the new files of a folder or a bucket. Raises: DataError."""
    found = collect(inbox, INCOMING, f"{datetime.now():%Y-%m-%d}", quiet_seconds, DECODE_SECONDS)
    logger = get_run_logger()
    logger.info("%s: %s%s", inbox, plural(len(found.files), "new file"),
                f" in the batch {found.batch}" if found.batch else "")
    for name, reason in found.quarantined.items():
        logger.warning("%s cannot be read and is left out: %s", name, reason)
    for remark in found.remarks:
        logger.warning("%s", remark)
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
    has no report or nothing could be taken in, as where `inbox` is not there. What can be done is done all the same.
    """
    end_with_make_flows()
    took, failed = Collected(), ""
    with lock(REPORTS / ".lock"):         # the drift watch holds it too
        if inbox != INBOX or Path(inbox).is_dir():      # a project without a data/inbox copies its batches itself
            took, failed = take_in_or_why(inbox, quiet_seconds)
        verdicts, growing = judge([], quiet_seconds)
        accept_judged(INCOMING, Ledger(REPORTS), ACCEPTED)
    tracked = track_accepted()
    added = add_accepted() if Releases().current() is not None else {}
    pushed = push()         # before a training run, which would wait for it
    started = start_retrain(cool_down_hours, retrain)
    report(took, verdicts, growing, added, tracked, started, [failed, pushed])
    return outcome(verdicts, growing, *(f"{name}: {plural(count, 'clip')} added" for name, count in added.items()),
                   *([started] if started else []), failed=failed)


def take_in_or_why(inbox: str, quiet_seconds: float) -> tuple[Collected, str]:
    """What was taken in, or why nothing could be: a bucket that is away keeps no other batch waiting."""
    state = take_in(inbox, quiet_seconds, return_state=True)
    if state.is_completed():
        return state.result(), ""
    return Collected(), f"{state.result(raise_on_failure=False)} The next run tries again."


def track_accepted() -> list[str]:
    """Give the accepted batches to DVC, so that the next training run of any machine has them.

    Returns: the batches that are new to DVC, or have grown. One that DVC does not take now, such as during `dvc repro`,
    is given to it by the next run.
    """
    folders = {entry.batch: INCOMING / entry.batch for entry in read_accepted(ACCEPTED)}
    kept = kept_sizes(folders.values()) if folders else {}
    wanted = [batch for batch, folder in folders.items() if _has_grown(folder, *kept.get(folder, (0, 0)))]
    made = outs_of_stages() if wanted else set()
    if wanted:
        free_dead_locks()
    done = []
    for batch in wanted:
        if str(INCOMING / batch) in made:       # a stage makes it
            continue
        try:
            run_in_child(*DVC, "add", "--quiet", str(INCOMING / batch), log=get_run_logger().info)
            done.append(batch)
        except ChildError as error:
            get_run_logger().warning("%s: not given to DVC yet; the next run tries again. %s", batch, error)
    return done


def _has_grown(folder: Path, files: int, size: int) -> bool:
    """Whether the folder holds more files or bytes than DVC keeps of it."""
    sizes = [size for size, *_ in look(folder).values()]
    return len(sizes) > files or sum(sizes) > size


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
           started: str, remarks: list[str]) -> None:
    """The artifact: what came in, what was decided, and what a person has to do. `remarks`: about bucket and remote."""
    release = Releases().current()
    came = [f"{plural(len(took.files), 'new file')} came: batch `{took.batch}`."] if took.batch else []
    came += [f"Still being written: {plural(len(took.waiting), 'file')}."] if took.waiting else []
    came += [f"`{name}` cannot be read and is left out: {reason}" for name, reason in took.quarantined.items()]
    came += [f"Captions came to the batch `{name}`: it is judged again." for name in took.captioned]
    came += took.remarks
    done = [f"`{name}`: {plural(count, 'clip')} can be searched now." for name, count in added.items()]
    done += [started + "."] if started else []
    done += filter(None, remarks)
    files = [ACCEPTED, ACCEPTED.with_name(SEARCHED), *(INCOMING / f"{name}.dvc" for name in tracked)]
    wanted = [f"Commit to git: {', '.join(f'`{file}`' for file in files)}."] if tracked else []
    if release is None:
        wanted.append("Nothing is served yet: `hcmi promote` makes the first release, which accepted batches can join.")
    show("ingest", "New videos", what_now([*todo(verdicts), *wanted]), "  \n".join(came),
         verdicts_text(verdicts, growing), "  \n".join(done))


if __name__ == "__main__":
    print(run(ingest, *sys.argv[1:2]).message)
