"""Arrays of features on disk: named by what they were computed from, written whole or not at all, and memory-mapped.

They are in `features/` in the folder of caches (`cache_folder`), and so outside every output of the pipeline:
experiments share them. Any of them may be deleted when no run is under way.
"""

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hcmi.errors import MachineError
from hcmi.files import ask_to_write, atomic_file, cache_folder, lock, writing

ELSEWHERE = "HCMI_CACHE names another folder for kept features."


def features_folder() -> Path:
    return cache_folder() / "features"


def open_array(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The float16 array of that file, memory-mapped; None when there is none, or it is not what was written."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float16 else None


def make_array(path: Path, shape: tuple[int, int], parts: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """The array of that file; where there is none, it is written from `parts`, which are its rows one after the other.

    When another process is writing it, its array is awaited and used.
    Raises: MachineError when it cannot be written; there is no file then.
    """
    with _held(path):
        if (found := open_array(path, shape)) is not None:
            return found
        for left in path.parent.glob(f".{path.name}.*.tmp"):    # of writers that were killed: this one holds the lock
            left.unlink(missing_ok=True)
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            rows = 0
            for part in parts():        # not into a memory map: a full disk would kill the process there
                rows += len(part)
                file.write(np.ascontiguousarray(part, dtype=np.float16).data)
            assert rows == shape[0], f"need {shape[0]} rows, got {rows}"
    found = open_array(path, shape)
    assert found is not None, f"{path} was just written"
    return found


def ask_for_room(size_bytes: int) -> None:
    """Before the work: whether so many bytes of features can be written. Raises: MachineError."""
    folder = features_folder()
    try:
        ask_to_write(files=[folder / "features.npy"])
    except MachineError as error:
        raise MachineError(f"{error} {ELSEWHERE}") from error
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if size_bytes > free_bytes:
        raise MachineError(f"{folder}: need {size_bytes / 1e9:.2f} GB for the features of the towers, got "
                           f"{free_bytes / 1e9:.2f} GB. Free space, or lower shards.num_frames. {ELSEWHERE}")


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Be the only process that writes this file."""
    own = path.with_name(f".{path.name}.lock")
    with writing(path):
        own.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(own, wait=False)
            held.__enter__()
        except BlockingIOError:
            warnings.warn(f"{path.parent}: another run computes the same features. This one waits for them.",
                          stacklevel=4)
            held = lock(own)
            held.__enter__()
    try:
        yield
    finally:
        held.__exit__(None, None, None)
