"""Outputs appear whole or not at all: write beside the target, then rename. What cannot be written is one line."""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hcmi.errors import WRITING, HcmiError, MachineError, file_of, machine_error, system_error

LEFT_SECONDS = 60       # a folder beside the target that nobody has held for so long is a killed writer's
TWIN = re.compile(r"(?<![^/])\.([^/]+)\.\w{8}\.tmp(?![^/])")      # what `atomic_dir` and `atomic_file` write to
ASKED_BYTES = 2**20     # a disk without room for this has none to speak of


def project_path(path: str | Path) -> str:
    """Relative to the working folder (the repository's root) where it lies inside, else absolute; forward slashes."""
    whole = Path(os.path.abspath(path))
    here = Path.cwd()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.as_posix()


def ask_to_write(*, folders: Iterable[str | Path] = (), files: Iterable[str | Path] = ()) -> None:
    """See that these outputs can be written, before hours of work for them; nothing of the question stays.

    `folders` are those that `atomic_dir` replaces.
    Raises: MachineError where a folder is read-only or full, or something else is in the output's place.
    """
    for folder in map(Path, folders):
        if os.path.lexists(folder) and not folder.is_dir():
            raise MachineError(f"{folder}: need a folder or nothing there, got a file. Move it away.")
        if os.path.ismount(folder):
            raise MachineError(f"{folder}: need a folder that can be replaced, got one where a disk is mounted. "
                               f"Name a folder inside it.")
        _try_to_write(folder)
    for file in map(Path, files):
        if file.is_dir():
            raise MachineError(f"{file}: need a file or nothing there, got a folder. Move it away.")
        _try_to_write(file)


def _try_to_write(path: Path) -> None:
    place = path.absolute().parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise MachineError(f"{path}: need the folder {place}, got a file in its place. Move it away.")
    try:
        with tempfile.NamedTemporaryFile(prefix=".hcmi.", dir=place) as file:
            file.write(bytes(ASKED_BYTES))
            file.flush()
    except OSError as error:
        raise machine_error(path, "to write it", error) from error


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what keeps the block from writing the output `path` into one line that names it.

    Raises: MachineError.
    """
    try:
        yield
    except HcmiError:
        raise
    except Exception as error:      # only to see whether the system refused; everything else goes on as it is
        found = system_error(error)
        if found is None or not _is_of(found, Path(path).absolute()):
            raise
        raise machine_error(TWIN.sub(r"\1", str(path)), "to write it", found) from error


def _is_of(error: OSError, output: Path) -> bool:
    """Whether an error is about `output`: itself, what lies in it or in its temporary twin, or folders on the way."""
    name = file_of(error)
    if name is None:            # of a file that is open
        return error.errno in WRITING
    path = Path(os.path.abspath(name))
    if output.is_relative_to(path) or path.is_relative_to(output):
        return True
    return path.is_relative_to(output.parent) and path.relative_to(output.parent).parts[0].startswith(
        (f".{output.name}.", f"{output.name}.work"))


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it over `path` when the block ends without error.

    Raises: MachineError when it cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes `path`'s place when the block ends without error.

    A folder cannot be replaced in one system call: the old one is renamed away first, so for a moment
    there is none, but never a mixture of old and new. What a killed writer left is swept, or put back by the next.
    Raises: MachineError when it cannot be written; `path` is then as it was.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
        held = os.open(temporary, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)        # ends with the process, however it ends
        try:
            yield temporary
            _take_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(held)


def _take_place(temporary: Path, path: Path) -> None:
    old = temporary.with_suffix(".old")
    if path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        with suppress(FileNotFoundError):
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Delete folders of killed writers of `path`; an old `path` they had renamed away takes its place again."""
    for left in path.parent.iterdir():
        if not (left.name.startswith(f".{path.name}.") and left.suffix in (".tmp", ".old") and left.is_dir()):
            continue
        try:
            folder = os.open(left, os.O_RDONLY)
        except OSError:         # its writer has just finished
            continue
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(folder).st_ctime < LEFT_SECONDS:
                continue
            if left.suffix == ".old" and not path.exists():
                left.rename(path)
            else:
                shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(folder)
