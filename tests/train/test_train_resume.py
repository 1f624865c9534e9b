"""Training that is stopped anywhere, and killed, goes on and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from model_world import section, tiny_model, train_config
from train_world import StopError, assert_same_run, run, stop_at

from hcmi.errors import MachineError, ModelError
from hcmi.model import HcmiModel
from hcmi.train import make_optimizers, training_step
from hcmi.train import stage as subject
from hcmi.train.stage import Checkpoints, Progress


@pytest.mark.parametrize(("where", "time_called"), [("step", 1), ("step", 5), ("step", 7), ("validate", 2), ("best", 1),
                                                    ("last", 4), ("model", 1)])
def test_train_ends_as_an_undisturbed_run_when_it_was_interrupted(films, undisturbed, tmp_path, monkeypatch, where,
                                                                  time_called):
    monkeypatch.setattr(subject, "CHECKPOINT_SECONDS", -1)       # after every step
    with monkeypatch.context() as patch:
        stop_at(patch, where, time_called)
        with pytest.raises(StopError):
            run(films, tmp_path)
    assert not (tmp_path / "model").exists()
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_train_goes_on_from_its_checkpoint_when_it_was_interrupted(films, tmp_path, monkeypatch):
    """Else the test above would pass by training anew."""
    monkeypatch.setattr(subject, "CHECKPOINT_SECONDS", -1)
    steps = []
    monkeypatch.setattr(subject, "training_step", lambda *args: steps.append(1) or training_step(*args))
    with monkeypatch.context() as patch:
        stop_at(patch, "step", 6)
        with pytest.raises(StopError):
            run(films, tmp_path)
    assert run(films, tmp_path)["steps"] == 9
    assert len(steps) == 9


SLOW_RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import hcmi.train.stage
from train_world import run
hcmi.train.stage.CHECKPOINT_SECONDS = -1
step = hcmi.train.stage.training_step
hcmi.train.stage.training_step = lambda *args: time.sleep(0.3) or step(*args)
run(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_train_ends_as_an_undisturbed_run_when_its_process_was_killed(films, undisturbed, tmp_path):
    tests = str(Path(__file__).parents[1])
    child = subprocess.Popen([sys.executable, "-c", SLOW_RUN, tests, str(films), str(tmp_path)],
                             stderr=subprocess.DEVNULL)
    last = tmp_path / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert last.exists()
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_train_starts_anew_when_the_checkpoint_is_of_other_parameters(films, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, "validate", 2)
        with pytest.raises(StopError):
            run(films, tmp_path, lr=1e-2)
    assert (tmp_path / "checkpoints" / "last.pt").exists()
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_train_keeps_the_old_model_whole_when_writing_the_new_one_fails(films, tmp_path, monkeypatch):
    run(films, tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    save = HcmiModel.save_pretrained

    def half(model, folder):
        save(model, folder)
        raise OSError("No space left on device")

    monkeypatch.setattr(HcmiModel, "save_pretrained", half)
    with pytest.raises(MachineError, match="model: need to write it, got: No space left on device"):
        run(films, tmp_path, epochs=1, seed=5)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics", "model"]
    monkeypatch.undo()
    (tmp_path / "model" / "old.txt").write_text("of the old model")
    run(films, tmp_path, epochs=1, seed=5)
    assert {path.name for path in (tmp_path / "model").iterdir()} == set(before), "nothing old beside the new"


def test_train_removes_its_checkpoints_and_nothing_else_when_done(films, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    run(films, tmp_path, epochs=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["notes.txt"]


def test_checkpoint_names_tensor_and_both_shapes_when_it_does_not_fit(tmp_path):
    model = tiny_model("mean_pool")
    other = tiny_model("mean_pool", scratch={**section().scratch.model_dump(), "width": 64})
    loader, progress = types.SimpleNamespace(state_dict=dict), Progress(torch.zeros(3, 24, 32))
    Checkpoints(tmp_path, "same").save(other, make_optimizers(other, train_config()), loader, progress)
    with pytest.raises(ModelError) as caught:
        Checkpoints(tmp_path, "same").restore(model, make_optimizers(model, train_config()), loader, progress)
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'last.pt'}, tensor towers.text_model.embeddings.position_embedding.weight: need shape "
        f"(16, 32), got (16, 64). It is of another version of hcmi: remove it to train anew.")
