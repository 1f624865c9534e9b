"""Training that is stopped anywhere ends as if nothing had happened; unusable checkpoints are refused."""

import types
from pathlib import Path

import pytest
import torch
from model_world import section, tiny_model, train_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from train_world import StopError, assert_same_run, run, save_after_every_step, stop_at

from hcmi.errors import MachineError, ModelError
from hcmi.model import HcmiModel
from hcmi.train import checkpoints, make_optimizers, preflight, state_file, training_step
from hcmi.train import stage as subject
from hcmi.train.checkpoints import Checkpoints
from hcmi.train.state import Progress
from hcmi.train.state_file import read_state, write_state

IDENTITY = "0123456789abcdef"
LOADER = types.SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)


def saved(folder: Path, *steps: int, best: int = -1, head: str = "mean_pool") -> Path:
    """A run's folder with a checkpoint after each of the steps."""
    model, progress = tiny_model(head), Progress.start(24, 32)
    with Checkpoints(folder, IDENTITY) as kept:
        kept.keep_best(model)
        for step in steps:
            progress.step, progress.best_epoch = step, best
            kept.save(model, make_optimizers(model, train_config()), LOADER, progress)
    return kept.folder


def found(folder: Path) -> int:
    """The step that a run of the same parameters continues from."""
    model, progress = tiny_model("mean_pool", seed=1), Progress.start(24, 32)
    with Checkpoints(folder, IDENTITY) as kept:
        kept.newest().restore(model, make_optimizers(model, train_config()), LOADER, progress)
    return progress.step


@pytest.mark.parametrize(("where", "time_called"), [("step", 1), ("step", 5), ("step", 7), ("validate", 2), ("best", 1),
                                                    ("last", 4), ("model", 1)])
def test_train_ends_as_an_undisturbed_run_when_it_was_interrupted(films, undisturbed, tmp_path, monkeypatch, where,
                                                                  time_called):
    save_after_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        stop_at(patch, where, time_called)
        with pytest.raises(StopError):
            run(films, tmp_path)
    assert not (tmp_path / "model").exists()
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_train_continues_from_its_checkpoint_when_it_was_interrupted(films, tmp_path, monkeypatch):
    """Otherwise the test above would pass by training from the start."""
    save_after_every_step(monkeypatch)
    steps = []
    monkeypatch.setattr(subject, "training_step", lambda *args: steps.append(1) or training_step(*args))
    with monkeypatch.context() as patch:
        stop_at(patch, "step", 6)
        with pytest.raises(StopError):
            run(films, tmp_path)
    assert run(films, tmp_path)["steps"] == 9
    assert len(steps) == 9


def test_train_continues_the_random_states_when_a_layer_draws_from_them(films, tmp_path, monkeypatch):
    """The shipped towers draw nothing in training; a checkpoint with dropout does."""
    def with_dropout(*args):
        model = made(*args)
        model.towers.text_projection = torch.nn.Sequential(model.towers.text_projection, torch.nn.Dropout(0.3))
        return model

    made = preflight.new_retriever
    monkeypatch.setattr(preflight, "new_retriever", with_dropout)
    save_after_every_step(monkeypatch)
    run(films, tmp_path / "whole", epochs=2)
    with monkeypatch.context() as patch:
        stop_at(patch, "step", 5)
        with pytest.raises(StopError):
            run(films, tmp_path / "stopped", epochs=2)
    torch.manual_seed(99)
    run(films, tmp_path / "stopped", epochs=2)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


# what is written, and when

def test_the_last_two_checkpoints_are_kept_with_the_weights_that_they_name(tmp_path):
    folder = saved(tmp_path, 10, 20, best=0)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best_0000.safetensors", "step_00000010_best_0000.safetensors", "step_00000020_best_0000.safetensors"]
    model, progress = tiny_model("mean_pool"), Progress.start(24, 32)
    with Checkpoints(tmp_path, IDENTITY) as kept:
        kept.newest()
        for step in (30, 40):
            progress.step, progress.best_epoch = step, 1
            kept.keep_best(model)
            kept.save(model, [], LOADER, progress)
            kept.finish()
            if step == 30:      # the older one can still be continued from
                assert {path.name for path in folder.glob("best_*")} == {"best_0000.safetensors",
                                                                         "best_0001.safetensors"}
    assert sorted(path.name for path in folder.iterdir()) == [
        "best_0001.safetensors", "step_00000030_best_0001.safetensors", "step_00000040_best_0001.safetensors"]


def test_checkpoint_is_of_the_moment_it_was_asked_for_when_training_goes_on(tmp_path, monkeypatch):
    """The writer waits until the weights have changed."""
    import threading

    changed, model, progress = threading.Event(), tiny_model("mean_pool"), Progress.start(24, 32)
    write = checkpoints.write_state
    monkeypatch.setattr(checkpoints, "write_state", lambda *args: changed.wait(60) and write(*args))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with Checkpoints(tmp_path, IDENTITY) as kept:
        kept.save(model, [], LOADER, progress)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1)
        progress.video_ND.add_(1)
        progress.sums["loss"] = 1.0
        changed.set()
    tensors, values = read_state(next(kept.folder.glob("step_*")))
    assert all(torch.equal(tensors[f"model/{name}"], tensor) for name, tensor in before.items())
    assert not tensors["progress/video_ND"].any()
    assert values["progress"]["sums"] == {}


def test_error_of_the_writing_thread_reaches_training(films, tmp_path, monkeypatch):
    def full(path, tensors, values):
        raise MachineError(f"{path}: need to write it, got: No space left on device.")

    monkeypatch.setattr(checkpoints, "write_state", full)
    with pytest.raises(MachineError, match=r"best_0000.*No space left on device"):
        run(films, tmp_path, epochs=1)
    assert not (tmp_path / "model").exists()


def test_checkpoints_wait_when_they_would_take_too_much_of_the_time(tmp_path):
    with Checkpoints(tmp_path, IDENTITY) as kept:
        assert kept.due(epoch_ends=True)
        assert not kept.due()           # within an epoch: after some minutes
        kept._cost = 100.0
        assert not kept.due(epoch_ends=True)
        kept._saved_at -= 101 / checkpoints.MAX_SHARE
        assert kept.due(epoch_ends=True)
        assert kept.due()


def test_train_removes_its_checkpoints_and_nothing_else_when_done(films, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    run(films, tmp_path, epochs=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["notes.txt"]


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


# checkpoints that cannot be used

def changed_byte(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)


def other_values(path: Path) -> None:
    with safe_open(path, "pt") as file:
        described = file.metadata()
    save_file(load_file(path), path, {**described, "values": described["values"].replace('"step": 20', '"step": 21')})


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""), "other": lambda path: path.write_bytes(b"half of it"),
    "short": lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    "shorter by one": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "no header": lambda path: path.write_bytes(path.read_bytes()[:4]),
    "a changed byte": changed_byte, "changed values": other_values,
    "safetensors of somebody else": lambda path: save_file({"a": torch.zeros(2)}, path),
    "a pickle": lambda path: torch.save({"a": torch.zeros(2)}, path)}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_is_taken_when_the_newest_is_damaged(tmp_path, damage):
    folder = saved(tmp_path, 10, 20)
    DAMAGES[damage](folder / "step_00000020.safetensors")
    with pytest.warns(UserWarning, match=r"step_00000020\.safetensors: need a file that `hcmi train` wrote, got: .*\. "
                      r"Training continues from the checkpoint before it, step_00000010\.safetensors\.$") as notes:
        assert found(tmp_path) == 10
    assert len(notes) == 1
    assert "\n" not in str(notes[0].message)


@pytest.mark.parametrize("damage", DAMAGES)
def test_run_is_refused_in_one_line_when_all_its_checkpoints_are_damaged(tmp_path, damage):
    folder = saved(tmp_path, 20)
    DAMAGES[damage](folder / "step_00000020.safetensors")
    before = (folder / "step_00000020.safetensors").read_bytes()
    with pytest.raises(ModelError) as caught:
        found(tmp_path)
    assert str(caught.value).startswith(f"checkpoint {folder}/step_00000020.safetensors: need a file that `hcmi train`")
    assert str(caught.value).endswith(f"Remove the folder {folder} to train from the start.")
    assert (folder / "step_00000020.safetensors").read_bytes() == before


def test_train_ends_as_an_undisturbed_run_when_its_newest_checkpoint_was_damaged(films, undisturbed, tmp_path,
                                                                                 monkeypatch):
    save_after_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        stop_at(patch, "step", 8)
        with pytest.raises(StopError):
            run(films, tmp_path)
    *_, newest = sorted(tmp_path.glob("checkpoints/*/step_*"))
    changed_byte(newest)
    with pytest.warns(UserWarning, match="Training continues from the checkpoint before it"):
        run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(("spoil", "got"), [
    (lambda path: path.unlink(), "got: no such file"), (lambda path: path.write_bytes(b"x"), "got: another or a dam"),
    (changed_byte, "got: another file, or one whose content was changed"),
    (lambda path: write_state(path, {}, {"identity": "other"}), "need weights of these data and parameters")])
def test_run_is_not_continued_when_its_best_epoch_is_lost(tmp_path, spoil, got):
    """Otherwise it would train to its end and only then find that there is nothing to keep."""
    folder = saved(tmp_path, 10, best=1)
    assert found(tmp_path) == 10
    spoil(folder / "best_0001.safetensors")
    with pytest.raises(ModelError, match=rf"best_0001\.safetensors.*{got}"):
        found(tmp_path)


def test_train_starts_over_and_leaves_the_checkpoints_of_other_parameters(films, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, "validate", 2)
        with pytest.raises(StopError):
            run(films, tmp_path, lr=1e-2)
    other, = (tmp_path / "checkpoints").iterdir()
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    assert before
    with pytest.warns(UserWarning, match=rf"need a checkpoint of these data and parameters \(\w+\) to continue, got "
                      rf"those of other runs: {other.name}\. Training starts from the beginning and leaves them alone"):
        run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_checkpoint_is_refused_when_it_was_moved_from_another_run(tmp_path):
    saved(tmp_path, 10).rename(tmp_path / "aaaaaaaaaaaa")
    with pytest.raises(ModelError, match="need one of these data and parameters, got one of others"), \
            Checkpoints(tmp_path, "a" * 16) as kept:
        kept.newest()


def test_checkpoint_names_tensor_and_both_shapes_when_it_does_not_fit(tmp_path):
    folder = saved(tmp_path, 10)
    model = tiny_model("mean_pool", scratch={**section().scratch.model_dump(), "width": 64})
    with Checkpoints(tmp_path, IDENTITY) as kept, pytest.raises(ModelError) as caught:
        kept.newest().restore(model, [], LOADER, Progress.start(24, 32))
    assert str(caught.value) == (
        f"checkpoint {folder / 'step_00000010.safetensors'}, tensor towers.text_model.embeddings.position_embedding."
        f"weight: need shape (16, 64), got (16, 32): another version of hcmi wrote it. Remove its folder to train from "
        f"the start.")


def test_checkpoint_is_refused_when_it_has_the_format_before_this_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(state_file, "FORMAT", state_file.FORMAT - 1)
        saved(tmp_path, 10)
    with pytest.raises(ModelError, match=r"need format 4, got 3: another version of hcmi wrote it\. Remove the folder"):
        found(tmp_path)


def test_train_leaves_the_checkpoint_of_an_earlier_version_alone(films, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({"format": 3}, tmp_path / "checkpoints" / "last.pt")
    with pytest.warns(UserWarning, match=r"got those of other runs: last\.pt\."):
        run(films, tmp_path, epochs=1)
    assert (tmp_path / "checkpoints" / "last.pt").exists()
