"""Two processes train as one does, with real gloo ranks on the processor, and end together."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil
import pytest
import torch
import two_ranks
from model_world import make_shards
from safetensors.torch import load_file
from step_world import distance
from train_world import assert_same_run, run

from hcmi.errors import ConfigError, DataError, MachineError
from hcmi.model.heads import HEADS
from hcmi.processes import count_processes, from_processes, in_processes

CASES = [*((head, "off", 0) for head in HEADS), ("hcmi", "positive", 0), ("hcmi", "mask", 3), ("xclip", "off", 1)]


@pytest.fixture(scope="module")
def compared() -> dict:
    return in_processes(2, "cpu", two_ranks.compared, {"cases": CASES})


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_gradients_and_loss_are_those_of_one_process(compared, case):
    gradients, loss = compared[case]
    assert gradients < 1e-6
    assert loss < 1e-6


@pytest.mark.parametrize("fault", two_ranks.FAULTS)
def test_planted_fault_is_found_when_ranks_are_compared(compared, fault):
    assert compared["faults"][fault] > 1e-4


def test_weights_are_those_of_one_process_after_20_steps(compared):
    weights, loss = compared["after 20 steps"]
    assert weights < 1e-5
    assert loss < 1e-6


@pytest.fixture(scope="module")
def two(films, tmp_path_factory) -> Path:
    """A run of two processes from start to end."""
    folder = tmp_path_factory.mktemp("two")
    summary = run(films, folder, **TWO)
    assert (summary["processes"], summary["steps"]) == (2, 9)
    return folder


TWO = {"num_processes": 2, "optimizer": "adamw", "lr": 1e-4, "backbone_lr": 1e-5, "marginal_group": 4,
       "warmup_epochs": 1, "denoise": "positive", "denoise_by": "text"}


def test_train_gives_the_model_of_one_process_when_it_has_two(films, two, tmp_path):
    run(films, tmp_path, **TWO | {"num_processes": 1})
    assert distance(*(load_file(folder / "model" / "model.safetensors") for folder in (two, tmp_path))) < 1e-5


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
if __name__ == "__main__":
    import test_ranks, train_world
    train_world.run(Path(sys.argv[3]), Path(sys.argv[4]), **test_ranks.TWO)
"""


def start(folder: Path, films: Path, **environment: str) -> subprocess.Popen:
    """The run of `two` as a process of its own."""
    (folder / "program.py").write_text(PROGRAM)
    here = Path(__file__).parent
    return subprocess.Popen([sys.executable, folder / "program.py", here, here.parent, films, folder],
                            env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


def family(mark: str) -> list[psutil.Process]:
    """Processes that inherited the environment variable `RANKS_TEST` of that value."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANKS_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.slow
def test_train_ends_with_all_its_processes_and_continues_when_it_is_killed(films, two, tmp_path):
    parent = start(tmp_path, films, RANKS_TEST=str(tmp_path))
    while not list(tmp_path.glob("checkpoints/*/step_*")):
        assert parent.poll() is None
        time.sleep(0.02)
    assert len(family(str(tmp_path))) >= 3
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while family(str(tmp_path)):        # the test's own time limit ends this
        time.sleep(0.02)
    run(films, tmp_path, **TWO)
    assert_same_run(tmp_path, two)


def test_train_joins_the_processes_that_torchrun_has_started(films, two, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [start(tmp_path, films, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in "01"]
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert_same_run(tmp_path, two)


# errors

@pytest.mark.parametrize(("how", "kind", "words"), [
    ("error", DataError, r"^one rank: need this, got that\.$"),
    pytest.param("bug", ZeroDivisionError, "a bug", marks=pytest.mark.slow),
    ("killed", MachineError, r"^training: need all 2 processes until the end, got process 1 ended with signal 9\.")])
def test_the_error_of_the_rank_that_failed_is_reported(how, kind, words):
    with pytest.raises(kind, match=words):
        in_processes(2, "cpu", two_ranks.failing, {"rank": 1, "how": how})


def test_what_keeps_a_process_from_starting_is_reported(monkeypatch):
    """The end of the others asked for the id of one that never began."""
    def refuse(process):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(SpawnProcess, "start", refuse)
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        in_processes(2, "cpu", two_ranks.failing, {"rank": 1, "how": "error"})


def test_things_come_from_each_process_until_one_fails():
    found: list[int] = []
    items = from_processes(2, "cpu", two_ranks.counting, {"rank": 1, "how": "killed"}, task="counting")
    with pytest.raises(MachineError, match=r"^counting: need all 2 processes until the end, got process 1 ended with"):
        found.extend(items)
    assert sorted(found) == [0, 0, 1, 1, 2, 2]


def test_train_says_it_once_when_there_are_fewer_videos_than_processes(tmp_path_factory, tmp_path):
    films = make_shards(tmp_path_factory.mktemp("one"), num_train=1)
    with pytest.raises(DataError, match=r"^split train: need at least as many videos as ranks \(2\), got 1\."):
        run(films, tmp_path, num_processes=2, batch_size=2)
    assert not (tmp_path / "model").exists()


def test_gpus_are_refused_before_any_work_when_they_are_absent(films, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"^device: need a CUDA GPU for 'cuda', got none on this machine\."):
        run(films, tmp_path, num_processes=2, device="cuda")
    assert list(tmp_path.iterdir()) == []
    assert count_processes("auto", "auto") == 1
    assert count_processes(3, "cpu") == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert count_processes("auto", "auto") == 2
    assert count_processes("auto", "cuda:1") == 1
    assert count_processes("auto", "cpu") == 1
    with pytest.raises(ConfigError, match=r"train\.num_processes: need at most the 2 GPUs of this machine, got 3\."):
        count_processes(3, "cuda")
    with pytest.raises(ConfigError, match=r"train\.device: need auto, cuda or cpu for 2 processes, got 'cuda:1'\."):
        count_processes(2, "cuda:1")
