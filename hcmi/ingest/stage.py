"""`hcmi add`: what the flow `ingest` does, once and without Prefect."""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hcmi.config import Params
from hcmi.drift import drift
from hcmi.errors import ReleaseError, shown
from hcmi.files import ask_to_write
from hcmi.incoming import (
    QUARANTINE,
    Ledger,
    Verdict,
    accept_judged,
    accept_named,
    arrivals,
    collect,
    judge_new,
    judging_alone,
)
from hcmi.ingest.fill import fill, missing_batches, reader
from hcmi.progress import note
from hcmi.releases import Release, Releases
from hcmi.wording import plural


def add(*, folder: str | Path | None, batches: Sequence[str], incoming_dir: str | Path, reports_dir: str | Path,
        releases_dir: str | Path, accepted: str | Path, params: Params, quiet_s: float, judge: bool = True
        ) -> dict[str, Any]:
    """Take in the new videos of `folder`, judge the batches that have not been judged, and add accepted ones.

    `batches`: accept these whatever their verdict, and judge nothing. Without `judge`, only what has been accepted is
    added. Returns the new batch, the files and batches that are left for later or cannot be read, the verdicts of this
    call, and batch -> clips added to the served index.
    It reads the served release and nothing that the stages write, so the pipeline may run at the same time.
    Raises: ReleaseError when nothing is served; DataError when `folder` or a batch is not there or is wrong;
    MachineError; and what judging and encoding raise.
    """
    releases = Releases(releases_dir)
    release = releases.current()
    if release is None:
        raise ReleaseError(f"{releases.root}: need a release whose index new videos can join, got none. "
                           f"{releases.how_to_serve()}")
    incoming, read, found = Path(incoming_dir), reader(params), dict[str, Any]()
    ask_to_write(files=[accepted, Path(reports_dir, "judged.json"), incoming / "inbox.json"])
    with judging_alone(Path(reports_dir), lambda text: note(f"{shown(reports_dir)}: {text}")):
        if folder is not None:
            took = collect(folder, incoming, f"{datetime.now():%Y-%m-%d}", quiet_s, params.shards.decode_timeout_s)
            found |= {"batch": took.batch, "files": len(took.files), "waiting": took.waiting,
                      "quarantined": took.quarantined, "captioned": took.captioned, "taken": took.taken,
                      "refused": took.refused, "remarks": took.remarks}
        ledger = Ledger(Path(reports_dir))
        if batches:
            accept_named(incoming, ledger, accepted, batches, read)
        elif judge:
            found |= _judge(release, ledger, incoming, Path(reports_dir), params, quiet_s)
            accept_judged(incoming, ledger, accepted)
    with releases.lock():
        release = releases.current() or release
        found["added"] = fill(release, missing_batches(release, accepted), incoming_dir=incoming, params=params,
                              read=read)
    return found


def added_text(found: dict[str, Any], reports_dir: str | Path, incoming_dir: str | Path) -> str:
    """What `add` did, for people: a line for each batch and file, and what to type next."""
    lines = []
    if found.get("batch"):
        lines.append(f"{plural(found['files'], 'new file')}: batch {shown(found['batch'])}")
    elif "files" in found and not found["waiting"] and not found["quarantined"]:
        lines.append("no new file" + (f"; in batches already: {found['taken']}" if found["taken"] else ""))
    lines += [f"may still be written, left to the next run: {shown(name)}" for name in found.get("waiting", ())]
    lines += [f"left out: {shown(reason)}" for reason in found.get("quarantined", {}).values()]
    if found.get("refused"):
        lines.append(f"left out as before: {plural(found['refused'], 'file')} that cannot be read; see "
                     f"{Path(incoming_dir, QUARANTINE)}")
    lines += [f"captions came to the batch {shown(batch)}" for batch in found.get("captioned", ())]
    lines += found.get("remarks", ())
    lines += [f"{shown(batch)}: still being copied" for batch in found.get("growing", ())]
    for batch, verdict in found.get("verdicts", {}).items():
        lines.append(f"{shown(batch)}: {verdict} Its report: {shown(Path(reports_dir, batch, 'index.html'))}")
    lines += [f"{shown(batch)}: {plural(count, 'clip')} can be searched now" for batch, count in found["added"].items()]
    if found["added"]:
        names = " ".join(shlex.quote(str(Path(incoming_dir, batch))) for batch in found["added"])
        lines.append(f"next: `dvc add {names}` keeps what was added; `dvc repro`, then `hcmi promote`, trains on it")
    return "\n".join(lines or ["nothing to do: every batch has been judged"])


def _judge(release: Release, ledger: Ledger, incoming: Path, reports: Path, params: Params, quiet_s: float
           ) -> dict[str, Any]:
    """`verdicts`: batch -> verdict, and what follows; `growing`: the batches that are still being copied."""
    def report(batch: str) -> Verdict:
        found = drift(incoming_dir=incoming, model_dir=release.model, export_dir=release.export,
                      shards_dir=release.shards, out_dir=reports / batch, params=params, batches=[batch])
        return Verdict.of(found, batch)

    verdicts, growing = judge_new(arrivals(incoming), ledger, report, quiet_s)
    return {"growing": growing, "verdicts": {batch: _said(batch, verdict) for batch, verdict in verdicts.items()}}


def _said(batch: str, verdict: Verdict) -> str:
    if not verdict.final:
        return f"{verdict.word}: {verdict.why} It is judged again the next time."
    action = verdict.action
    return " ".join(filter(None, [f"{verdict.word}: {action.said}. {verdict.why}", action.todo_for(batch)]))
