"""How the towers learn: adapters beside them, and slower layers the earlier they are."""

import pytest
import torch
from model_world import SIZE, make_shards, save_small_clip, save_small_siglip, section, tiny_model, train_config
from safetensors.torch import load_file
from torch import nn
from train_world import StopError, assert_same_run, run, save_after_every_step, stop_at

from hcmi.config import LoraConfig
from hcmi.errors import ConfigError
from hcmi.model import new_retriever
from hcmi.train.optimizers import make_optimizers
from hcmi.train.tower_training import add_adapters, layer_factors, merge_adapters, optimizers_of

LORA = LoraConfig(rank=2, alpha=4)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("few"), num_train=6)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"), image_size=SIZE)


def peft_or_skip() -> None:
    pytest.importorskip("peft", reason="`pip install .[lora]` installs it")


def adapted(folder):
    torch.manual_seed(0)
    model = new_retriever(section(backbone=str(folder), num_words=32), SIZE, []).eval()
    add_adapters(model, LORA)
    return model


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    pixels = torch.randn(2, 3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    texts = model.encode_texts(*model.processor.texts(["a red film", "blue"]))
    return torch.cat([model.encode_videos(pixels, torch.ones(2, 3, dtype=torch.bool)).video_BD, texts.sentence_BD])


# adapters

@pytest.mark.parametrize("save", [save_small_clip, save_small_siglip])
def test_adapters_change_nothing_before_training_and_are_merged_when_saved(tmp_path, save):
    peft_or_skip()
    folder = save(tmp_path / "towers")
    torch.manual_seed(0)
    plain = new_retriever(section(backbone=str(folder), num_words=32), SIZE, []).eval()
    names, before = set(plain.state_dict()), outputs(plain)
    model = adapted(folder)
    model.head.load_state_dict(plain.head.state_dict())
    assert torch.allclose(outputs(model), before, atol=1e-5)
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert {name.split(".")[1] for name in adapters} == {"vision_model", "text_model"}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in adapters:
                weight.normal_(0, 0.2)
    trained = outputs(model)
    assert not torch.allclose(trained, before, atol=1e-2)
    assert set(merge_adapters(model).state_dict()) == names
    assert torch.allclose(outputs(model), trained, atol=1e-4)


def test_adapters_and_head_learn_and_nothing_else(clip):
    peft_or_skip()
    model = adapted(clip)
    config = train_config(towers="lora", lr=1e-3, backbone_lr=1e-5)
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {names[id(weight)]: group["peak_lr"] for made in optimizers_of(model, config)
             for group in made.param_groups for weight in group["params"]}
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert rates == dict.fromkeys(learning, 1e-3)
    assert learning == {name for name in names.values() if name.startswith("head.") or "lora_" in name}


def lora(films, folder, clip, **changes):
    return run(films, folder, section(backbone=str(clip), num_words=32),
               **{"towers": "lora", "lora": LORA.model_dump(), "layer_decay": 0.5, "batch_size": 3, "epochs": 2,
                  **changes})


def test_run_with_adapters_saves_an_ordinary_model_and_restarts_exactly(few, clip, tmp_path, monkeypatch):
    peft_or_skip()
    lora(few, tmp_path / "undisturbed", clip)
    before = load_file(clip / "model.safetensors")
    after = load_file(tmp_path / "undisturbed" / "model" / "model.safetensors")
    towers = {name.removeprefix("towers."): weight for name, weight in after.items() if name.startswith("towers.")}
    assert towers.keys() == before.keys()
    moved = {name for name, weight in towers.items() if not torch.equal(weight, before[name])}
    assert moved
    assert all(".layers." in name and name.endswith(".weight") for name in moved)
    with monkeypatch.context() as patched:
        save_after_every_step(patched)
        stop_at(patched, "step", 3)
        with pytest.raises(StopError):
            lora(few, tmp_path / "stopped", clip)
    lora(few, tmp_path / "stopped", clip)
    assert_same_run(tmp_path / "undisturbed", tmp_path / "stopped")


def test_missing_package_is_named(clip, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"train\.towers lora: need the package peft, got none .* `pip install"):
        adapted(clip)


# layer by layer

def test_factors_are_those_worked_by_hand():
    """A vision tower of two layers and a text tower of one."""
    factors = layer_factors(tiny_model(), 0.5)
    vision, text = "towers.vision_model", "towers.text_model"
    assert factors[f"{vision}.encoder.layers.1.mlp.fc1.weight"] == 1
    assert factors[f"{vision}.encoder.layers.0.mlp.fc1.weight"] == 0.5
    assert factors[f"{vision}.embeddings.patch_embedding.weight"] == 0.25
    assert factors[f"{vision}.pre_layrnorm.weight"] == 0.25
    assert factors[f"{text}.encoder.layers.0.self_attn.q_proj.bias"] == 1
    assert factors[f"{text}.embeddings.token_embedding.weight"] == 0.5
    for name in (f"{vision}.post_layernorm.weight", f"{text}.final_layer_norm.bias", "towers.visual_projection.weight",
                 "towers.text_projection.weight", "towers.logit_scale"):
        assert factors[name] == 1, name
    assert set(factors) == {name for name, _ in tiny_model().named_parameters() if name.startswith("towers.")}


def test_factors_of_all_of_the_convolutions_are_those_of_what_comes_before_two_layers():
    """The stem is a sequence of convolutions, and the class token's map is one too: their numbers are no layers'."""
    factors = layer_factors(tiny_model(scratch={**section().scratch.model_dump(), "stem": "conv"}), 0.5)
    before = {name: factor for name, factor in factors.items() if ".vision_model.embeddings." in name}
    assert {name.split(".")[3] for name in before} >= {"patch_embedding", "map"}
    assert set(before.values()) == {0.25}
    assert factors["towers.vision_model.encoder.layers.0.mlp.fc1.weight"] == 0.5


def test_factors_of_towers_that_have_the_names_of_open_clip():
    """An image tower of three layers as `visual`, and a text tower of two in the same module."""
    names = {f"visual.{name}": 0.125 for name in ("conv1.weight", "class_embedding", "positional_embedding",
                                                  "ln_pre.weight", "trunk.patch_embed.proj.weight", "trunk.pos_embed",
                                                  "trunk.stem.0.weight", "trunk.stem.1.conv1.weight")}
    names |= {f"visual.transformer.resblocks.{layer}.mlp.weight": 0.5 ** (2 - layer) for layer in range(3)}
    names |= {"token_embedding.weight": 0.25, "positional_embedding": 0.25, "transformer.resblocks.0.mlp.weight": 0.5,
              "transformer.resblocks.1.mlp.weight": 1.0, "visual.proj": 1.0, "ln_final.weight": 1.0}
    model = nn.Module()
    for name in names:
        module = model
        *path, last = f"towers.clip.{name}".split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros(1)))
    assert layer_factors(model, 0.5) == {f"towers.clip.{name}": factor for name, factor in names.items()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_rates_are_those_of_the_factors_and_the_rest_of_a_group_stays(optimizer):
    model = tiny_model()
    config = train_config(optimizer=optimizer, lr=1e-3, backbone_lr=1e-5, weight_decay=0.2)
    names = {id(weight): name for name, weight in model.named_parameters()}

    def settings(optimizers, factors=None):
        return {names[id(weight)]: (type(made), group["peak_lr"] / (factors or {}).get(names[id(weight)], 1.0),
                                    group["weight_decay"], group.get("betas"))
                for made in optimizers for group in made.param_groups for weight in group["params"]}

    plain = settings(make_optimizers(model, config))
    slowed = settings(optimizers_of(model, config.model_copy(update={"layer_decay": 0.5})), layer_factors(model, 0.5))
    assert slowed.keys() == plain.keys()
    for name, (kind, rate, decay, betas) in plain.items():
        assert slowed[name] == (kind, pytest.approx(rate), decay, betas), name
    assert settings(optimizers_of(model, config)) == plain


@pytest.mark.slow       # a run with adapters has layer decay too
def test_run_with_layer_decay_restarts_exactly(few, tmp_path, monkeypatch):
    changes = {"layer_decay": 0.5, "batch_size": 3, "epochs": 2}
    run(few, tmp_path / "undisturbed", **changes)
    with monkeypatch.context() as patched:
        save_after_every_step(patched)
        stop_at(patched, "step", 3)
        with pytest.raises(StopError):
            run(few, tmp_path / "stopped", **changes)
    run(few, tmp_path / "stopped", **changes)
    assert_same_run(tmp_path / "undisturbed", tmp_path / "stopped")
