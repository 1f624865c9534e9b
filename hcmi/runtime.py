"""Process-wide settings that training and encoding need; called by verbs, never at import."""

import ctypes
import os
import platform
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch

from hcmi.errors import ConfigError


def tune_allocator() -> None:
    """Keep freed memory in the process instead of giving it back to the system after each step.

    glibc unmaps big blocks on free and faults them in again on the next allocation: measured 6-8 times slower
    training steps on CPU. Values are glibc's `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`, `M_TOP_PAD`.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**28)):
        mallopt(ctypes.c_int(option), ctypes.c_int(value))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with this thread alone inside the block: for work of a few milliseconds, such as one query.

    OpenMP's threads wait for one another by spinning. On a busy machine the awaited one is often not running:
    one query took 890 ms of wall time for 13 ms of computing.
    Only the calling thread is concerned. `torch.set_num_threads` would not do: threads that start meanwhile keep its 1.
    """
    before = torch.get_num_threads()
    library = _torch_library()
    if before == 1 or library is None:
        yield
        return
    set_mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)       # a build without MKL has none
    library.omp_set_num_threads(1)
    mkl_before = set_mkl(1) if set_mkl else 0
    try:
        yield
    finally:
        library.omp_set_num_threads(before)
        if set_mkl:
            set_mkl(mkl_before)


@cache
def _torch_library() -> ctypes.CDLL | None:
    """The library that holds torch's kernels, and with it the OpenMP it was linked to; None in an unusual build."""
    for path in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_set_num_threads"):
            return library
    return None


@cache
def single_after_fork(set_num_threads: Callable[[int], None]) -> None:
    """Have forked children of this process compute with one thread, as `set_num_threads` sets it.

    A child has none of its parent's OpenMP threads and waits for them for ever at the first work it wants to share.
    """
    os.register_at_fork(after_in_child=lambda: set_num_threads(1))


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else CPU; anything else is taken at its word.

    Raises: ConfigError when CUDA is asked for and absent, or the name is unknown to torch.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: need auto, cpu or cuda[:N], got {name!r}. Correct train.device.") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device: need a CUDA GPU for {name!r}, got {count or 'none'} on this machine. "
                          f"Set train.device to auto.")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32.

    On a CPU that is AVX512-BF16 or AMX: matrix products measured 2.7-4 times float32's speed; without, they are slower.
    """
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def seed_everything(seed: int) -> None:
    """Seed the global generators that torch layers draw their initial weights from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
