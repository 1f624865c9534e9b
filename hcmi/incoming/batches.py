"""Which batches in data/incoming are still to be judged: every complete batch whose content no report has judged.

Batches are known by content, not by time. So a batch that was copied with its old times is judged, and so are two
batches that arrive together. A batch that grew after its report has new content and is judged again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hcmi.files import folders_with_files, walk, write_json
from hcmi.scenes import BATCHES
from hcmi.video import find_videos

LOG = "queries.jsonl"   # as the room drift calls it, whose stage would depend on Scenes if it took the name from here
OWN = "batch.json"      # in a batch that `collect` made, which appeared whole: content -> name of the file
Look = dict[bytes, tuple[int, int, int]]        # name in the batch -> size, times of change of content and of inode


def find_batches(incoming: Path) -> list[Path]:
    """Folders that hold a file, by name. Hidden folders are left out: a batch can be copied under a hidden name."""
    return [folder for folder in folders_with_files(incoming) if look(folder)]


def arrivals(incoming: Path) -> list[Path]:
    """The batches that came from outside.

    The pipeline itself makes `BATCHES`, to show a report, and its stage `drift` reports on them: they are judged again
    only when they are named.
    """
    return [folder for folder in find_batches(incoming) if folder.name not in BATCHES]


def is_query_log(folder: Path) -> bool:
    """Whether a batch holds what people searched for, and no videos: it is reported on, and nothing else follows."""
    return (folder / LOG).is_file() and not find_videos(folder)


def look(folder: Path) -> Look:
    """Size and times of every file in `folder`, without opening any: hidden ones too, which a copy may still write."""
    seen: Look = {}
    for parent, _, names in walk(folder, left_out=lambda name: False):
        for name in names:
            path = os.fsencode(os.path.join(parent, name))
            try:
                status = os.stat(path) if os.path.exists(path) else os.lstat(path)      # a broken link: the link itself
            except FileNotFoundError:       # deleted since the folder was listed
                continue
            seen[os.path.relpath(path, os.fsencode(folder))] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return seen


def complete(batches: list[Path], quiet_s: float, patience_s: float,
             wait: Callable[[float], object] = time.sleep) -> Iterator[tuple[Path, Look]]:
    """Yield each batch as soon as nothing in it has changed for `quiet_s` seconds; one that `collect` made at once.

    Batches that still change after `patience_s` seconds are not yielded: they are still being copied. The times of
    inodes count as well, because `cp -p` and `rsync -t` restore the times of the content.
    """
    looks: dict[Path, Look] = {}
    for looks_left in reversed(range(1 + max(1, round(patience_s / max(quiet_s, 1))))):
        for batch in list(batches):
            seen = look(batch)
            newest = max((max(times) for _, *times in seen.values()), default=0)
            made = max(seen.get(OWN.encode(), (0,))) >= newest      # its list was written last, and nothing since
            if seen and (made or seen == looks.get(batch) or time.time() - newest / 1e9 >= quiet_s):
                batches = [other for other in batches if other != batch]
                yield batch, seen
            looks[batch] = seen
        if not batches or not looks_left:
            return
        wait(quiet_s)


class Ledger:
    """Which contents have been judged: `judged.json` beside the reports, replaced after each change."""

    def __init__(self, folder: Path):
        self.path = folder / "judged.json"
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            self.verdicts: dict[str, dict[str, Any]] = dict(kept["verdicts"])
            self.looks: dict[str, list[str]] = dict(kept["looks"])
        except (OSError, ValueError, KeyError, TypeError):     # no such file yet, or a damaged one
            self.verdicts, self.looks = {}, {}

    def content(self, batch: Path, seen: Look) -> str:
        """Digest of the names and bytes in the batch. Files are read only if `seen` differs from the last look."""
        signature = hashlib.blake2b(repr(sorted(seen.items())).encode(), digest_size=16).hexdigest()
        if self.looks.get(batch.name, ["", ""])[0] != signature:
            self.looks[batch.name] = [signature, _digest(batch, sorted(seen))]
            self._write()
        return self.looks[batch.name][1]

    def record(self, content: str, batch: str, verdict: str) -> None:
        """Remember the verdict on this content."""
        self.verdicts[content] = {"batch": batch, "verdict": verdict}
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"verdicts": self.verdicts, "looks": self.looks})


def _digest(batch: Path, names: list[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        path = os.path.join(os.fsencode(batch), name)
        digest.update(b"%d %b" % (len(name), name))
        if os.path.isfile(path):
            try:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "blake2b").digest())
            except OSError:         # the report will name the file and the reason
                digest.update(b"unreadable")
    return digest.hexdigest()
