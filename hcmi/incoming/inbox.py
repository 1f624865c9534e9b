"""New files of a folder become a batch in data/incoming: whole files alone, each content once, unreadable ones listed.

`data/incoming/inbox.json` remembers which contents have been taken; `data/incoming/quarantine.jsonl` lists the files
that cannot be read. A batch appears whole, with the list of its contents in it, so a run that is killed at any time
loses no file and takes none twice.
"""

import csv
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hcmi.dataset import read_captions
from hcmi.errors import DataError, DecodeError, shown
from hcmi.files import atomic_dir, atomic_file, lock
from hcmi.incoming.batches import OWN
from hcmi.incoming.bucket import fetched, is_address
from hcmi.video import DecoderPool, EncodeJob, encode_job, find_videos, sha256

QUARANTINED = ""            # in place of the batch's name
CHECK_PIXELS, CHECK_QUALITY = 64, 80

Stat = tuple[int, int, int]     # size, times of change of content and of inode


@dataclass
class Collected:
    """What a look at the folder gave. `batch`: the new batch; None when there was nothing new."""

    batch: str | None = None
    files: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)        # still being written
    quarantined: dict[str, str] = field(default_factory=dict)   # name -> the reason, one line


def collect(inbox: str | Path, incoming: str | Path, name: str, quiet_s: float, timeout_s: float,
            wait: Callable[[float], object] = time.sleep) -> Collected:
    """Copy the new videos of `inbox`, with their rows of its captions.csv, into a new batch called `name` (or name-2).

    `inbox` is a folder, or the address of a bucket, such as s3://bucket/new.

    A file is whole when its size and times have not changed for `quiet_s` seconds, between two looks if need be. A
    content that has been taken before, under any name, is not new. A file must decode within `timeout_s` seconds; one
    that does not is listed, and is looked at again only when its content changes.
    Raises: DataError when there is no such folder or bucket, or its captions.csv is wrong.
    """
    incoming = Path(incoming)
    if not is_address(inbox) and not Path(inbox).is_dir():
        raise DataError(f"{inbox}: need a folder of new videos, got none. Correct the path.")
    incoming.mkdir(parents=True, exist_ok=True)
    with lock(incoming / ".inbox.lock"):
        if not is_address(inbox):
            return _collect(Path(inbox), incoming, name, quiet_s, timeout_s, wait)
        with fetched(str(inbox), incoming) as folder:
            return _collect(folder, incoming, name, 0, timeout_s, wait)


def _collect(inbox: Path, incoming: Path, name: str, quiet_s: float, timeout_s: float,
             wait: Callable[[float], object]) -> Collected:
    notes = _Notes(incoming)
    videos = inbox / "videos" if (inbox / "videos").is_dir() else inbox
    whole, waiting = _whole_files(videos, quiet_s, wait)
    found = Collected(waiting=waiting)
    new = _new(videos, whole, notes, found)
    good = _decodable(videos, new, notes, found, timeout_s)
    if good:
        batch = _free_name(incoming, name)
        found.files = _write(inbox, videos, incoming / batch, good)
        found.batch = batch if found.files else None
    notes.take_own(incoming)
    notes.write()
    return found


class _Notes:
    """What has been taken: contents -> batch, and the content of each file as it was last seen."""

    def __init__(self, incoming: Path):
        self.path, self.quarantine = incoming / "inbox.json", incoming / "quarantine.jsonl"
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            self.contents: dict[str, str] = dict(kept["contents"])
            self.seen: dict[str, list] = dict(kept["seen"])
        except (OSError, ValueError, KeyError, TypeError):      # none yet, or a damaged one: the batches know theirs
            self.contents, self.seen = {}, {}
        self.take_own(incoming)

    def take_own(self, incoming: Path) -> None:
        """Add what the batches themselves list: a run may have been killed before it noted them here."""
        for path in sorted(incoming.glob(f"*/{OWN}")):
            try:
                self.contents |= dict.fromkeys(json.loads(path.read_text(encoding="utf-8")), path.parent.name)
            except (OSError, ValueError):
                continue

    def write(self) -> None:
        with atomic_file(self.path) as path:
            path.write_text(json.dumps({"contents": self.contents, "seen": self.seen}, indent=1), encoding="utf-8")

    def refuse(self, file: Path, content: str, reason: str) -> None:
        self.contents[content] = QUARANTINED
        with open(self.quarantine, "a", encoding="utf-8", newline="\n") as lines:
            lines.write(json.dumps({"path": shown(file), "sha256": content, "reason": reason}) + "\n")
        self.write()


def _whole_files(folder: Path, quiet_s: float, wait: Callable[[float], object]) -> tuple[dict[str, Stat], list[str]]:
    """Name -> status of the files that are not being written, and the names of the others."""
    first = _look(folder)
    fresh = [name for name, status in first.items() if not 0 <= quiet_s <= time.time() - max(status[1:]) / 1e9]
    if not fresh or quiet_s <= 0:
        return first, []
    wait(quiet_s)
    second = _look(folder)
    waiting = [name for name, status in second.items() if first.get(name) != status]
    return {name: status for name, status in second.items() if name not in waiting}, waiting


def _look(folder: Path) -> dict[str, Stat]:
    found: dict[str, Stat] = {}
    for path in find_videos(folder):
        try:
            status = path.stat()
        except OSError:         # gone since it was listed, or a broken link
            continue
        if status.st_size and path.is_file():
            found[path.relative_to(folder).as_posix()] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def _new(folder: Path, whole: dict[str, Stat], notes: _Notes, found: Collected) -> dict[str, str]:
    """Content -> name of the files whose content has not been taken. Files are read only if their status is new."""
    new: dict[str, str] = {}
    for name, status in whole.items():
        kept = notes.seen.get(name)
        if kept is None or tuple(kept[:3]) != status:
            try:
                notes.seen[name] = [*status, sha256(folder / name)]
            except DecodeError as error:        # unreadable now; the next run tries again
                found.quarantined[name] = str(error)
                continue
        content = notes.seen[name][3]
        if content not in notes.contents:
            new.setdefault(content, name)
    notes.seen = {name: kept for name, kept in notes.seen.items() if name in whole}
    return new


def _decodable(folder: Path, new: dict[str, str], notes: _Notes, found: Collected, timeout_s: float) -> dict[str, str]:
    """Those of `new` of which a frame can be decoded; the others are put on the list."""
    if not new:
        return {}
    jobs = [EncodeJob(content, str(folder / name), 1, CHECK_PIXELS, quality=CHECK_QUALITY)
            for content, name in new.items()]
    good = dict(new)
    with DecoderPool(1, timeout_s, encode_job) as pool:
        for job, result in pool.map(jobs):
            if isinstance(result, DecodeError):
                name = good.pop(job.key)
                found.quarantined[name] = str(result)
                notes.refuse(folder / name, job.key, str(result))
    return good


def _free_name(incoming: Path, name: str) -> str:
    number = 1
    while os.path.lexists(incoming / (name if number == 1 else f"{name}-{number}")):
        number += 1
    return name if number == 1 else f"{name}-{number}"


def _write(inbox: Path, videos: Path, batch: Path, good: dict[str, str]) -> list[str]:
    """Copy the files into a new batch; returns their names. One that has changed meanwhile is left to the next run."""
    rows = list(read_captions(inbox / "captions.csv")) if (inbox / "captions.csv").is_file() else []
    copied: dict[str, str] = {}
    with atomic_dir(batch) as folder:
        (folder / "videos").mkdir()
        for content, name in good.items():
            target = folder / "videos" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(videos / name, target)
            except FileNotFoundError:
                continue
            if sha256(target) == content:
                copied[content] = name
            else:
                target.unlink()
        names = set(copied.values())
        _write_captions(folder / "captions.csv", [row for row in rows if row.video in names])
        (folder / OWN).write_text(json.dumps(copied, indent=1), encoding="utf-8")
        if not copied:
            shutil.rmtree(folder / "videos")
    if not copied:
        shutil.rmtree(batch)
    return sorted(copied.values())


def _write_captions(path: Path, rows: list[Any]) -> None:
    if not rows:
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption", "start", "end"])
        writer.writerows([row.video, row.caption, "" if row.start_s is None else row.start_s,
                          "" if row.end_s is None else row.end_s] for row in rows)
