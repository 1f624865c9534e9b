"""Which weights an optimiser gets, and the learning rate over a run."""

import types

import pytest
import torch
from model_world import tiny_model, train_config

from hcmi.train.optimizers import make_optimizers, set_learning_rate


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_optimizers_have_two_rates_and_decay_matrices_only_when_made(optimizer):
    model = tiny_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen = []
    for made in make_optimizers(model, train_config(optimizer=optimizer, lr=1e-3, backbone_lr=1e-5, weight_decay=0.2)):
        for group in made.param_groups:
            for weight in group["params"]:
                name = names[id(weight)]
                seen.append(name)
                assert group["peak_lr"] == (1e-5 if name.startswith("towers.") else 1e-3), name
                assert group["weight_decay"] == (0.2 if weight.dim() > 1 else 0.0), name
    assert sorted(seen) == sorted(names.values())


def muon_names(model, **changes) -> set[str]:
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {names[id(weight)] for made in make_optimizers(model, train_config(**changes))
            if isinstance(made, torch.optim.Muon) for group in made.param_groups for weight in group["params"]}


def test_muon_takes_the_matrices_of_new_layers_when_it_is_chosen():
    model = tiny_model()
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert muon_names(model, optimizer="adamw") == set()
    assert muon_names(model, optimizer="muon") == linear
    model.config.backbone = "a pretrained one"
    assert muon_names(model, optimizer="muon") == {n for n in linear if n.startswith("head.")}


@pytest.mark.parametrize(("done", "factor"), [(0.0, 1e-3), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 1e-3)])
def test_learning_rate_warms_up_and_falls_when_worked_by_hand(done, factor):
    optimizers = [types.SimpleNamespace(param_groups=[{"peak_lr": peak}]) for peak in (2.0, 4.0)]
    set_learning_rate(optimizers, done, 0.1)
    assert [made.param_groups[0]["lr"] for made in optimizers] == pytest.approx([2 * factor, 4 * factor])


def test_learning_rate_starts_at_its_peak_when_there_is_no_warm_up():
    optimizer = types.SimpleNamespace(param_groups=[{"peak_lr": 2.0}])
    set_learning_rate([optimizer], 0.0, 0.0)
    assert optimizer.param_groups[0]["lr"] == 2.0
