"""Child processes with a deadline for each job. A process that hangs is killed, one that crashes is replaced.

Plain `subprocess` children instead of `multiprocessing`: they do not run the caller's main module again, inherit no
lock and no open file, and may be started from any thread.
"""

import ctypes
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from hcmi.errors import DecodeError, HcmiError, MachineError
from hcmi.video.files import one_file, refusal
from hcmi.video.jobs import decode_job

START_TIMEOUT_S = 120.0
IDLE_SHARE = 0.01                   # of one core; a process that uses less is blocked, not just waiting to be scheduled
SHORTEST_LOOK_S = 0.25              # over a shorter time a process that waits to be scheduled looks idle
JOBS_BEFORE_REPLACEMENT = 2000      # decoders leak memory; a new process costs 0.3 s
# Frames are big blocks. By default glibc returns a freed one to the system and then faults the next one in again.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
_CHILD = "import sys; from hcmi.video.pool import _child_main; _child_main(int(sys.argv[1]), *sys.argv[2:])"


@dataclass
class _Worker:
    process: subprocess.Popen
    pipe: Connection
    ready: bool = False
    done: int = 0
    jobs: deque = field(default_factory=deque)      # the first is running
    since: float = 0.0                              # monotonic time at which the first began or was last checked
    wait_s: float = START_TIMEOUT_S                 # from then until the next check
    cpu_first_s: float = 0.0                        # processor time when the first began
    cpu_last_s: float = 0.0                         # processor time at the last check


class DecoderPool:
    """`num_workers` processes (0: one per core) that run `function(job)` on each job within `timeout_s`.

    The time limit is for an idle machine: a job is stopped when it has used that much processor time, or has been idle
    for that long. A busy machine therefore does not change the result.

    A job may have a method `after_crash()` that gives another job or None. When the job hangs or crashes its process,
    that other job is run instead. A job that has computed for all its time is not replaced: another would be as slow.
    Anything else that fails in `function` is a `DecodeError` too (`one_file`). Use the pool as a context manager, or
    call `close`.
    """

    def __init__(self, num_workers: int, timeout_s: float, function: Callable = decode_job):
        self.num_workers = num_workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                                           else os.cpu_count() or 1)
        self.timeout_s = timeout_s
        self.function = function
        self._workers: list[_Worker] = []
        self._killed = 0                    # processes killed from outside since the last answer
        self._killed_once: list[Any] = []   # jobs whose process was killed once

    def __enter__(self) -> "DecoderPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Kill the processes; running jobs are dropped."""
        while self._workers:
            self._stop(self._workers[-1])

    def map(self, jobs: Iterable) -> Iterator[tuple[Any, Any]]:
        """Yield (job, result or DecodeError) as they finish, not in order; reads at most a few jobs ahead."""
        source, waiting = iter(jobs), deque[Any]()
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) < self.num_workers:
                    try:
                        waiting.append(next(source))
                    except StopIteration:
                        exhausted = True
                self._give(waiting)
                if not any(worker.jobs for worker in self._workers):
                    return
                yield from self._collect(waiting)
        finally:
            self.close()

    def _give(self, waiting: deque) -> None:
        """Two jobs per worker: it has one to work on while the caller handles its last result."""
        while waiting and len(self._workers) < self.num_workers:
            self._workers.append(self._start())
        for depth in (1, 2):
            for worker in self._workers:
                if waiting and len(worker.jobs) < depth and worker.done + len(worker.jobs) < JOBS_BEFORE_REPLACEMENT:
                    job = waiting.popleft()
                    if not worker.jobs and worker.ready:
                        self._begin(worker)
                    worker.jobs.append(job)
                    with suppress(OSError):         # it has died; `_receive` notices
                        worker.pipe.send_bytes(pickle.dumps(job))

    def _collect(self, waiting: deque) -> Iterator[tuple[Any, Any]]:
        now = time.monotonic()
        left = [worker.since + worker.wait_s - now for worker in self._workers if worker.jobs]
        pipes = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(pipes), max(0.0, min(left, default=1.0))):
            yield from self._receive(pipes[pipe], waiting)  # type: ignore[index]
        for worker in [worker for worker in self._workers if worker.jobs]:
            if time.monotonic() > worker.since + worker.wait_s and not worker.pipe.poll() and self._is_late(worker):
                worked = (_cpu_seconds(worker.process.pid) or 0.0) - worker.cpu_first_s >= self.timeout_s
                yield from self._fail(worker, "timeout", waiting, retry=not worked)

    def _begin(self, worker: _Worker) -> None:
        worker.since, worker.wait_s = time.monotonic(), self.timeout_s
        worker.cpu_first_s = worker.cpu_last_s = _cpu_seconds(worker.process.pid) or 0.0

    def _is_late(self, worker: _Worker) -> bool:
        """Whether the time is up; if not, sets the time of the next check."""
        if not worker.ready:
            raise MachineError(f"decoder process: need it ready within {START_TIMEOUT_S:.0f} s, got no answer. "
                               "Free memory or lower shards.num_workers.")
        cpu, now = _cpu_seconds(worker.process.pid), time.monotonic()
        if cpu is None or cpu - worker.cpu_first_s >= self.timeout_s:
            return True
        if cpu - worker.cpu_last_s < IDLE_SHARE * (now - worker.since):
            return True
        worker.since, worker.cpu_last_s = now, cpu
        worker.wait_s = max(self.timeout_s - (cpu - worker.cpu_first_s), self.timeout_s / 50, SHORTEST_LOOK_S)
        return False

    def _receive(self, worker: _Worker, waiting: deque) -> Iterator[tuple[Any, Any]]:
        try:
            message = pickle.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            if not worker.ready:
                self._stop(worker)
                raise MachineError("decoder process: need it to start, got an end at once. "
                                   "Try `python -c 'import hcmi.video.pool'`.") from None
            if worker.jobs:
                yield from self._on_death(worker, waiting)
            else:
                self._stop(worker)
            return
        self._begin(worker)
        if not worker.ready:
            worker.ready = True
            return
        job = worker.jobs.popleft()
        self._killed = 0
        worker.done += 1
        if worker.done >= JOBS_BEFORE_REPLACEMENT:
            self._stop(worker)
        ok, value = message
        if not ok and not isinstance(value, DecodeError):
            raise value
        yield job, value

    def _on_death(self, worker: _Worker, waiting: deque) -> Iterator[tuple[Any, Any]]:
        """A worker died during its first job. If it was killed, a person did it, or the system when memory was short.

        The job is then run again. It fails when its process is killed a second time while the others are left alone.
        """
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(1)
        job = worker.jobs[0]
        if worker.process.returncode != -signal.SIGKILL:
            yield from self._fail(worker, "crashed", waiting, retry=True)
            return
        self._killed += 1
        if not any(job is other for other in self._killed_once):
            self._killed_once.append(job)
            self._stop(worker)
            waiting.extend(worker.jobs)
            return
        if self._killed > 2:
            self._stop(worker)
            raise MachineError(f"decoder processes: need them to keep running, got {self._killed} killed in a row, the "
                               f"last at {getattr(job, 'path', job)}. Free memory or lower shards.num_workers.")
        yield from self._fail(worker, "crashed", waiting, retry=False, detail="killed twice; is memory short?")

    def _fail(self, worker: _Worker, reason: str, waiting: deque, retry: bool, detail: str = ""
              ) -> Iterator[tuple[Any, Any]]:
        """Stop a worker because of its first job, which fails or is replaced; its next job goes back to the queue."""
        job, *next_jobs = worker.jobs
        self._stop(worker)
        waiting.extendleft(next_jobs)
        replacement = job.after_crash() if retry and hasattr(job, "after_crash") else None
        if replacement is not None:
            waiting.append(replacement)
        else:
            yield job, refusal(reason, getattr(job, "path", job), detail)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        names = (self.function.__module__, self.function.__qualname__, str(os.getpid()))
        environment = {**KEEP_MEMORY, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                       "OMP_NUM_THREADS": "1"}
        quiet = subprocess.DEVNULL          # decoders print messages
        with theirs:
            process = subprocess.Popen([sys.executable, "-c", _CHILD, str(theirs.fileno()), *names], env=environment,
                                       pass_fds=[theirs.fileno()], stdin=quiet, stdout=quiet, stderr=quiet)
        return _Worker(process, ours, since=time.monotonic())

    def _stop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.kill()
        worker.process.wait()


def run_one(job: Any, timeout_s: float, function: Callable = decode_job) -> Any:
    """`function(job)`, run in a process of its own as `DecoderPool` does.

    Raises: DecodeError when the job fails or its time is up.
    """
    with DecoderPool(1, timeout_s, function) as pool:
        _, result = next(iter(pool.map([job])))
    if isinstance(result, DecodeError):
        raise result
    return result


def _cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has used, in seconds; None where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends: by then it may hang in native code."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)       # Linux only; elsewhere the closed pipe ends the process
    if prctl is not None:
        prctl(1, signal.SIGKILL)        # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit()


def _child_main(descriptor: int, module: str, name: str, parent: str) -> None:
    """Answer jobs until the parent closes the pipe."""
    _die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function = getattr(importlib.import_module(module), name)
    with Connection(descriptor) as pipe:
        pipe.send_bytes(pickle.dumps(None))
        while True:
            try:
                job = pickle.loads(pipe.recv_bytes())
            except EOFError:
                return
            try:
                with one_file(getattr(job, "path", job)):
                    answer = pickle.dumps((True, function(job)))
            except HcmiError as error:
                answer = pickle.dumps((False, error))
            try:
                pipe.send_bytes(answer)
            except OSError:
                return
