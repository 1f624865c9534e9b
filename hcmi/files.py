"""Writing outputs: each appears whole or not at all, and what keeps it from being written is reported in one line."""

import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hcmi.errors import WRITING, ConfigError, HcmiError, MachineError, file_of, machine_error, system_error

LEFT_SECONDS = 60       # an unlocked temporary folder of this age was left by a writer that was killed
TEMPORARY = re.compile(r"(?<![^/])\.([^/]+)\.\w{8}\.tmp(?![^/])")     # names of temporary files and folders
CHECKED_BYTES = 2**20   # a disk without room for this is full
# What systems and archivers put beside people's files, in lower case; names that start with a dot are theirs too.
SYSTEM_NAMES = frozenset(("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
                          "thumbs.db", "desktop.ini"))


def cache_folder() -> Path:
    """Where caches are kept, outside every project: $HCMI_CACHE, else hcmi in $XDG_CACHE_HOME, else ~/.cache/hcmi."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    home = caches if os.path.isabs(caches) else os.path.expanduser("~/.cache")      # XDG: a relative one is no path
    return Path(os.environ.get("HCMI_CACHE") or os.path.join(home, "hcmi"))


def project_path(path: str | Path) -> str:
    """Relative to the working folder (the repository's root) where it lies inside, else absolute; forward slashes."""
    whole = Path(os.path.abspath(path))
    here = Path.cwd()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.as_posix()


def project_of(path: str | Path) -> Path:
    """The folder of the project that `path` lies in: the nearest one with a dvc.yaml, else the working folder."""
    here = Path(os.path.abspath(path))
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), Path.cwd())


def from_project(path: str, project: Path) -> str:
    """A path that is relative to `project` as it is found from the working folder; absolute paths are unchanged."""
    return path if os.path.isabs(path) or project == Path.cwd() else str(project / path)


def webdataset_url(url: str) -> str:
    """The URL as webdataset opens it: s3://, which it does not know, becomes a call of the AWS command line."""
    return f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3://") else url


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden or the system's own, and so is never a person's data."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def folders_with_files(root: str | Path) -> list[Path]:
    """The folders in `root` that hold a file or cannot be listed, by name; `is_passed_over` ones are left out."""
    root = Path(root)
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []
    return [folder for folder in folders if not is_passed_over(folder.name) and _holds_files(folder)]


def _holds_files(folder: Path) -> bool:
    unlisted: list[OSError] = []
    return any(files for _, _, files in walk(folder, onerror=unlisted.append)) or bool(unlisted)


def walk(folder: str | Path, onerror: Callable[[OSError], object] | None = None,
         left_out: Callable[[str], bool] = is_passed_over) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, each folder with the names of its folders and files, but for the names that are `left_out`.

    A link to a folder is followed, but each folder is listed once: under its own name where that is below `folder`,
    else under that of the first link.
    """
    seen: set[str] = set()
    waiting = deque([str(folder)])
    while waiting:
        for root, folders, files in os.walk(waiting.popleft(), onerror=onerror):
            real = os.path.realpath(root)
            names = [] if real in seen else sorted(name for name in folders if not left_out(name))
            links = [name for name in names if os.path.islink(os.path.join(root, name))]
            waiting += [os.path.join(root, name) for name in links]
            folders[:] = [name for name in names if name not in links]
            if real not in seen:
                yield root, names, [name for name in files if not left_out(name)]
            seen.add(real)


def ask_to_write(*, folders: Mapping[Path | str, str | None] | None = None, files: Iterable[str | Path] = ()) -> None:
    """Check before long work that these outputs can be written; the check leaves nothing behind.

    `folders`: those that `atomic_dir` will replace, each with the name of a file by which an earlier output is known;
    None: whatever it holds. `files`: those that `atomic_file` will replace.
    Raises: MachineError when a place is read-only or full, or holds something of another kind; ConfigError when a
    folder holds files and is no earlier output, because a person's files would be lost.
    """
    for folder, sign in (folders or {}).items():
        folder = Path(folder)
        if os.path.lexists(folder) and not folder.is_dir():
            raise MachineError(f"{folder}: need a folder or nothing there, got a file. Move it away.")
        if os.path.ismount(folder):
            raise MachineError(f"{folder}: need a folder that can be replaced, got one where a disk is mounted. "
                               f"Name a folder inside it.")
        if sign and folder.is_dir() and not (folder / sign).is_file():
            names = sorted(path.name for path in folder.iterdir() if not is_passed_over(path.name))
            if names:
                more = f" and {len(names) - 1} more" if names[1:] else ""
                raise ConfigError(f"{folder}: need a folder that may be replaced, which is empty or has {sign}, got "
                                  f"one with {names[0]}{more}. Move it away, or name another folder.")
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
            file.write(bytes(CHECKED_BYTES))
            file.flush()
    except OSError as error:
        raise machine_error(path, "to write it", error) from error


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn a system error of the block about the output `path` into one line that names the output.

    Raises: MachineError. Other errors pass unchanged.
    """
    try:
        yield
    except HcmiError:
        raise
    except Exception as error:      # to find system errors inside the errors of libraries; all others pass unchanged
        found = system_error(error)
        if found is None or not _is_of(found, Path(path).absolute()):
            raise
        raise machine_error(TEMPORARY.sub(r"\1", str(path)), "to write it", found) from error


def _is_of(error: OSError, output: Path) -> bool:
    """Whether an error is about `output`, a file inside it or inside its temporary folder, or a parent folder."""
    name = file_of(error)
    if name is None:            # errors of open files name no file
        return error.errno in WRITING
    path = Path(os.path.abspath(name))
    if output.is_relative_to(path) or path.is_relative_to(output):
        return True
    return path.is_relative_to(output.parent) and path.relative_to(output.parent).parts[0].startswith(
        (f".{output.name}.", f"{output.name}.work"))


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; replace `path` with it when the block ends without an error.

    Raises: MachineError when it cannot be written; `path` is then unchanged.
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


def write_json(path: str | Path, content: Any) -> None:
    """Replace `path` with `content` as JSON for people and programs; names of files in it may have any bytes.

    Raises: MachineError when it cannot be written; `path` is then unchanged.
    """
    with atomic_file(path) as temporary:        # a byte that is no UTF-8 becomes JSON's own escape for it
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8",
                             errors="backslashreplace")


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; replace `path` with it when the block ends without an error.

    A folder cannot be replaced in one system call: the old one is renamed first. So there is a moment without a folder,
    but never a mixture of old and new. The next writer restores an old folder that a killed writer had renamed.
    Raises: MachineError when it cannot be written; `path` is then unchanged.
    """
    path = Path(path)
    with temporary_dir(path) as temporary:
        yield temporary
        _replace(temporary, path)


@contextmanager
def temporary_dir(path: str | Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, which is deleted after the block unless the block has renamed it.

    The next writer of `path` deletes the temporary folders of killed writers. Raises: MachineError.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
        with lock(temporary):       # so that other writers know that this one is alive
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def rename_new(temporary: Path, path: Path) -> None:
    """Give a folder its name. Raises: FileExistsError when something has that name, which stays as it is."""
    if not os.path.lexists(path):       # the system would replace an empty folder
        try:
            temporary.rename(path)
            return
        except OSError:
            if not os.path.lexists(path):
                raise
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _replace(temporary: Path, path: Path) -> None:
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


def sweep(path: Path) -> None:
    """Delete temporary folders of killed writers of `path`; restore an old `path` that one of them had renamed."""
    for left in path.parent.iterdir():
        if not (left.name.startswith(f".{path.name}.") and left.suffix in (".tmp", ".old") and left.is_dir()):
            continue
        with suppress(BlockingIOError, FileNotFoundError), lock(left, wait=False):      # its writer lives, or is done
            if time.time() - left.stat().st_ctime < LEFT_SECONDS:
                continue
            if left.suffix == ".old" and not path.exists():
                left.rename(path)
            else:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def lock(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold `path`, a folder or a file that is made where there is none, alone among all processes that use `lock`.

    The kernel frees it when the process ends in any way. A locked file holds the number of the process.
    Raises: BlockingIOError when another process holds it and `wait` is false; OSError when it cannot be opened.
    """
    path = Path(path)
    folder = path.is_dir()
    if not folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not folder:
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def is_locked(path: str | Path) -> bool:
    """Whether a process holds `path` with `lock`."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
