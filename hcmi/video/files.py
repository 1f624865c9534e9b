"""Files that people gave, any one of which may be anything: a name in another encoding, a pipe, a dead link, a crash.

What goes wrong with one of them is a `DecodeError` with one of `REASONS`, which every stage and verb turns into that
file's line while the others go on. What the machine lacks is a `MachineError` and ends the run.
"""

import errno
import hashlib
import os
import stat
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from hcmi.errors import DataError, DecodeError, HcmiError, MachineError, machine_error, shown
from hcmi.video.decoded import REASONS

GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))
LACKING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE))     # of the machine
NOT_OPENED = GONE | {errno.EMFILE, errno.ENFILE}       # FFmpeg's other errors tell what is in the file
NEXT_STEPS = {"bad_name": "Rename it.", "outside": "Copy the file there.",
              "unexpected": "Remove the file, and report this message."}


def refusal(reason: str, path: str | Path, detail: str = "") -> DecodeError:
    """Why a file is left out."""
    found = REASONS[reason] + (f" ({detail})" if detail else "")
    return DecodeError(reason, f"{path}: need a video that can be decoded, got {found}. "
                               f"{NEXT_STEPS.get(reason, 'Replace or remove the file.')}", str(path))


@contextmanager
def one_file(path: str | Path) -> Iterator[None]:
    """The border of one file: whatever fails inside is the fault of this file, unless the machine lacks something.

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
    except Exception as error:      # a library's, or a bug of ours: nobody can list them, and the other files go on
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name} line {place.lineno}"
        raise refusal("unexpected", path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}, in {where}"
                      ) from error


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: names of files may have any bytes, and JSON can spell halves of characters."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def check_name(path: str | Path) -> None:
    """Names go into tables, JSON and messages, which hold text of one line. Raises: DecodeError for any other."""
    if shown(path) != str(path):
        raise refusal("bad_name", path)


def check_file(path: str | Path) -> None:
    """Raises: DecodeError when `path` is no regular file that can be opened, is empty, or its name is no text."""
    check_name(path)
    with one_file(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):    # a pipe would wait for ever
            raise refusal("unreadable", path)
        if status.st_size == 0:
            raise refusal("empty_file", path)


def sha256(path: str | Path) -> str:
    """Of the file's bytes. Raises: DecodeError as `check_file` does, and when reading fails."""
    check_file(path)
    with one_file(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_files(folder: str | Path, endings: Collection[str]) -> list[Path]:
    """All below `folder` that is called like a video, whatever it is, in order; and folders that cannot be looked into.

    Hidden files and folders are left out; links to folders are not followed.
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
                  if not name.startswith(".") and os.path.splitext(name)[1].lower() in endings]
    return sorted(found)
