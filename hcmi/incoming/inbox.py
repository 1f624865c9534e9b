"""New files of a folder become a batch in data/incoming: whole files alone, each content once, unreadable ones listed.

`data/incoming/inbox.json` remembers which contents have been taken; `data/incoming/quarantine.jsonl` lists the files
that cannot be read. A batch appears whole, with the list of its contents in it, so a run that is killed at any time
loses no file and takes none twice.
"""

import csv
import hashlib
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unicodedata import normalize

from hcmi.dataset import CaptionRow, read_captions, videos_folder
from hcmi.errors import DataError, DecodeError, shown
from hcmi.files import atomic_file, is_passed_over, lock, rename_new, sweep, temporary_dir, write_json
from hcmi.incoming.batches import OWN
from hcmi.incoming.bucket import CAPTIONS, fetched, is_address
from hcmi.progress import note
from hcmi.video import (
    LASTING_REASONS,
    MACHINE_REASONS,
    DecoderPool,
    EncodeJob,
    encode_job,
    find_videos,
    names_below,
    sha256,
)
from hcmi.wording import plural

QUARANTINED = ""            # in place of the batch's name
NOTHING = hashlib.sha256().hexdigest()      # the content of empty files
QUARANTINE = "quarantine.jsonl"
NEW = "new_batch"     # a batch is written beside it, hidden: the next run finds what a killed one of any day left
CHECK_PIXELS, CHECK_QUALITY = 64, 80

Stat = tuple[int, int, int]     # size, times of change of content and of inode
_Rows = Mapping[str, list[CaptionRow]]


@dataclass
class Collected:
    """What a look at the folder gave. `batch`: the new batch; None when there was nothing new."""

    batch: str | None = None
    files: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)        # still being written
    quarantined: dict[str, str] = field(default_factory=dict)   # name -> the reason, one line
    taken: int = 0      # files whose content earlier runs took ...
    refused: int = 0    # ... and files whose content they quarantined
    captioned: list[str] = field(default_factory=list)      # earlier batches to which captions have come
    remarks: list[str] = field(default_factory=list)        # sentences on what was left though a person may want it


def collect(inbox: str | Path, incoming: str | Path, name: str, quiet_s: float, timeout_s: float,
            wait: Callable[[float], object] = time.sleep) -> Collected:
    """Copy the new videos of `inbox`, with their rows of its captions.csv, into a new batch called `name` (or name-2).

    `inbox` is a folder, or the address of a bucket, such as s3://bucket/new.

    A file is whole when its size and times have not changed for `quiet_s` seconds, between two looks if need be. While
    captions.csv is being written nothing is taken. Captions that come after their videos join the videos' batch, which
    is found by content. A content that has been taken before, under any name, is not new. A file must decode within
    `timeout_s` seconds; one that does not is listed, and is looked at again only when its content changes. A wrong
    captions.csv changes nothing.
    Raises: DataError when there is no such folder or bucket, or its captions.csv is wrong.
    """
    incoming = Path(incoming)
    if not is_address(inbox) and not Path(inbox).is_dir():
        got = "a file. Name the folder that it is in" if os.path.exists(inbox) else "none. Correct the path"
        raise DataError(f"{inbox}: need a folder of new videos, got {got}.")
    incoming.mkdir(parents=True, exist_ok=True)
    with lock(incoming / ".inbox.lock"):
        if not is_address(inbox):
            return _collect(Path(inbox), incoming, name, quiet_s, timeout_s, wait)
        with fetched(str(inbox), incoming) as folder:
            return _collect(folder, incoming, name, 0, timeout_s, wait)


def _collect(inbox: Path, incoming: Path, name: str, quiet_s: float, timeout_s: float,
             wait: Callable[[float], object]) -> Collected:
    sweep(incoming / NEW)
    notes = _Notes(incoming)
    videos, captions = videos_folder(inbox), inbox / CAPTIONS
    first = _look(videos, captions)
    fresh = [name for name, status in first.items() if not 0 <= quiet_s <= time.time() - max(status[1:]) / 1e9]
    # what is wrong with the table is said before the wait, unless it may still be written
    rows = None if CAPTIONS in fresh else _rows(captions, videos)
    whole, waiting = first, []
    if fresh and quiet_s > 0:
        note(f"{shown(videos)}: {plural(len(fresh), 'file')} may still be written; looking again in {quiet_s:g} s")
        wait(quiet_s)
        whole = _look(videos, captions)
        waiting = [name for name, status in whole.items() if first.get(name) != status]
    found = Collected(waiting=waiting, remarks=_beside(inbox, videos, first))
    if CAPTIONS in waiting:
        return found
    if rows is None:
        rows = _rows(captions, videos)
    whole = {name: status for name, status in whole.items() if name not in (CAPTIONS, *waiting)}
    new = _new(videos, whole, notes, found)
    good = _decodable(videos, new, notes, found, timeout_s)
    of_content = _of_content(rows, notes)
    if good:
        found.batch, found.files = _write(videos, of_content, incoming, name, good)
    elsewhere = {name: some for name, some in rows.items() if name not in whole and name not in waiting}
    _add_late_captions(of_content, elsewhere, incoming, found)
    notes.take_own(incoming)
    notes.write()
    return found


def _made_here(incoming: Path) -> list[tuple[Path, dict[str, str]]]:
    """Each batch that was made here, oldest first, and its files: content -> name.

    A hidden folder is no batch: the one in which a killed run left its list will be deleted.
    """
    found = []
    for path in incoming.glob(f"*/{OWN}"):
        if is_passed_over(path.parent.name):
            continue
        try:
            found.append((path.stat().st_mtime_ns, path.parent, dict(json.loads(path.read_text(encoding="utf-8")))))
        except (OSError, ValueError, TypeError):
            continue
    return [(batch, names) for _, batch, names in sorted(found, key=lambda one: one[:2])]


class _Notes:
    """What has been taken: contents -> batch, and the content of each file as it was last seen."""

    def __init__(self, incoming: Path):
        self.path, self.quarantine = incoming / "inbox.json", incoming / QUARANTINE
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            self.contents: dict[str, str] = {content: batch for content, batch in kept["contents"].items()
                                             if not is_passed_over(batch)}      # earlier versions noted hidden ones
            self.seen: dict[str, list] = dict(kept["seen"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged: the batches know theirs
            self.contents, self.seen = {}, {}
        self.take_own(incoming)

    def take_own(self, incoming: Path) -> None:
        """Add what the batches themselves list: a run may have been killed before it noted them here."""
        for batch, names in _made_here(incoming):
            self.contents |= dict.fromkeys(names, batch.name)

    def write(self) -> None:
        write_json(self.path, {"contents": self.contents, "seen": self.seen})

    def refuse(self, file: Path, content: str, reason: str) -> None:
        self.contents[content] = QUARANTINED
        with open(self.quarantine, "a", encoding="utf-8", newline="\n") as lines:
            lines.write(json.dumps({"path": shown(file), "sha256": content, "reason": reason}) + "\n")
        self.write()


def _look(folder: Path, captions: Path) -> dict[str, Stat]:
    """Name -> status of the videos and of `captions`. Of a link that leads nowhere it is that of the link."""
    found: dict[str, Stat] = {}
    for name, path in [*((path.relative_to(folder).as_posix(), path) for path in find_videos(folder)),
                       (CAPTIONS, captions)]:
        with suppress(OSError):         # gone since it was listed
            status = path.stat() if os.path.exists(path) else path.lstat()
            found[name] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def _beside(inbox: Path, videos: Path, names: Iterable[str]) -> list[str]:
    """A remark where `inbox` has videos that are not below `videos`, its folder of them, under one of `names`."""
    if videos == inbox:
        return []
    taken = {os.path.realpath(videos / name) for name in names}
    beside = [path.relative_to(inbox).as_posix() for path in find_videos(inbox) if os.path.realpath(path) not in taken]
    if not beside:
        return []
    are, they_lie, them = ("is", "it lies", "it") if len(beside) == 1 else ("are", "they lie", "them")
    return [f"{_listed(beside)} {are} not taken, because {they_lie} beside the folder {videos.name}/. Move {them} into "
            "it."]


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
                if error.reason in LASTING_REASONS:     # there is nothing in it
                    notes.seen[name] = [*status, NOTHING]
                    notes.refuse(folder / name, NOTHING, str(error))
                continue
        content = notes.seen[name][3]
        if content not in notes.contents:
            new.setdefault(content, name)
        elif notes.contents[content] == QUARANTINED:
            found.refused += 1
        else:
            found.taken += 1
    notes.seen = {name: kept for name, kept in notes.seen.items() if name in whole}
    return new


def _decodable(folder: Path, new: dict[str, str], notes: _Notes, found: Collected, timeout_s: float) -> dict[str, str]:
    """Those of `new` of which a frame can be decoded; the others are put on the list, unless they went away."""
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
                if result.reason in LASTING_REASONS or (result.reason in MACHINE_REASONS
                                                        and _is(folder / name, job.key)):
                    notes.refuse(folder / name, job.key, str(result))
    return good


def _is(path: Path, content: str) -> bool:
    """Whether the file is there, and has this content."""
    try:
        return sha256(path) == content
    except DecodeError:
        return False


def _rows(captions: Path, videos: Path) -> _Rows:
    """Name of a file, as it is on the disk -> its rows in the table. Raises: DataError when the table is wrong."""
    found: dict[str, list[CaptionRow]] = defaultdict(list)
    name_on_disk = names_below(videos)
    for row in read_captions(captions) if captions.is_file() else ():
        found[name_on_disk(row.video)].append(row)
    return found


def _of_content(rows: _Rows, notes: _Notes) -> _Rows:
    """Content -> the rows of all files in the folder that have it."""
    found: dict[str, list[CaptionRow]] = defaultdict(list)
    for name, some in rows.items():
        if name in notes.seen:
            content = notes.seen[name][3]
            found[content] += _lacking(some, found[content])
    return found


def _lacking(some: Iterable[CaptionRow], known: Iterable[CaptionRow]) -> list[CaptionRow]:
    """The rows of `some` that are not in `known`, whatever the names of their videos."""
    there = {(row.caption, row.start_s, row.end_s) for row in known}
    return [row for row in some if (row.caption, row.start_s, row.end_s) not in there]


def _write(videos: Path, rows: _Rows, incoming: Path, name: str, good: dict[str, str]) -> tuple[str | None, list[str]]:
    """Copy the files into a new batch; returns its name and theirs. One that changes is left to the next run.

    `rows`: content -> its rows.
    """
    copied: dict[str, str] = {}
    with temporary_dir(incoming / NEW) as folder:
        (folder / "videos").mkdir()
        for content, file in good.items():
            target = folder / "videos" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(videos / file, target)
            except FileNotFoundError:
                continue
            if sha256(target) == content:
                copied[content] = file
            else:
                target.unlink()
        if not copied:
            return None, []
        contents = {file: content for content, file in copied.items() if content in rows}
        _write_captions(folder / CAPTIONS, {file: rows[contents[file]] for file in sorted(contents)})
        (folder / OWN).write_text(json.dumps(copied, indent=1), encoding="utf-8")
        return _put(folder, incoming, name), sorted(copied.values())


def _put(folder: Path, incoming: Path, name: str) -> str:
    """Give a batch the first free of the names `name`, name-2, ...: what a person put there meanwhile stays."""
    number, free = 1, name
    while True:
        with suppress(FileExistsError):
            rename_new(folder, incoming / free)
            return free
        number += 1
        free = f"{name}-{number}"


def _add_late_captions(of_content: _Rows, elsewhere: _Rows, incoming: Path, found: Collected) -> None:
    """Give the batches that were made here the rows that their videos lack; such a batch is judged again.

    `of_content`: content -> rows of files that are in the folder. `elsewhere`: name -> rows of files that are not: they
    are those of the only video that was taken under this name. A video that has a row which the table lacks gets none:
    the row was corrected in its batch, or the table's are those of a video to come.
    """
    place = {content: (batch, name) for batch, names in _made_here(incoming) for content, name in names.items()}
    table = cache(lambda batch: _rows(batch / CAPTIONS, batch / "videos"))
    taken: dict[str, list[str]] = defaultdict(list)
    for content, (_, name) in place.items():
        if content not in of_content:
            taken[normalize("NFC", name)].append(content)       # as `names_below` compares them

    def known(content: str) -> list[CaptionRow]:
        batch, name = place[content]
        return table(batch).get(name, [])

    claims = [(place[content][1], [content], some) for content, some in of_content.items() if content in place]
    claims += [(name, taken[normalize("NFC", name)], some) for name, some in elsewhere.items()]
    late: dict[Path, dict[str, list[CaptionRow]]] = defaultdict(dict)
    unclear = []
    for name, contents, some in claims:
        if not contents or any(not _lacking(some, known(content)) for content in contents):
            continue
        batch, file = place[contents[0]]
        if contents[1:] or _lacking(known(contents[0]), [*some, *elsewhere.get(file, ())]):
            unclear.append(name)
        else:
            late[batch][file] = _lacking(some, known(contents[0]))
    for batch in sorted(late):
        with atomic_file(batch / CAPTIONS) as path:
            _write_captions(path, {name: [*table(batch).get(name, ()), *late[batch].get(name, ())]
                                   for name in [*table(batch), *late[batch]]})
        found.captioned.append(batch.name)
    if unclear:
        found.remarks.append(
            f"{CAPTIONS}: rows of {_listed(unclear)} are not added: the video that was taken under this name has other "
            f"captions, or there are several. Write them into {CAPTIONS} of its batch; rows of a video to come wait "
            "for it.")


def _listed(names: list[str]) -> str:
    return shown(names[0]) + (f" and {len(names) - 1} more" if names[1:] else "")


def _write_captions(path: Path, rows: Mapping[str, list[CaptionRow]]) -> None:
    """A captions.csv; none where there are no rows. Bytes of a name that are no UTF-8 stay as they are."""
    if not rows:
        return
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption", "start", "end"])
        writer.writerows([name, row.caption, "" if row.start_s is None else row.start_s,
                          "" if row.end_s is None else row.end_s] for name, some in rows.items() for row in some)
