"""Read the files of published annotations: text, JSON, JSON lines, tables. A fault is one line that names its place."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hcmi.dataset.captions import CaptionRow
from hcmi.errors import DataError

Rows = Iterator[CaptionRow]
LAYOUT = "docs/datasets.md shows the layouts that are read, and how to turn another into one of them."


def text_of(path: Path) -> str:
    """The text of a file in UTF-8 or else in Windows-1252. Raises: DataError, as all functions here do."""
    if path.exists() and not path.is_file():        # reading a pipe would block
        raise DataError(f"{path}: need a regular file, got something else. See docs/datasets.md.")
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: need this annotation file, found none. See docs/datasets.md.") from error
    except OSError as error:
        raise DataError(f"{path}: need a readable file, got {error.strerror}. Correct its permissions.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        content = content.removeprefix(codecs.BOM_UTF8)
        return content.decode("cp1252", errors="replace")       # some bytes of LSMDC's files are in this encoding


def json_of(path: Path, kind: type) -> Any:
    """The value in a JSON file, which must be of this kind."""
    try:
        value = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: need JSON, got: {error}. Download the file again.") from error
    return of_kind(value, kind, str(path))


def of_kind(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    """The value, if it is of this kind. `where` is its place, for the message."""
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{where}: need {wanted}, got {json.dumps(value)[:60]}. {LAYOUT}")
    return value


def field_of(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a key of `record`, if it is of this kind."""
    value = of_kind(record, dict, where).get(key)
    return of_kind(value, kind, f"{where}, {key}")


def strings_of(value: Any, where: str) -> list[str]:
    """The value, if it is a list of strings."""
    return [of_kind(one, str, where) for one in of_kind(value, list, where)]


def list_of(path: Path) -> list[str]:
    """The names in a file that has one in each line."""
    return [line.strip() for line in text_of(path).splitlines() if line.strip()]


def table_of(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The place (for messages) and the cells of each row of a CSV file with a header."""
    reader = csv.DictReader(io.StringIO(text_of(path)))
    try:
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path} row 1: need the column {missing[0]}, got "
                            f"{','.join(reader.fieldnames or ())[:60]!r}. {LAYOUT}")
        for number, row in enumerate(reader, start=2):
            if any(row[name] is None for name in columns):
                raise DataError(f"{path} row {number}: need {len(columns)} cells or more, got fewer. "
                                f"Download the file again.")
            yield f"{path} row {number}", row
    except csv.Error as error:
        raise DataError(f"{path}: need a CSV table, got: {error}. Download the file again.") from error


def pair_of(value: Any, where: str) -> tuple[Any, Any]:
    """The two members of a list."""
    if len(of_kind(value, list, where)) != 2:
        raise DataError(f"{where}: need two numbers, got {len(value)}. {LAYOUT}")
    return value[0], value[1]


def each(video: str, captions: list[str], split: str, where: str) -> Rows:
    """A row for each caption of a video."""
    for caption in captions:
        yield CaptionRow(video, caption.strip(), split=split, where=where)


def json_lines_of(path: Path) -> Iterator[tuple[str, Any]]:
    """The place (for messages) and the value of each line of a file of JSON lines; empty lines are passed over."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path} line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} line {number}: need JSON, got: {error}. Download the file again.") from error
