"""The manifest, a Parquet file with one row a clip sorted by video_id; and skipped.jsonl, what was left out and why."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hcmi.errors import DataError
from hcmi.files import atomic_file
from hcmi.types import CLIP_SCHEMA, Clip, Skip

ROWS_AT_ONCE = 10_000


def write_manifest(clips: Iterable[Clip], path: str | Path) -> int:
    """Write clips that come in order of video_id. Returns how many there were.

    They are written in groups, so that a million clips need little memory.

    Raises: DataError when a video_id comes twice or out of order.
    """
    count, last = 0, ""
    rows = iter(clips)
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, CLIP_SCHEMA, compression="zstd") as writer:
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            for clip in chunk:
                if clip.video_id <= last:
                    fault = "twice" if clip.video_id == last else f"after {last!r}"
                    raise DataError(f"{path}: need every video_id once and in order, got {clip.video_id!r} {fault}. "
                                    f"Sort the clips and rename one of the two.")
                last = clip.video_id
            writer.write_table(pa.Table.from_pylist([clip.to_row() for clip in chunk], CLIP_SCHEMA))
            count += len(chunk)
    return count


def read_manifest_table(path: str | Path) -> pa.Table:
    """The manifest as a table of `CLIP_SCHEMA`, in order of video_id; a million rows take about 250 MB.

    Raises: DataError when the file is missing, damaged or not a manifest.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = set(CLIP_SCHEMA.names) - set(file.schema_arrow.names)
            if not missing:
                return file.read(columns=CLIP_SCHEMA.names)
    except FileNotFoundError as error:
        raise DataError(f"{path}: need a manifest, found none. Run `hcmi dataset` first.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: need a manifest in Parquet, got: {error}. Run `hcmi dataset` again.") from error
    raise DataError(f"{path}: need the columns of a manifest, got none called {', '.join(sorted(missing))}. "
                    f"Run `hcmi dataset` again.")


def read_manifest(path: str | Path) -> list[Clip]:
    """The clips of the manifest, in order of video_id. Raises: DataError as `read_manifest_table` does."""
    return [Clip.from_row(row) for row in read_manifest_table(path).to_pylist()]


def sample_captions(path: str | Path, most_clips: int = 10_000) -> list[str]:
    """The captions of all clips, or of `most_clips` of them at equal distances. Raises: as `read_manifest_table`."""
    table = read_manifest_table(path)
    step = -(-table.num_rows // most_clips) or 1
    clips = table["captions"].take(pa.array(range(0, table.num_rows, step)))
    return [caption for captions in clips.to_pylist() for caption in captions]


def write_skipped(skips: Iterable[Skip], path: str | Path) -> None:
    """Write skipped.jsonl: what was left out, one record a line."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(skip.to_line() for skip in skips)
