"""Runs that are killed with SIGKILL in the middle, as a program: FILMS FOLDER SEED KILLS.

Each run is a process of its own, forked from this one, which has imported everything and computed nothing. A run counts
the calls of hcmi's training and file code in all its threads, and kills itself in one of them, at random. A run that
reaches its end is compared with an undisturbed one, and the next run begins in a new folder. Prints for each finished
run how many kills it has survived.
"""

import os
import random
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import train_world

import hcmi.files
import hcmi.train.checkpoints

WATCHED = (str(Path(hcmi.train.checkpoints.__file__).parent), hcmi.files.__file__)


def count_calls(kill_at: int, ends: int) -> None:
    """Kill this process in the call of that number; write to `ends` how many there were when it comes to its end."""
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(WATCHED):
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)
    train_world.run(FILMS, FOLDER)
    sys.setprofile(None)
    os.write(ends, str(calls).encode())


def one_run(kill_at: int) -> int | None:
    """How many calls there were in a run that came to its end; None for one that was killed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            count_calls(kill_at, write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(read) as answer:
        found = answer.read()
    if found:
        return int(found)
    assert os.WIFSIGNALED(status), f"a run failed: {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL
    return None


if __name__ == "__main__":
    FILMS, PLACE, generator, kills = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    hcmi.train.checkpoints.CHECKPOINT_SECONDS, hcmi.train.checkpoints.MAX_SHARE = -1, float("inf")
    FOLDER = PLACE / "undisturbed"
    total = one_run(0)
    assert total is not None
    number, survived = 0, 0
    while kills or survived:
        FOLDER = PLACE / str(number)
        # a run that continues has fewer calls before it, so it is sometimes let come to its end
        if one_run(generator.randrange(1, total) if kills else 0) is None:
            kills, survived = kills - 1, survived + 1
            continue
        train_world.assert_same_run(FOLDER, PLACE / "undisturbed")
        print(f"{survived} kills", flush=True)
        number, survived = number + 1, 0
