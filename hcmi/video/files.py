"""Finding, checking and hashing files that people supply: any of them may have an odd name, be a pipe or a dead link.

What is wrong with one file is a `DecodeError` with one of `REASONS`. Every stage and verb reports it in a line for that
file and continues with the others. What the machine lacks is a `MachineError` and ends the run.
"""

import errno
import hashlib
import os
import stat
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hcmi.errors import DataError, DecodeError, HcmiError, MachineError, machine_error, shown
from hcmi.video.decoded import REASONS

# Endings of the files that are taken for videos. Some also hold sound or pictures only; those are refused when opened.
VIDEO_ENDINGS = frozenset((
    ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".heic", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".ps", ".rm", ".ts", ".vob", ".webm", ".wmv"))
GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))
LACKING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE))     # of the machine
NOT_OPENED = GONE | {errno.EMFILE, errno.ENFILE}       # FFmpeg's other errors are about what is in the file
NEXT_STEPS = {"bad_name": "Rename it.", "outside": "Copy the file there.", "too_long": "Cut it into parts.",
              "unexpected": "Remove the file, and report this message."}


def refusal(reason: str, path: str | Path, detail: str = "") -> DecodeError:
    """The error that says why a file is left out."""
    found = REASONS[reason] + (f" ({detail})" if detail else "")
    return DecodeError(reason, f"{path}: need a video that can be decoded, got {found}. "
                               f"{NEXT_STEPS.get(reason, 'Replace or remove the file.')}", str(path))


@contextmanager
def one_file(path: str | Path) -> Iterator[None]:
    """Attribute every failure of the block to this file, unless the machine lacks something.

    Raises: DecodeError, MachineError.
    """
    try:
        yield
    except HcmiError:
        raise
    except MemoryError as error:
        raise MachineError(f"{path}: need memory to decode it, got: {error or 'none'}. Free memory, lower "
                           f"shards.num_workers, or remove the file.") from error
    except ImportError as error:
        raise MachineError(f"hcmi: need all its packages, got: {error}. Install it again.") from error
    except OSError as error:
        if error.errno in LACKING:
            raise machine_error(path, "to read it", error) from error
        reason = "missing" if error.errno in GONE else "unreadable"
        raise refusal(reason, path, "" if reason == "missing" else os.strerror(error.errno or 0)) from error
    except Exception as error:      # a library's error or a bug of ours: the other files must not suffer from it
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name} line {place.lineno}"
        raise refusal("unexpected", path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}, in {where}"
                      ) from error


def is_text(text: str) -> bool:
    """Whether UTF-8 can encode `text`. File names may have any bytes, and JSON can spell half a character."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def check_name(path: str | Path) -> None:
    """Raises: DecodeError when `path` is not one line of text, as tables, JSON and messages need it."""
    if shown(path) != str(path):
        raise refusal("bad_name", path)


def check_file(path: str | Path) -> None:
    """Raises: DecodeError when `path` is not a readable regular file, is empty, or is not one line of text."""
    check_name(path)
    with one_file(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):    # reading a pipe would block
            raise refusal("unreadable", path)
        if status.st_size == 0:
            raise refusal("empty_file", path)


def sha256(path: str | Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises: DecodeError as `check_file` does, and when reading fails."""
    check_file(path)
    with one_file(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_videos(folder: str | Path) -> list[Path]:
    """Sorted paths below `folder` with one of `VIDEO_ENDINGS`, of any kind of file, and folders that cannot be read.

    Hidden files and folders are left out. Links to folders are not followed.

    Raises: DataError when `folder` itself cannot be read.
    """
    found: list[Path] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == Path(folder):
            raise DataError(f"{folder}: need a folder that can be read, got: {error.strerror}. Correct its "
                            f"permissions.") from error
        found.append(Path(error.filename))
    for root, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in (*folders, *files)
                  if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_ENDINGS]
    return sorted(found)
