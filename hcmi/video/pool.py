"""Child processes with a deadline for each job: what hangs is killed, what crashes is replaced, nothing is left behind.

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
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from hcmi.errors import DecodeError, HcmiError, MachineError
from hcmi.video.files import one_file, refusal
from hcmi.video.jobs import decode_job

START_TIMEOUT_S = 120.0
IDLE_SHARE = 0.01                   # of one core: who uses less is waiting for something, not for its turn
SHORTEST_LOOK_S = 0.25              # in less a process that only waits for its turn looks idle
JOBS_BEFORE_REPLACEMENT = 2000      # decoders leak; a new process costs 0.3 s
# Frames are big blocks, which glibc by itself gives back to the system each time and then faults in again.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
_CHILD = "import sys; from hcmi.video.pool import _child_main; _child_main(int(sys.argv[1]), *sys.argv[2:])"


@dataclass
class _Worker:
    process: subprocess.Popen
    pipe: Connection
    ready: bool = False
    done: int = 0
    jobs: deque = field(default_factory=deque)      # the first is being worked on
    since: float = 0.0                              # monotonic: when the first began, or was last looked at
    wait_s: float = START_TIMEOUT_S                 # from then on until it is looked at
    cpu_first_s: float = 0.0                        # processor time when the first began
    cpu_last_s: float = 0.0                         # and when it was last looked at


class DecoderPool:
    """`num_workers` processes (0: one per core) that run `function(job)` on each job within `timeout_s`.

    The seconds are those of a machine with nothing else to do: a job is stopped when it has used so much processor
    time, or waited so long while using none, so that a busy machine does not change the result. A job whose `decoder`
    is "auto" and that waits for ever or crashes is tried once more with "pyav", because decord is what does that
    (dmlc/decord issue 373); one that has worked all its time is not, because PyAV would be as slow. Whatever else fails
    in `function` is a `DecodeError` too (`one_file`). Use as a context manager, or call `close`.
    """

    def __init__(self, num_workers: int, timeout_s: float, function: Callable = decode_job):
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self.timeout_s = timeout_s
        self.function = function
        self._workers: list[_Worker] = []
        self._killed = 0                    # processes killed from outside since the last answer
        self._spared: list[Any] = []        # jobs whose process was killed once

    def __enter__(self) -> "DecoderPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Kill the processes; jobs under way are dropped."""
        while self._workers:
            self._stop(self._workers[-1])

    def map(self, jobs: Iterable) -> Iterator[tuple[Any, Any]]:
        """Yield (job, result or DecodeError) as they come, not in order; reads `jobs` no faster than it works."""
        source, again = iter(jobs), deque[Any]()
        exhausted = False
        try:
            while True:
                while not exhausted and len(again) < self.num_workers:
                    try:
                        again.append(next(source))
                    except StopIteration:
                        exhausted = True
                self._give(again)
                if not any(worker.jobs for worker in self._workers):
                    return
                yield from self._collect(again)
        finally:
            self.close()

    def _give(self, waiting: deque) -> None:
        """Two jobs per worker, so that it does not idle while the caller is busy with its last result."""
        while waiting and len(self._workers) < self.num_workers:
            self._workers.append(self._start())
        for depth in (1, 2):
            for worker in self._workers:
                if waiting and len(worker.jobs) < depth and worker.done + len(worker.jobs) < JOBS_BEFORE_REPLACEMENT:
                    job = waiting.popleft()
                    if not worker.jobs and worker.ready:
                        self._begin(worker)
                    worker.jobs.append(job)
                    with suppress(OSError):         # it has died: `_receive` finds out
                        worker.pipe.send_bytes(pickle.dumps(job))

    def _collect(self, again: deque) -> Iterator[tuple[Any, Any]]:
        now = time.monotonic()
        left = [worker.since + worker.wait_s - now for worker in self._workers if worker.jobs]
        pipes = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(pipes), max(0.0, min(left, default=1.0))):
            yield from self._receive(pipes[pipe], again)  # type: ignore[index]
        for worker in [worker for worker in self._workers if worker.jobs]:
            if time.monotonic() > worker.since + worker.wait_s and not worker.pipe.poll() and self._is_late(worker):
                worked = (_cpu_seconds(worker.process.pid) or 0.0) - worker.cpu_first_s >= self.timeout_s
                yield from self._fail(worker, "timeout", again, retry=not worked)

    def _begin(self, worker: _Worker) -> None:
        worker.since, worker.wait_s = time.monotonic(), self.timeout_s
        worker.cpu_first_s = worker.cpu_last_s = _cpu_seconds(worker.process.pid) or 0.0

    def _is_late(self, worker: _Worker) -> bool:
        """Whether the time is up; if not, when to look again."""
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

    def _receive(self, worker: _Worker, again: deque) -> Iterator[tuple[Any, Any]]:
        try:
            message = pickle.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            if not worker.ready:
                self._stop(worker)
                raise MachineError("decoder process: need it to start, got an end at once. "
                                   "Try `python -c 'import hcmi.video.pool'`.") from None
            if worker.jobs:
                yield from self._bury(worker, again)
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

    def _bury(self, worker: _Worker, again: deque) -> Iterator[tuple[Any, Any]]:
        """A worker has died over its first job. If it was killed, somebody did it, or the system for want of memory.

        That is not the file's fault unless it happens to it twice while nothing happens to others.
        """
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(1)
        job = worker.jobs[0]
        if worker.process.returncode != -signal.SIGKILL:
            yield from self._fail(worker, "crashed", again, retry=True)
            return
        self._killed += 1
        if not any(job is other for other in self._spared):
            self._spared.append(job)
            self._stop(worker)
            again.extend(worker.jobs)
            return
        if self._killed > 2:
            self._stop(worker)
            raise MachineError(f"decoder processes: need them left alone, got {self._killed} killed one after the "
                               f"other, the last over {getattr(job, 'path', job)}. Free memory or lower "
                               f"shards.num_workers.")
        yield from self._fail(worker, "crashed", again, retry=False, detail="killed twice; is memory short?")

    def _fail(self, worker: _Worker, reason: str, again: deque, retry: bool, detail: str = ""
              ) -> Iterator[tuple[Any, Any]]:
        """The first job of a worker killed it or has to be killed; the one behind it goes back to the queue."""
        job, *behind = worker.jobs
        self._stop(worker)
        again.extendleft(behind)
        if retry and getattr(job, "decoder", None) == "auto":
            again.append(replace(job, decoder="pyav"))
        else:
            yield job, refusal(reason, getattr(job, "path", job), detail)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        names = (self.function.__module__, self.function.__qualname__, str(os.getpid()))
        environment = {**KEEP_MEMORY, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                       "OMP_NUM_THREADS": "1"}
        with theirs:
            process = subprocess.Popen([sys.executable, "-c", _CHILD, str(theirs.fileno()), *names], env=environment,
                                       pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)      # decoders chatter
        return _Worker(process, ours, since=time.monotonic())

    def _stop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.kill()
        worker.process.wait()


def run_one(job: Any, timeout_s: float, function: Callable = decode_job) -> Any:
    """`function(job)` in a process of its own, as `DecoderPool` runs it.

    Raises: DecodeError when the job fails or its time is up.
    """
    with DecoderPool(1, timeout_s, function) as pool:
        _, result = next(iter(pool.map([job])))
    if isinstance(result, DecodeError):
        raise result
    return result


def _cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has used; None where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent has ended: it may hang in native code by then."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)       # Linux; elsewhere a closed pipe has to do
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
