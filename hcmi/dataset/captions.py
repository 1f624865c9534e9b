"""The table of the `folder` format: `captions.csv` with the columns video,caption[,start,end,split], row by row."""

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hcmi.errors import DataError
from hcmi.progress import track
from hcmi.types import SPLITS
from hcmi.wording import plural

REQUIRED, OPTIONAL = ("video", "caption"), ("start", "end", "split")
UTF_16 = "\udcff\udcfe", "\udcfe\udcff"      # its first two bytes, as `surrogateescape` reads them
MAX_CELL = 1_000_000        # characters; a longer cell is an unclosed quote


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """One caption of a video or of a part of it, as the annotation gives it."""

    video: str
    caption: str | None         # "" for an empty cell, None where there is no table
    start_s: float | None = None
    end_s: float | None = None
    split: str | None = None
    where: str = ""             # for messages: "captions.csv row 7"


def read_captions(path: str | Path) -> Iterator[CaptionRow]:
    """The rows of a captions.csv in order, numbered from 1, as in a spreadsheet.

    The header is the first row that is not empty, and the first column that of its first cell that is not. The file is
    UTF-8 with or without byte-order mark, with any line ends. Captions may be empty; their surrounding and
    doubled white space is removed.

    Raises: DataError that names the file, the first wrong row, what it needs and what was found.
    """
    path = Path(path)
    if path.exists() and not path.is_file():        # reading a pipe would block
        raise DataError(f"{path}: need a regular file, got something else. Write the table there.")
    try:
        file = open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: need a table with the columns video,caption[,start,end,split], found none. "
                        f"Write one, or correct dataset.path.") from error
    except OSError as error:
        raise DataError(f"{path}: need a readable file, got {error.strerror}. Correct its permissions.") from error
    csv.field_size_limit(MAX_CELL)
    with file, track(total=os.path.getsize(path), description="reading captions", unit="B") as bar:
        cells = _rows(csv.reader(file, strict=True), path)
        first, head = next((found for found in cells if any(map(str.strip, found[1]))), (1, []))
        left = next((place for place, cell in enumerate(head) if cell.strip()), 0)
        columns = _header(path, first, head[left:])
        for number, row in cells:
            if any(map(str.strip, row[:left])):
                raise DataError(f"{path} row {number}: need {plural(left, 'empty cell')} before the first column, as "
                                f"row {first} has, got {_short(''.join(row[:left]))}. Move the row.")
            if any(map(str.strip, row)):
                yield _row(f"{path} row {number}", columns, row[left:])
            if number % 1000 == 0:
                bar.update(os.lseek(file.fileno(), 0, os.SEEK_CUR) - bar.n)
        bar.update(bar.total - bar.n)


def _rows(reader, path: Path) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            yield number, row
    except csv.Error as error:
        raise DataError(f"{path} row {number + 1}: need comma-separated cells with closed double quotes, got: {error}. "
                        f"Close the quote, and double the quotes inside a caption.") from error


def _check_text(where: str, cell: str, column: str) -> None:
    if column != "video" and not cell.isascii():        # a file name may have any bytes
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _not_utf8(where, cell) from error
    if "\0" in cell:
        raise DataError(f"{where}: need text, got a zero byte. Save the file as CSV in UTF-8.")


def _not_utf8(where: str, cell: str) -> DataError:
    """The error about a cell that was read with `surrogateescape`."""
    byte = next(ord(char) - 0xDC00 for char in cell if "\udc80" <= char <= "\udcff")
    if cell.startswith(UTF_16):
        return DataError(f"{where}: need UTF-8, got UTF-16. Save the file as UTF-8.")
    return DataError(f"{where}: need UTF-8, got the byte 0x{byte:02x}. Save the file as UTF-8.")


def _header(path: Path, number: int, cells: list[str]) -> list[str]:
    where = f"{path} row {number}"
    for cell in cells:
        _check_text(where, cell, "")
    columns = [cell.strip() for cell in cells]
    while columns and not columns[-1]:          # spreadsheets write the empty cells beside a table, too
        columns.pop()
    known = ",".join(REQUIRED) + "[," + ",".join(OPTIONAL) + "]"
    got = ",".join(columns)
    if not columns:
        raise DataError(f"{where}: need the columns {known}, got none. Write them there.")
    if columns[0].startswith("sep="):
        raise DataError(f"{where}: need the columns {known}, got {_short(','.join(cells))}, which only Excel "
                        f"reads. Remove row {number}.")
    if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        raise DataError(f"{where}: need each column once, got {twice[0]!r} twice. Remove one of the two.")
    if missing := [name for name in REQUIRED if name not in columns]:
        if len(columns) == 1 and (other := next((mark for mark in ";\t|" if mark in columns[0]), "")):
            raise DataError(f"{where}: need commas between the cells, got {other!r}. Save the table as CSV with "
                            f"commas.")
        if {name.lower() for name in columns} >= set(REQUIRED):
            raise DataError(f"{where}: need the columns {known}, got {_short(got)}. Write the names in small "
                            f"letters.")
        raise DataError(f"{where}: need the columns {known}, got {_short(got)}. Add the column {missing[0]}.")
    if unknown := [name for name in columns if name not in REQUIRED + OPTIONAL]:
        raise DataError(f"{where}: need only the columns {known}, got {_short(unknown[0])}. Rename or remove it.")
    return columns


def _row(where: str, columns: list[str], cells: list[str]) -> CaptionRow:
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) < len(columns) and set(columns[len(cells):]) <= set(OPTIONAL):     # Excel leaves out empty cells
        cells += [""] * (len(columns) - len(cells))
    if len(cells) != len(columns):
        raise DataError(f"{where}: need {len(columns)} cells ({','.join(columns)}), got {len(cells)}. "
                        f"Put a caption that holds a comma in double quotes.")
    values = dict(zip(columns, cells, strict=True))
    for column, cell in values.items():
        _check_text(where, cell, column)
    video, split = plain_name(values["video"]), values.get("split", "").strip()
    if not video.strip():
        raise DataError(f"{where}: need the name of a video, got an empty cell. Fill it in or remove the row.")
    if split and split not in SPLITS:
        raise DataError(f"{where}: need a split of {', '.join(SPLITS)} or none, got {_short(split)}. Correct the cell.")
    start_s, end_s = (_seconds(where, name, values.get(name, "")) for name in ("start", "end"))
    if end_s is not None and end_s <= (start_s or 0.0):
        raise DataError(f"{where}: need end after start, got {start_s or 0.0:g} to {end_s:g}. Correct the two cells.")
    return CaptionRow(video, " ".join(values["caption"].split()), start_s, end_s, split or None, where)


def plain_name(name: str) -> str:
    """The name of a file without empty parts and dots: `./a.mp4` and `a.mp4` are one video."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/" * name.startswith("/") + "/".join(parts)


def _seconds(where: str, name: str, cell: str) -> float | None:
    if not cell.strip():
        return None
    try:        # Python also reads 0_1 and digits of other scripts
        value = float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise DataError(f"{where}: need {name} in seconds from 0, got {_short(cell)}. Correct the cell or empty it.")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
