"""Parts of a run ended at random moments: the next run completes, and its dvc.lock is that of an undisturbed run.

The moments are spread over the life of the part, as long as it was in a run that nothing disturbed. One counts where
the part was there. HCMI_KILLS sets another number than 20 for each part and signal; HCMI_SEED draws other moments.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from flow_world import ENDED, Flows, forget_outputs, wait_for

KILLS, SEED = int(os.environ.get("HCMI_KILLS", "20")), int(os.environ.get("HCMI_SEED", "0"))
# Part -> words of its command line, and whether `make flows` ends with it.
PARTS = {"stage": (("flows.stages",), False), "flow": (("prefect.engine",), False),
         "worker": (("worker", "start"), True), "server": (("server", "start"), True)}
PATIENCE = 900      # seconds, on a machine that is busy


def completes(flows: Flows) -> None:
    run = flows.trigger()
    assert flows.end_of(run, PATIENCE) == "COMPLETED", flows.output()[-6000:]


def assert_no_process(flows: Flows) -> None:
    wait_for(lambda: flows.processes() == [], 120)


def there_now(flows: Flows, words: tuple[str, ...]) -> psutil.Process | None:
    try:
        return flows.find(*words)
    except (StopIteration, psutil.Error):
        return None


def has_ended(flows: Flows, run: str) -> bool:
    return flows.ask(f"flow_runs/{run}")["state"]["type"] in ENDED


def lives(flows: Flows, run: str, words: tuple[str, ...]) -> list[float]:
    """For how many seconds each process of the part, one after the other, was there during this run."""
    seen: dict[int, list[float]] = {}
    while not has_ended(flows, run):
        if part := there_now(flows, words):
            seen.setdefault(part.pid, [time.monotonic()]).append(time.monotonic())
        time.sleep(0.1)
    assert flows.end_of(run) == "COMPLETED", flows.output()[-6000:]
    return [times[-1] - times[0] for times in seen.values()]


def end(flows: Flows, run: str, words: tuple[str, ...], number: int, which: int, later: float) -> bool:
    """Send a signal to the process of the part that comes as number `which`, `later` seconds after it was first seen.

    Returns whether it was there then.
    """
    seen: set[int] = set()
    while not has_ended(flows, run):
        part = there_now(flows, words)
        seen.update([part.pid] if part else [])
        if part and len(seen) > which:
            time.sleep(later)
            try:
                if part.status() == psutil.STATUS_ZOMBIE:
                    return False
                part.send_signal(number)
                return True
            except psutil.Error:
                return False
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
@pytest.mark.parametrize("part", PARTS)
def test_next_run_ends_the_same_when_a_part_was_ended_at_a_random_moment(start, toy, part, number):
    words, ends_all = PARTS[part]
    text = (toy / "dvc.yaml").read_text()
    for command in ("cp in.txt one.txt", "cat one.txt one.txt >"):
        text = text.replace(command, f"sleep 2; {command}")
    (toy / "dvc.yaml").write_text(text)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    lock, random = (toy / "dvc.lock").read_bytes(), np.random.default_rng([SEED, list(PARTS).index(part), number])
    forget_outputs(toy)
    flows = start()
    completes(flows)        # the first run of a server takes longer than those that follow
    forget_outputs(toy)
    ends = np.cumsum(lives(flows, flows.trigger(), words))
    hits = tries = 0
    while hits < KILLS and tries < 3 * KILLS:
        forget_outputs(toy)
        run, moment = flows.trigger(), (tries % KILLS + random.random()) / KILLS * ends[-1]    # one in each part of it
        which = int(np.searchsorted(ends, moment))
        later = moment - (ends[which - 1] if which else 0)
        hit = end(flows, run, words, number, which, later)
        hits, tries = hits + hit, tries + 1
        print(f"{part} {number.name}: {later:.1f} s after the start of process {which + 1} of {len(ends)}, "
              f"{moment:.1f} of {ends[-1]:.1f} s in all; {hits} hits of {tries}", flush=True)
        if hit and ends_all:
            flows.process.wait(PATIENCE)
            assert_no_process(flows)
            flows = start()
            state = flows.ask(f"flow_runs/{run}")["state"]
            assert state["type"] in (*ENDED, "SCHEDULED"), state
        else:
            flows.end_of(run, PATIENCE)
        completes(flows)
        assert (toy / "dvc.lock").read_bytes() == lock
    flows.stop()
    assert_no_process(flows)
    assert hits == KILLS, "the part had ended by itself at most of the moments"
