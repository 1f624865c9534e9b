"""Several processes for one piece of work: started here on this machine, or for training by `torchrun` on one or more.

They end together. When one fails, the first process ends the others and reports that one error. When the first process
ends in any way, killed included, the others end themselves.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from hcmi.errors import ConfigError, HcmiError, MachineError
from hcmi.ranks import Ranks
from hcmi.runtime import pick_device

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
PATIENCE = timedelta(days=2)        # ranks wait for one another while the first one validates; a dead one ends all
BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
DONE = "done"                       # what a rank sends last
LINGER_SECONDS = 2.0                # in which a killed process is found before the complaint of another that missed it

Joined = tuple[Ranks, torch.device]


def started_by_torchrun() -> bool:
    return all(name in os.environ for name in BY_TORCHRUN)


def processes_here(ranks: Ranks) -> int:
    """How many of the ranks are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))


def count_processes(wanted: int | str, device: str) -> int:
    """How many processes this machine is to run. Raises: ConfigError when they lack a GPU each."""
    gpus = torch.cuda.device_count() if pick_device(device).type == "cuda" else 0
    if wanted == "auto":
        return max(gpus if device in ("auto", "cuda") else 1, 1)
    count = int(wanted)
    if gpus and count > 1:
        if device not in ("auto", "cuda"):
            raise ConfigError(f"train.device: need auto, cuda or cpu for {count} processes, got {device!r}. "
                              f"Each process takes a GPU of its own.")
        if count > gpus:
            raise ConfigError(f"train.num_processes: need at most the {gpus} GPUs of this machine, got {count}. "
                              f"Lower it, or set it to auto.")
    return count


@contextmanager
def joined(device: str, rank: int = 0, size: int = 1, store: str = "env://") -> Iterator[Joined]:
    """This process among its ranks, and its device; they meet at `store`, by default where `torchrun` says."""
    local = rank
    if store == "env://":
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    own = pick_device(device)
    if own.type == "cuda":
        own = pick_device(f"cuda:{local}")
        torch.cuda.set_device(own)
    if rank:
        warnings.simplefilter("ignore")     # the first rank gives the same notes
    dist.init_process_group(BACKENDS[own.type], store, timeout=PATIENCE, rank=rank, world_size=size)
    yield Ranks(rank, size, alone=False), own
    dist.destroy_process_group()        # not after an error: the others would complain of a lost connection first


def in_processes(count: int, device: str, run: Callable[..., dict], options: dict[str, Any]) -> dict:
    """`run(ranks, device, **options)` in each of `count` processes; what the first of them returns.

    Raises: the error of the process that failed first; MachineError when one was killed.
    """
    return dict(_messages(count, device, run, options, "training"))[0]


def from_processes(count: int, device: str, run: Callable[..., Iterator[Any]], options: dict[str, Any], *, task: str
                   ) -> Iterator[Any]:
    """What `run(ranks, device, **options)` yields in each of `count` processes, in the order in which it comes.

    A process waits when it is ahead of the one who asks. `task` names the work in messages.
    Raises: as `in_processes`.
    """
    for _, item in _messages(count, device, run, options, task):
        yield item


def _messages(count: int, device: str, run: Callable[..., Any], options: dict[str, Any], task: str
              ) -> Iterator[tuple[int, Any]]:
    """(rank, what it returns, or one thing that it yields), until every rank is done."""
    context = multiprocessing.get_context("spawn")      # threads and CUDA do not survive a fork
    threads = max(1, torch.get_num_threads() // count)
    with tempfile.TemporaryDirectory(prefix="hcmi-ranks-") as folder:
        store = Path(folder, "store").as_uri()
        processes: list[SpawnProcess] = []
        ends: list[Connection] = []
        try:
            for rank in range(count):
                here, there = context.Pipe()
                arguments = (there, rank, count, store, device, threads, warnings.formatwarning, run, options)
                process = context.Process(target=_one_rank, args=arguments, name=f"rank {rank}")
                process.start()
                processes.append(process)
                there.close()
                ends.append(here)
            waiting = dict(enumerate(ends))
            while waiting:
                ready = wait(list(waiting.values()))
                for rank in [rank for rank, end in waiting.items() if end in ready]:
                    try:
                        answer = waiting[rank].recv()
                    except EOFError:
                        answer = None
                    if answer == DONE:
                        del waiting[rank]
                    elif isinstance(answer, tuple):
                        yield rank, answer[0]
                    else:
                        raise _failure(rank, answer, processes, task)
        finally:
            for process in processes:
                _end(process)


def _end(process: SpawnProcess) -> None:
    with suppress(ProcessLookupError):
        os.killpg(cast(int, process.pid), signal.SIGKILL)       # with its loader's workers
    process.kill()      # it may have no group of its own yet
    process.join()


def _failure(rank: int, error: Exception | None, processes: list[SpawnProcess], task: str) -> Exception:
    """What to report when one rank has sent an error, or has ended without a word."""
    if isinstance(error, HcmiError):
        return error
    ended = wait([process.sentinel for process in processes], LINGER_SECONDS)
    for process in processes:
        if process.sentinel in ended:
            process.join()      # it closes the sentinel a moment before it can be waited for
    for number, process in enumerate(processes):
        if process.exitcode:
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            return _ended(number, len(processes), how, task)
    return error or _ended(rank, len(processes), "no message", task)


def _ended(rank: int, count: int, how: str, task: str) -> MachineError:
    return MachineError(f"{task}: need all {count} processes until the end, got process {rank} ended with {how}. "
                        f"Free memory if it was killed for that, and run again.")


def _one_rank(answer: Connection, rank: int, count: int, store: str, device: str, threads: int, show: Any,
              run: Callable[..., Any], options: dict[str, Any]) -> None:
    os.setpgrp()        # so that Ctrl-C reaches the first process alone, and a rank is ended with its own children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.formatwarning = show
    torch.set_num_threads(threads)
    try:
        with joined(device, rank, count, store) as (ranks, own):
            result = run(ranks, own, **options)
            for item in result if isinstance(result, Iterator) else (result,):
                answer.send((item,))
        answer.send(DONE)
    except Exception as error:      # noqa: BLE001  all of them go to the first process, which reports one
        if not isinstance(error, HcmiError):
            error.add_note(f"In training process {rank} of {count}:\n{traceback.format_exc()}")
        try:
            answer.send(error)
        except Exception:       # noqa: BLE001  it cannot be pickled
            answer.send(RuntimeError(traceback.format_exc()))
        threading.Event().wait()    # until the parent ends this group: else the others complain of a lost connection


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child process"
    parent.join()
    os.killpg(0, signal.SIGKILL)
