"""Jobs for the tests of the pool; in a module of their own because the child processes import it by name."""

import ctypes
import errno
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hcmi.errors import DecodeError


@dataclass(frozen=True)
class Job:
    key: int
    act: str = "echo"
    path: str = "clip.mp4"
    decoder: str = "pyav"

    def after_crash(self) -> "Job | None":
        return replace(self, decoder="pyav") if self.decoder == "auto" else None


def act(job: Job):
    """`echo`, `refuse`, `break`, `fill` the disk, `eat` the memory, `crash`, `killed`, `killed_once:MARK`, `hang`
    (holding the interpreter lock, as decord does), `spin`, `hang_in_decord` and `spin_in_decord`, which do so with one
    decoder only, `starve`: long waits for the processor, little work, `mark:PATH`: writes its process id and hangs."""
    if job.act == "refuse":
        raise DecodeError("no_frames", f"{job.path}: no")
    if job.act == "break":
        raise ZeroDivisionError("a bug")
    if job.act == "fill":
        raise OSError(errno.ENOSPC, "no room")
    if job.act == "eat":
        np.zeros(2**55)
    if job.act == "killed" or (job.act.startswith("killed_once:") and not Path(job.act[12:]).exists()):
        Path(job.act[12:] or os.devnull).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.act == "starve":
        for _ in range(20):
            time.sleep(0.1)
            stop = time.process_time() + 0.02
            while time.process_time() < stop:
                pass
    while job.act == "spin" or (job.act == "spin_in_decord" and job.decoder == "auto"):
        pass
    if job.act == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job.act == "hang" or (job.act == "hang_in_decord" and job.decoder == "auto"):
        ctypes.PyDLL(None).sleep(1000)
    if job.act.startswith("mark:"):
        Path(job.act.removeprefix("mark:")).write_text(str(os.getpid()))
        ctypes.PyDLL(None).sleep(1000)
    return job.key, job.decoder, os.getpid()
