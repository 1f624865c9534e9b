"""Parts of a run ended at random moments: the next run completes, and its dvc.lock is that of an undisturbed run.

HCMI_KILLS sets another number than 20 of moments for each part, and HCMI_SEED draws other moments.
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


def completes(flows: Flows) -> float:
    """Seconds that a run took, which must complete."""
    began = time.monotonic()
    run = flows.trigger()
    assert flows.end_of(run, PATIENCE) == "COMPLETED", flows.output()[-6000:]
    return time.monotonic() - began


def assert_no_process(flows: Flows) -> None:
    wait_for(lambda: flows.processes() == [], 120)


def end(flows: Flows, run: str, words: tuple[str, ...], number: int, later: float) -> bool:
    """Send the part a signal; if it is not there now, `later` seconds after it has come.

    Returns whether it was there before the run ended.
    """
    waited = False
    while True:
        try:
            part = flows.find(*words)
            time.sleep(later * waited)
            part.send_signal(number)
            return True
        except (StopIteration, psutil.Error):
            waited = True
        if flows.ask(f"flow_runs/{run}")["state"]["type"] in ENDED:
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
    lock, moments = (toy / "dvc.lock").read_bytes(), np.random.default_rng(SEED)
    forget_outputs(toy)
    flows, hits = start(), 0
    length = completes(flows)
    for count in range(KILLS):
        forget_outputs(toy)
        run, moment = flows.trigger(), moments.random() * length
        time.sleep(moment)
        hit = end(flows, run, words, number, 2 * moments.random())
        found = f"ended after {moment:.1f} of {length:.1f} s" if hit else "not there"
        print(f"{part} {number.name} {count}: {found}", flush=True)
        hits += hit
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
    assert hits >= KILLS // 2, "the moments were not those of a run"
