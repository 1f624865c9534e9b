"""Short training runs, compared to the last bit."""

import math

import torch
from model_world import section, train_config
from safetensors.torch import load_file

from hcmi.model import HcmiModel
from hcmi.train import checkpoints, train
from hcmi.train import stage as subject
from hcmi.train.stage import Checkpoints

SMALL = {"epochs": 3, "batch_size": 8}


def run(shards, folder, model=None, **changes) -> dict:
    """Train on one thread: bit for bit the same here and in another process, however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(shards_dir=shards, model_dir=folder / "model", metrics_dir=folder / "metrics",
                     checkpoint_dir=folder / "checkpoints", model_config=model or section(),
                     config=train_config(**{**SMALL, **changes}))
    finally:
        torch.set_num_threads(before)


def curves(folder) -> dict[str, str]:
    plots = folder / "metrics" / "plots" / "metrics"
    return {str(path.relative_to(plots)): path.read_text() for path in sorted(plots.rglob("*.tsv"))}


def assert_same_run(left, right) -> None:
    """Equal weights to the last bit, equal curves."""
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (left, right)]
    different = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert not different, f"{len(different)} of {len(weights[0])} tensors differ, e.g. {different[0]}"
    assert curves(left) == curves(right)
    for name in ("metrics.json", "plots/training.png"):
        assert (left / "metrics" / name).read_bytes() == (right / "metrics" / name).read_bytes()


def save_after_every_step(monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(checkpoints, "MAX_SHARE", math.inf)


class StopError(Exception):
    pass


def stop_at(monkeypatch, where: str, time_called: int) -> None:
    """Raise on the n-th call of a function of the training loop."""
    owner, name = {"step": (subject, "training_step"), "validate": (subject, "validate"),
                   "best": (Checkpoints, "keep_best"), "last": (Checkpoints, "save"),
                   "model": (HcmiModel, "save_pretrained")}[where]
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == time_called:
            raise StopError(where)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
