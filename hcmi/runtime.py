"""Process-wide settings that training and encoding need; called by verbs, never at import."""

import ctypes
import platform
import random

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
