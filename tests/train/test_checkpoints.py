"""Training that is stopped anywhere, or killed, ends as if nothing had happened; unusable checkpoints are refused."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from model_world import section, tiny_model, train_config
from train_world import StopError, assert_same_run, run, stop_at

from hcmi.errors import MachineError, ModelError
from hcmi.model import HcmiModel
from hcmi.train import checkpoints, make_optimizers, training_step
from hcmi.train import stage as subject
from hcmi.train.checkpoints import FORMAT, Checkpoints
from hcmi.train.state import Progress


@pytest.mark.parametrize(("where", "time_called"), [("step", 1), ("step", 5), ("step", 7), ("validate", 2), ("best", 1),
                                                    ("last", 4), ("model", 1)])
def test_train_ends_as_an_undisturbed_run_when_it_was_interrupted(films, undisturbed, tmp_path, monkeypatch, where,
                                                                  time_called):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1)       # after every step
    with monkeypatch.context() as patch:
        stop_at(patch, where, time_called)
        with pytest.raises(StopError):
            run(films, tmp_path)
    assert not (tmp_path / "model").exists()
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_train_continues_from_its_checkpoint_when_it_was_interrupted(films, tmp_path, monkeypatch):
    """Otherwise the test above would pass by training from the start."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1)
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
import hcmi.train.checkpoints, hcmi.train.stage
from train_world import run
hcmi.train.checkpoints.CHECKPOINT_SECONDS = -1
step, first = hcmi.train.stage.training_step, []

def endless_after_four_steps(*args):
    first.append(1)
    if len(first) > 4:
        print("four steps", flush=True)
        time.sleep(600)
    return step(*args)

hcmi.train.stage.training_step = endless_after_four_steps
run(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_train_ends_as_an_undisturbed_run_when_its_process_was_killed(films, undisturbed, tmp_path):
    tests = Path(__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tests), str(films), str(tmp_path)],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout.readline() == "four steps\n"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert (tmp_path / "checkpoints" / "last.pt").exists()
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_train_starts_over_when_the_checkpoint_is_of_other_parameters(films, undisturbed, tmp_path, monkeypatch):
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
    loader, progress = types.SimpleNamespace(state_dict=dict), Progress.start(24, 32)
    Checkpoints(tmp_path, "same").save(other, make_optimizers(other, train_config()), loader, progress)
    with pytest.raises(ModelError) as caught:
        Checkpoints(tmp_path, "same").restore(model, make_optimizers(model, train_config()), loader, progress)
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'last.pt'}, tensor towers.text_model.embeddings.position_embedding.weight: need shape "
        f"(16, 32), got (16, 64). Another version of hcmi wrote it. Remove last.pt and best.pt to train from the "
        f"start.")


@pytest.mark.parametrize(("spoil", "got"), [
    (lambda path: path.unlink(), "got: no such file"),
    (lambda path: path.write_bytes(b"x"), "got: another or a damaged file"),
    (lambda path: torch.save({}, path), "need shape .* got None")])
def test_run_is_not_continued_when_its_best_epoch_is_lost(tmp_path, spoil, got):
    """Otherwise it would train to its end and only then find that there is nothing to keep."""
    model, checkpoint, progress = tiny_model("mean_pool"), Checkpoints(tmp_path, "same"), Progress.start(24, 32)
    progress.best_epoch = 1
    checkpoint.save_best(model)
    loader = types.SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
    checkpoint.save(model, [], loader, progress)
    assert checkpoint.restore(model, [], loader, Progress.start(24, 32))
    spoil(checkpoint.best)
    with pytest.raises(ModelError, match=rf"best\.pt.*{got}"):
        checkpoint.restore(model, [], loader, Progress.start(24, 32))


def as_version_1(path, model, optimizers, identity: str) -> None:
    """`last.pt` as it was before it had a format: all vectors in one tensor."""
    progress = {"seen_3ND": torch.zeros(3, 24, 32), "step": 4, "best_score": 1.0, "best_epoch": 0, "sums": {},
                "history": []}
    torch.save({"identity": identity, "model": model.state_dict(), "loader": {"epoch": 1, "batch": 1},
                "optimizers": [optimizer.state_dict() for optimizer in optimizers], "progress": progress}, path)


def test_checkpoint_is_refused_in_one_line_when_an_earlier_version_wrote_it(tmp_path):
    model = tiny_model("mean_pool")
    optimizers, progress = make_optimizers(model, train_config()), Progress.start(24, 32)
    as_version_1(tmp_path / "last.pt", model, optimizers, "same")
    with pytest.raises(ModelError) as caught:
        Checkpoints(tmp_path, "same").restore(model, optimizers, None, progress)
    assert str(caught.value) == (f"checkpoint {tmp_path / 'last.pt'}: need format {FORMAT}, got 1. "
                                 f"Another version of hcmi wrote it. Remove last.pt and best.pt to train from the "
                                 f"start.")
    assert progress.step == 0
    assert not Checkpoints(tmp_path, "other parameters").restore(model, optimizers, None, progress)


def test_checkpoint_is_refused_when_it_has_the_format_before_this_one(tmp_path):
    model, checkpoint = tiny_model("mean_pool"), Checkpoints(tmp_path, "same")
    loader = types.SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
    checkpoint.save(model, [], loader, Progress.start(24, 32))
    torch.save(torch.load(checkpoint.last) | {"format": FORMAT - 1}, checkpoint.last)
    with pytest.raises(ModelError, match=r"last\.pt: need format 3, got 2\."):
        checkpoint.restore(model, [], loader, Progress.start(24, 32))


def test_train_prints_one_line_when_an_earlier_version_wrote_its_checkpoint(films, tmp_path):
    model_config, config = section(), train_config(epochs=3, batch_size=8)
    model = tiny_model()
    (tmp_path / "checkpoints").mkdir()
    as_version_1(tmp_path / "checkpoints" / "last.pt", model, make_optimizers(model, config),
                 checkpoints.run_identity(films, model_config, config))
    with pytest.raises(ModelError, match=rf"last\.pt: need format {FORMAT}, got 1\."):
        run(films, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", [
    lambda path, whole: path.write_bytes(b""), lambda path, whole: path.write_bytes(b"half of it"),
    lambda path, whole: path.write_bytes(whole[:len(whole) // 2]),
    lambda path, whole: path.write_bytes(whole[:1000] + bytes(2000) + whole[3000:]),
    lambda path, whole: torch.save([1, 2], path)])
def test_checkpoint_is_refused_in_one_line_when_it_is_damaged(tmp_path, damage):
    model, checkpoint = tiny_model("mean_pool"), Checkpoints(tmp_path, "same")
    checkpoint.save(model, [], types.SimpleNamespace(state_dict=dict), Progress.start(24, 32))
    checkpoint.save_best(model)
    for path, read in ((checkpoint.last, lambda: checkpoint.restore(model, [], None, Progress.start(24, 32))),
                       (checkpoint.best, lambda: checkpoint.load_best(model))):
        damage(path, path.read_bytes())
        with pytest.raises(ModelError, match=rf"{path.name}: need a file that `hcmi train` wrote, got: ") as caught:
            read()
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("Remove last.pt and best.pt to train from the start.")
