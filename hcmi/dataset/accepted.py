"""Accepted batches: folders of data/incoming whose clips are training data from the next run of the pipeline on.

`data/accepted.json` lists them, and belongs in git: the `dataset` stage depends on this list alone, so a batch that has
not been accepted makes no stage run again. A batch is named with the content that was judged. What has come into its
folder since is not used before that has been judged too.
"""

import hashlib
import heapq
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from hcmi.config import DatasetConfig, WindowsConfig
from hcmi.dataset.build_clips import LONGEST_ID
from hcmi.dataset.folder import NothingUsableError, read_folder
from hcmi.dataset.manifest import write_manifest
from hcmi.errors import DataError, DecodeError
from hcmi.files import write_json
from hcmi.types import Clip, Skip
from hcmi.video import find_videos, sha256

HELD_OUT = 4            # one clip of so many is never trained on, so that models can be compared on the batch [ours]
DIGEST = 12             # characters of a clip's content in its video_id


@dataclass(frozen=True)
class Accepted:
    """A batch that has been accepted."""

    batch: str
    content: str
    verdict: str
    accepted: str               # UTC
    files: Sequence[str] | None = None      # `file_contents` of that time; None: not known, all of the folder

    def of(self, clips: Iterable[Clip]) -> list[Clip]:
        """Those of the batch's clips whose file was in it when it was accepted."""
        there = None if self.files is None else set(self.files)
        return [clip for clip in clips if there is None or clip.sha256[:DIGEST] in there]


def read_accepted(path: str | Path) -> list[Accepted]:
    """The accepted batches, oldest first; none where there is no file. Raises: DataError when it is broken."""
    try:
        return [Accepted(**entry) for entry in json.loads(Path(path).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: need a list of accepted batches, got something else. Restore it from git.") from error


def file_contents(folder: str | Path) -> list[str]:
    """The contents of a batch's videos, by the first characters of their SHA-256."""
    found = set()
    for path in find_videos(folder):
        try:
            found.add(sha256(path)[:DIGEST])
        except DecodeError:         # cannot be read, so it is no clip
            continue
    return sorted(found)


def accept(path: str | Path, entry: Accepted, kept: Collection[str] = ()) -> bool:
    """Add a batch to the list, unless its content is there. Returns whether the list changed.

    A batch that has grown replaces what was accepted of it, but for the contents `kept`.
    """
    known = read_accepted(path)
    if entry.content in {old.content for old in known}:
        return False
    entries = [*(old for old in known if old.batch != entry.batch or old.content in kept), entry]
    write_json(path, [asdict(one) for one in entries])
    return True


def batch_clips(folder: str | Path, config: DatasetConfig, windows: WindowsConfig | None = None
                ) -> tuple[list[Clip], list[Skip]]:
    """Every clip of a batch in order of video_id, with or without captions, and what was left out.

    A video_id ends in a hash of the clip's content, because two batches may hold different files of one name. With
    `windows`, a long video without captions is divided, and each window is a clip.
    Raises: DataError when the captions are wrong or nothing is usable.
    """
    clips, skipped = read_folder(folder, config, captions_required=False, windows=windows)
    named = [replace(clip, video_id=_unique_id(clip), split="train") for clip in clips]
    return sorted({clip.video_id: clip for clip in named}.values(), key=lambda clip: clip.video_id), skipped


def _unique_id(clip: Clip) -> str:
    digest = hashlib.sha256(repr(clip.content_key).encode()).hexdigest()[:DIGEST]
    return f"{clip.video_id[:LONGEST_ID - 1 - DIGEST]}-{digest}"


def is_held_out(clip: Clip) -> bool:
    """Whether a clip of an accepted batch is kept for comparing models. It depends on the bytes of the file alone."""
    return int(hashlib.sha256(clip.sha256.encode()).hexdigest()[:8], 16) % HELD_OUT == 0


def accepted_clips(path: str | Path, incoming_dir: str | Path, config: DatasetConfig,
                   skip: Callable[[Skip], Any]) -> list[Clip]:
    """The clips that accepted batches add to the training split, in order of video_id: captioned and not held out.

    A batch of which no file can be used any more adds none: `skip` gets the reasons.
    Raises: DataError when an accepted batch is not there, or its captions are wrong.
    """
    found: dict[str, Clip] = {}
    for entry in read_accepted(path):
        folder = Path(incoming_dir) / entry.batch
        if not folder.is_dir():
            raise DataError(f"{folder}: need the batch that {path} lists, got none. Run `dvc pull`, or take it off the "
                            "list.")
        try:
            clips, skipped = batch_clips(folder, config)
        except NothingUsableError as error:
            clips, skipped = [], error.skipped
        for one in skipped:
            skip(one)
        found |= {clip.video_id: clip for clip in entry.of(clips) if clip.captions and not is_held_out(clip)}
    return sorted(found.values(), key=lambda clip: clip.video_id)


def with_accepted(base: Iterable[Clip], accepted: list[Clip], scratch: Path) -> Iterator[Clip]:
    """Both in order of video_id, without accepted clips whose bytes `base` has: those keep their own split.

    `base` is written to the file `scratch` first, because its contents must be known and may not fit the memory.
    """
    if not accepted:
        yield from base
        return
    write_manifest(base, scratch)
    with pq.ParquetFile(scratch) as file:
        known = set(pc.unique(file.read(columns=["sha256"])["sha256"]).to_pylist())
        rows = (Clip.from_row(row) for batch in file.iter_batches() for row in batch.to_pylist())
        new = (clip for clip in accepted if clip.sha256 not in known)
        yield from heapq.merge(rows, new, key=lambda clip: clip.video_id)
    scratch.unlink()
