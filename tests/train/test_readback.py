"""A step launches work and reads nothing; its result is read later, and a broken one is found all the same."""

from contextlib import nullcontext

import pytest
import torch
from model_world import train_config
from safetensors.torch import load_file
from step_world import random_batch, wild_model
from torch import nn
from train_world import assert_same_run, run, save_after_every_step

from hcmi.errors import ModelError
from hcmi.model import interaction
from hcmi.model.heads import HEADS
from hcmi.train import objective, readback, step, training_step
from hcmi.train import stage as subject
from hcmi.train.stage import Checkpoints
from hcmi.train.step import batch_loss


def launch(monkeypatch, head: str, denoise: str, micro_batch: int) -> dict:
    """A step's loss and gradients on tensors without data: to read one, on whatever way, is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())      # knows no such device
    # on a GPU the kernel takes the place of the function that asks this
    monkeypatch.setattr(interaction, "_fill_padding", lambda tokens, mask: (tokens, ~mask.any(1)))
    model = nn.Module.to(wild_model(head), "meta")
    config = train_config(denoise=denoise, denoise_by="both")
    total, result = batch_loss(model, random_batch(8), config, denoise, "float32", None, micro_batch)
    total.backward()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).is_meta
    assert result.video_BD.is_meta
    return result.figures


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize(("head", "denoise"), [*((head, "off") for head in HEADS), ("hcmi", "positive"),
                                               ("hcmi", "mask")])
def test_step_reads_nothing_back_when_it_is_launched(monkeypatch, head, denoise, micro_batch):
    assert all(value.is_meta for value in launch(monkeypatch, head, denoise, micro_batch).values())


def test_launch_finds_what_is_read_back(monkeypatch):
    """A planted fault: scores picked by a mask, whose number the processor must know."""
    monkeypatch.setattr(objective, "margin", lambda sims_QB, theta, positives_BB: sims_QB[sims_QB > theta].mean())
    with pytest.raises(NotImplementedError, match="nonzero"):
        launch(monkeypatch, "hcmi", "off", 0)


class Copied:
    """Stands for the event of a copy that a GPU makes."""

    def __init__(self, waited: list):
        self.waited = waited

    def synchronize(self) -> None:
        self.waited.append(1)


@pytest.fixture
def late(monkeypatch):
    """Results that are read as late as those of a GPU."""
    waited: list[int] = []
    monkeypatch.setattr(readback, "_copied", lambda result: (result, Copied(waited)))
    return waited


def test_readback_gives_results_in_order_and_late_when_the_device_is_a_gpu(late):
    there = readback.Readback()
    assert [there.add(number) for number in range(4)] == [[], [], [0], [1]]
    assert (len(there), len(late)) == (2, 2)
    assert there.rest() == [2, 3]
    assert (len(there), there.rest()) == (0, [])


def test_readback_gives_a_result_at_once_when_it_is_on_the_processor():
    result = subject.StepResult([0], {"loss": torch.tensor(1.0)}, torch.zeros(1, 2))
    assert readback.Readback().add(result) == [result]


def test_train_has_the_same_weights_and_curves_when_results_are_read_late(films, undisturbed, tmp_path, late):
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)
    assert len(late) == 9


@pytest.mark.parametrize(("broken", "figure"), [(1, "loss"), (4, "loss"), (9, "loss"), (4, "gradient_norm"),
                                                (9, "gradient_norm")])
def test_train_names_the_step_and_saves_no_broken_weights_when_a_figure_is_read_late(films, tmp_path, monkeypatch, late,
                                                                                     broken, figure):
    if broken != 4:         # once with checkpoints after every step, and once with those of each epoch
        save_after_every_step(monkeypatch)
    rows, saved = [], []

    def planted(*args):
        result = training_step(*args)
        rows.append(result.rows)
        if len(rows) == broken:
            result.figures[figure].fill_(torch.nan)
        return result

    save = Checkpoints.save
    monkeypatch.setattr(subject, "training_step", planted)
    monkeypatch.setattr(Checkpoints, "save", lambda *args: saved.append(args[-1].step) or save(*args))
    with pytest.raises(ModelError) as caught:
        run(films, tmp_path)
    clips = ", ".join(subject.ShardReader(films, "train").clips[row].video_id for row in rows[broken - 1])
    assert str(caught.value).startswith(
        f"training, step {broken}: need a finite {figure.removesuffix('_norm')}, got nan.")
    assert str(caught.value).endswith(f"the clips were {clips}.")
    assert max(saved, default=0) == {1: 0, 4: 3, 9: 8}[broken]


def test_train_saves_no_broken_weights_when_a_gradient_is_not_finite(films, tmp_path, monkeypatch):
    """The loss is finite in that step, the third, and the run is stopped before its weights change."""
    save_after_every_step(monkeypatch)
    calls = []

    def planted(*args):
        total, result = batch_loss(*args)
        calls.append(1)
        if len(calls) == 3:
            total.register_hook(lambda gradient: gradient * torch.inf)
        return total, result

    monkeypatch.setattr(step, "batch_loss", planted)
    with pytest.raises(ModelError, match=r"^training, step 3: need a finite gradient, got nan\. Lower train\.lr"):
        run(films, tmp_path)
    newest, older = sorted((tmp_path / "checkpoints").glob("*/step_*"), reverse=True)
    assert (newest.name, older.name) == ("step_00000002.safetensors", "step_00000001.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in load_file(newest).items() if name.startswith("model/"))


def test_train_says_to_learn_slower_when_vectors_of_validation_are_not_finite(films, tmp_path, monkeypatch):
    """The last step of the first epoch breaks the weights, with a finite loss and gradient."""
    save_after_every_step(monkeypatch)
    steps = []

    def planted(model, *args):
        result = training_step(model, *args)
        steps.append(1)
        if len(steps) == 3:
            with torch.no_grad():
                model.towers.visual_projection.weight.fill_(torch.nan)
        return result

    monkeypatch.setattr(subject, "training_step", planted)
    with pytest.raises(ModelError, match=r"^training, validation after step 3: need finite vectors, got NaN or infinity"
                                         r"\. Lower train\.lr .* The last good checkpoint is .*step_00000002\.saf"):
        run(films, tmp_path)
