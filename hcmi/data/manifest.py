"""The manifest: one row a clip, sorted by video_id, in Parquet; and the lines that say what was left out and why."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hcmi.atomic import atomic_file
from hcmi.errors import DataError
from hcmi.types import Clip

SCHEMA = pa.schema([
    ("video_id", pa.string()), ("path", pa.string()), ("split", pa.string()), ("captions", pa.list_(pa.string())),
    ("start_s", pa.float64()), ("end_s", pa.float64()), ("duration_s", pa.float64()), ("sha256", pa.string()),
    ("tags", pa.map_(pa.string(), pa.string()))])
SPLITS = ("train", "val", "test")
SKIPPED_KEYS = ("video_id", "path", "stage", "reason", "detail")
ROWS_AT_ONCE = 10_000


def write_manifest(clips: Iterable[Clip], path: str | Path) -> int:
    """Write clips that arrive in order of video_id; a slice at a time, so a million fit in little memory. Count back.

    Raises: DataError when a video_id comes twice or out of order.
    """
    count, last = 0, ""
    rows = iter(clips)
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            for clip in chunk:
                if clip.video_id <= last:
                    fault = "twice" if clip.video_id == last else f"after {last!r}"
                    raise DataError(f"{path}: need every video_id once and in order, got {clip.video_id!r} {fault}. "
                                    f"Sort the clips and rename one of the two.")
                last = clip.video_id
            writer.write_table(_table(chunk))
            count += len(chunk)
    return count


def _table(clips: list[Clip]) -> pa.Table:
    columns = list(zip(*((*astuple(clip)[:-1], list(clip.tags.items())) for clip in clips), strict=True))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def iter_manifest(path: str | Path, split: str | None = None) -> Iterator[Clip]:
    """The manifest's clips in order of video_id, a slice at a time; only one split where asked.

    Raises: DataError when the file is missing or is not a manifest.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: need a manifest, found none. Run `hcmi dataset` first.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: need a manifest in Parquet, got: {error}. Run `hcmi dataset` again.") from error
    with file:
        if missing := set(SCHEMA.names) - set(file.schema_arrow.names):
            raise DataError(f"{path}: need the columns of a manifest, got none called {', '.join(sorted(missing))}. "
                            f"Run `hcmi dataset` again.")
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=SCHEMA.names):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                clip = Clip(*row)
                if split is None or clip.split == split:
                    yield replace(clip, captions=tuple(clip.captions), tags=dict(clip.tags))


def read_manifest(path: str | Path, split: str | None = None) -> list[Clip]:
    """All of `iter_manifest` at once."""
    return list(iter_manifest(path, split))


def skipped_line(row: dict[str, Any]) -> str:
    """One line of skipped.jsonl from a record with the keys `SKIPPED_KEYS`."""
    assert set(row) == set(SKIPPED_KEYS), f"skipped rows need the keys {SKIPPED_KEYS}, got {tuple(row)}"
    return json.dumps({key: row[key] for key in SKIPPED_KEYS}, ensure_ascii=False) + "\n"


def write_skipped(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write skipped.jsonl: what was left out, one record a line."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(skipped_line, rows))


def shown_path(path: str | Path) -> str:
    """Relative to the working folder (the repository's root) where it lies inside, else absolute; forward slashes."""
    whole = Path(os.path.abspath(path))
    here = Path.cwd()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.as_posix()
