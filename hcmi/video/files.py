"""Finding, checking and hashing files that people supply: any of them may have an odd name, be a pipe or a dead link.

What is wrong with one file is a `DecodeError` with one of `REASONS`. Every stage and verb reports it in a line for that
file and continues with the others. What the machine lacks is a `MachineError` and ends the run.
"""

import errno
import hashlib
import os
import stat
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hcmi.errors import DataError, DecodeError, HcmiError, MachineError, machine_error
from hcmi.files import walk
from hcmi.video.decoded import REASONS

# Endings of the files that are taken for videos. Some also hold sound or pictures only; those are refused when opened.
VIDEO_ENDINGS = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".heic", ".m2ts", ".m2v", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".ps", ".qt", ".rm", ".ts", ".vob",
    ".webm", ".wmv"))
TEXT_TOO = frozenset((".mts", ".ps", ".ts"))        # TypeScript and PostScript have these endings as well
HEAD_BYTES = 512
# First bytes of the containers that a file without an ending is looked at for, and where they stand.
SIGNATURES = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"FLV\x01"), (0, b"\0\0\x01\xba"),
              (0, b"0&\xb2u\x8ef\xcf\x11"))
# Brands of ISO 23008-12.
STILL_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avif", b"jpeg"))
MOVING_BRANDS = frozenset((b"hevc", b"hevx", b"hevm", b"hevs", b"msf1", b"avis"))
GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))
LACKING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE))     # of the machine
NOT_OPENED = GONE | {errno.EMFILE, errno.ENFILE}       # FFmpeg's other errors are about what is in the file
NEXT_STEPS = {"bad_name": "Rename it.", "outside": "Copy the file there.", "too_long": "Cut it into parts.",
              "missing": "Put it there, or correct its name.",
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
    """Raises: DecodeError when no file can be called `path`."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:      # half a character, which JSON can spell
        possible = False
    if not possible:
        raise refusal("bad_name", path)


def check_file(path: str | Path) -> None:
    """Raises: DecodeError when `path` is not a readable regular file, or is empty."""
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


def check_no_text(path: str | Path) -> None:
    """FFmpeg takes some texts for videos: lists of other files, which may be this file again.

    Raises: DecodeError when the file begins as a text.
    """
    with open(path, "rb") as file:
        if _is_plain_text(file.read(HEAD_BYTES)):
            raise refusal("not_a_video", path)


def is_still_image(path: str | Path, container: str) -> bool:
    """Whether a file is a photo. `container`: what FFmpeg calls its format.

    FFmpeg reads a photo as a video of one frame: HEIF as MP4, and others through its readers of images.
    """
    if container == "image2" or container.endswith("_pipe"):
        return True
    with open(path, "rb") as file:
        return _is_still_heif(file.read(HEAD_BYTES))


def _is_still_heif(head: bytes) -> bool:
    brands = {head[at:at + 4] for at in range(16, min(int.from_bytes(head[:4]), HEAD_BYTES), 4)} | {head[8:12]}
    return head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS and not brands & MOVING_BRANDS


def is_video_file(path: str | Path) -> bool:
    """Whether a file is taken for a video: by its ending, and by its first bytes where the ending does not say it.

    What the bytes show is left out silently: photos (.heic), source code (.ts) and documents (.ps). A file without an
    ending is a video if it begins like one. A file that cannot be read counts by its ending; opening it gives the
    reason. What other files than videos have the ending of one, such as a web page called film.mp4, is refused when it
    is opened.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending and ending not in VIDEO_ENDINGS:
        return False
    if ending and ending != ".heic" and ending not in TEXT_TOO:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):     # reading a pipe would block
            return bool(ending)
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return bool(ending)
    if not ending:
        return not _is_still_heif(head) and any(head.startswith(mark, at) for at, mark in SIGNATURES)
    return not (_is_still_heif(head) if ending == ".heic" else _is_plain_text(head))


def _is_plain_text(head: bytes) -> bool:
    return bool(head) and not any(byte < 32 and byte not in b"\t\n\r\f\x1b\x04" for byte in head)


def walk_files(folder: str | Path) -> list[Path]:
    """Sorted paths of all files below `folder`, of any kind, and of the folders that cannot be read.

    Hidden files and those of systems and archivers (`is_passed_over`) are left out. Links are followed as in `walk`.

    Raises: DataError when `folder` itself cannot be read.
    """
    found: list[Path] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == Path(folder):
            raise DataError(f"{folder}: need a folder that can be read, got: {error.strerror}. Correct its "
                            f"permissions.") from error
        found.append(Path(error.filename))
    for root, folders, files in walk(folder, onerror=note):
        found += [Path(root, name) for name in files]
        # a folder with the ending of a video is the user's mistake, and gets its line
        found += [Path(root, name) for name in folders if os.path.splitext(name)[1].lower() in VIDEO_ENDINGS]
    return sorted(found)


def find_videos(folder: str | Path) -> list[Path]:
    """The paths of `walk_files` that are taken for videos, and the folders that cannot be read.

    Raises: DataError when `folder` itself cannot be read.
    """
    return [path for path in walk_files(folder) if is_video_file(path) or os.path.isdir(path)]


def names_below(folder: str | Path) -> Callable[[str], str]:
    """A function that gives the name below `folder` of the file that a name in a table means.

    Where there is no file of exactly this name, spaces around it do not count: spreadsheets add them. macOS writes `é`
    as two characters (NFD) and most tables as one (NFC), so names are then compared in NFC. The name itself is returned
    where there is none at all.
    """
    known: dict[str, str] = {}

    def name_on_disk(name: str) -> str:
        if name != (bare := name.strip()) and not os.path.lexists(os.path.join(folder, name)):
            name = bare
        if name.isascii() or os.path.lexists(os.path.join(folder, name)):
            return name
        if not known:
            known[""] = ""          # so that the folder is walked once
            for path in walk_files(folder):
                below = path.relative_to(folder).as_posix()
                known.setdefault(unicodedata.normalize("NFC", below), below)
        return known.get(unicodedata.normalize("NFC", name), name)
    return name_on_disk


def likely_names(folder: str | Path) -> Callable[[str], str]:
    """A function that gives the one file below `folder` that a wrong name in a table may mean; "" where none is.

    Such a name has another case, backslashes, the folder's own name in front, or no ending. The folder is walked at the
    first call.
    """
    known: dict[str, str] = {}          # a name as it is compared -> the file; "" where there are several
    fronts = {f"{_compared(Path(os.path.abspath(folder)).name)}/", "videos/"}

    def likely(name: str) -> str:
        if not known:
            known[""] = ""
            for path in walk_files(folder):
                below = path.relative_to(folder).as_posix()
                stem, ending = os.path.splitext(below)
                for form in {below, stem} if ending.lower() in VIDEO_ENDINGS else {below}:
                    known[_compared(form)] = "" if _compared(form) in known else below
        name = _compared(name)
        forms = {name, *(name.removeprefix(front) for front in fronts)}
        found = [known[form] for form in forms if form in known]
        return found[0] if len(found) == 1 and os.path.exists(os.path.join(folder, found[0])) else ""
    return likely


def _compared(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")
