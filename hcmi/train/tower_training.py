"""How the towers learn: all their weights, slower in earlier layers; or low-rank adapters beside them."""

import re
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from hcmi.config import LoraConfig, TrainConfig
from hcmi.errors import ConfigError
from hcmi.model import HcmiModel
from hcmi.train.optimizers import make_optimizers

LAYER = re.compile(r"(towers\..*?)\.(\d+)\.")         # the first number in a name is that of the layer ...
# ... but for numbers in what comes before the layers, as transformers, open_clip and timm call it.
BEFORE_LAYERS = re.compile(r"\.(embeddings|pre_layrnorm|conv1|class_embedding|positional_embedding|token_embedding"
                           r"|ln_pre|patch_embed|pos_embed|cls_token|reg_token|stem)(\.|$)")
ADAPTER = "lora_"


def optimizers_of(model: HcmiModel, config: TrainConfig) -> list[Optimizer]:
    """The optimisers of `make_optimizers`, for what `config.towers` lets learn.

    Adapters are new layers: they learn at `config.lr`. With `config.layer_decay` the learning rates of a tower's
    layers fall from its last one to its first (`layer_factors`).
    """
    if config.towers == "train":
        optimizers = make_optimizers(model, config)
    else:
        optimizers = make_optimizers(model, config.model_copy(update={"backbone_lr": 0.0}))
        if adapters := [weight for name, weight in model.named_parameters() if ADAPTER in name]:
            for weight in adapters:
                weight.requires_grad_(True)
            optimizers[0].add_param_group({"params": adapters, "lr": config.lr, "peak_lr": config.lr,
                                           "weight_decay": config.weight_decay})
    if config.layer_decay < 1:
        _slow_down(optimizers, model, config.layer_decay)
    return optimizers


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Name of a weight of the towers -> what its learning rate is multiplied by.

    It is `decay ** (L - l)` for layer l of a tower of L layers, counted from 1, `decay ** L` for what comes before the
    layers, and 1 for what comes after them.
    Source: as in BEiT (arXiv 2106.08254), with the last layer at the full rate [ours].
    """
    names = [name for name, _ in model.named_parameters() if name.startswith("towers.")]
    places = {name: place for name in names if (place := _layer(name))}
    layers: dict[str, int] = {}
    for tower, number in places.values():
        layers[tower] = max(layers.get(tower, 0), number + 1)
    factors = {}
    for name in names:
        power = 0
        if name in places:
            tower, number = places[name]
            power = layers[tower] - 1 - number
        elif BEFORE_LAYERS.search(name):
            power = max((count for tower, count in layers.items() if _same_tower(tower, name)), default=0)
        factors[name] = decay ** power
    return factors


def _layer(name: str) -> tuple[str, int] | None:
    """What has the layer that a weight belongs to, and the layer's number; None for a weight outside of layers."""
    found = LAYER.match(name)
    return None if found is None or BEFORE_LAYERS.search(found[1]) else (found[1], int(found[2]))


def _same_tower(layers: str, name: str) -> bool:
    """Open_clip has its image tower as `visual` in one module with the text tower."""
    ours, others = layers.split("."), name.split(".")
    return ours[:2] == others[:2] and ("visual" in ours) == ("visual" in others)


def _slow_down(optimizers: Sequence[Optimizer], model: HcmiModel, decay: float) -> None:
    """Split the groups of weights by their factors."""
    factors = layer_factors(model, decay)
    factor_of = {id(weight): factors.get(name, 1.0) for name, weight in model.named_parameters()}
    for optimizer in optimizers:
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group in groups:
            for factor in sorted({factor_of[id(weight)] for weight in group["params"]}, reverse=True):
                weights = [weight for weight in group["params"] if factor_of[id(weight)] == factor]
                rates = {name: group[name] * factor for name in ("lr", "peak_lr")}
                optimizer.add_param_group({**group, "params": weights, **rates})


def add_adapters(model: HcmiModel, config: LoraConfig) -> None:
    """Put low-rank adapters beside the matrices of the towers' layers; they change nothing before training.

    Source: Hu et al. 2021 (arXiv 2106.09685), by the library peft. Raises: ConfigError when it is not installed.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"train.towers lora: need the package peft, got none ({error}). Install it with `pip install "
                          f"'hcmi[lora]'`, or set train.towers to frozen.") from error
    layers = [name for name, module in model.towers.named_modules() if isinstance(module, nn.Linear)
              and _layer(f"towers.{name}.")
              and not isinstance(model.towers.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)]
    inject_adapter_in_model(PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=layers), model.towers)


def merge_adapters(model: HcmiModel) -> HcmiModel:
    """The model with its adapters added to the matrices that they belong to, and gone; one without any is unchanged."""
    adapted = [(name, module) for name, module in model.towers.named_modules() if hasattr(module, "get_base_layer")]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(model.towers.get_submodule(parent), own, module.get_base_layer())
    return model
