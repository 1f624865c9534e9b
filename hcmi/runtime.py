"""Process-wide settings for training and encoding. They are set by functions, never at import."""

import ctypes
import os
import platform
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import torch

from hcmi.errors import ConfigError


def tune_allocator() -> None:
    """Keep freed memory in the process instead of returning it to the system after each step.

    By default glibc unmaps big blocks when they are freed and maps them again at the next allocation. Training steps on
    a CPU were 6 to 8 times slower. The values are glibc's `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`, `M_TOP_PAD`.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**28)):
        mallopt(ctypes.c_int(option), ctypes.c_int(value))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with the calling thread alone inside the block, for short work such as one query.

    OpenMP threads wait for one another by spinning. On a busy machine the thread they wait for is often not running:
    one query took 890 ms of wall time for 13 ms of computing.
    Other threads are not affected. `torch.set_num_threads` would affect threads that start inside the block.
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
    """The library with torch's kernels, through which its OpenMP is reached; None in an unusual build."""
    for path in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_set_num_threads"):
            return library
    return None


@cache
def single_after_fork(set_num_threads: Callable[[int], None]) -> None:
    """Make forked children of this process compute with one thread; `set_num_threads` is the library's function.

    A forked child has none of its parent's OpenMP threads, and would wait for them forever.
    """
    os.register_at_fork(after_in_child=lambda: set_num_threads(1))


def pick_device(name: str) -> torch.device:
    """The torch device of a name; `auto` is CUDA where the machine has it, else the CPU.

    Raises: ConfigError when the device is not there, or torch does not know the name.
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
    """The precision of a name; `auto` is bfloat16 where the hardware multiplies it natively, else float32.

    CPUs with AVX512-BF16 or AMX do: matrix products were 2.7 to 4 times as fast as in float32. On others it is slower.
    """
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def count_workers(wanted: int | str, device: torch.device, processes: int = 1) -> int:
    """Loader processes of each of the training processes of this machine; `auto` counts the cores.

    With a GPU, all cores of a process decode but one, which launches work: on 16 cores, 15 workers gave up to 1,765
    clips of 12 frames of 224 pixels a second, 8 up to 1,275 and 1 gave 220. A CPU computes with all of its cores, and
    one worker keeps ahead of it.
    """
    if wanted != "auto":
        return int(wanted)
    return max(count_cores() // processes - 1, 1) if device.type == "cuda" else 1


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. A GPU is not waited for: the copy goes through pinned memory and joins its queue.

    `tensor.to` waits until the GPU has done all that it was given before.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let GPUs multiply float32 matrices in TF32 inside the block, if `allowed`; else leave it as it was set.

    TF32 has 10 bits after the point and bfloat16 7. A CPU is not affected.
    """
    before = torch.get_float32_matmul_precision()
    if not allowed or before != "highest" or not torch.cuda.is_available():
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def free_memory_bytes() -> int:
    """Memory that processes can still take: the machine's, or that of a container with a lower limit."""
    free = [psutil.virtual_memory().available]
    for place, limit, used in (("", "memory.max", "memory.current"),                                # cgroup 2
                               ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")):       # cgroup 1
        folder = Path("/sys/fs/cgroup", place)
        try:
            most, taken = (int((folder / name).read_text(encoding="utf-8")) for name in (limit, used))
            lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):       # no such file, or the word `max`
            continue
        cached = sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))
        free.append(most - taken + cached)
    return max(min(free), 0)


def own_memory_bytes() -> int:
    """Memory that this process holds."""
    return psutil.Process().memory_info().rss


def seed_everything(seed: int) -> None:
    """Seed the global generators, from which torch layers draw their initial weights."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
