"""What would end or spoil a training run, found before it: one check for `hcmi doctor`, `hcmi train` and its plan.

    found = check_run(data, model_config, config)
    found.problems      # training refuses to start
    found.warnings      # training says so and goes on
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from hcmi.config import ModelConfig, TrainConfig
from hcmi.errors import ConfigError, HcmiError
from hcmi.model import HcmiModel, new_retriever
from hcmi.runtime import free_memory_bytes, own_memory_bytes, pick_device, pick_precision
from hcmi.train.memory import Memory, training_memory
from hcmi.train.tower_training import add_adapters, optimizers_of

FEW_CLIPS = 1000            # below this, towers that start from nothing learn little [ours]
HIGHEST_TOWER_LR = 1e-5     # of pretrained towers; published methods use 1e-7 to 1e-6
HIGHEST_NEW_LR = 1e-3       # of new layers on pretrained towers
MOST_MISSING = 0.5          # share of the videos
ZERO_SHOT = "`hcmi search QUERY --videos FOLDER --model CHECKPOINT` needs no training"
LAPTOP = "presets/laptop.yaml trains on a pretrained checkpoint"


@dataclass(frozen=True)
class RunData:
    """What is known of the data before a run."""

    clips: Mapping[str, int]            # split -> clips that have a file
    captions: Sequence[str]             # of the training clips
    image_size: int                     # of the shards
    files: int = 0                      # videos that are there ...
    missing: int = 0                    # ... and that are named but not there


@dataclass(frozen=True)
class Preflight:
    """What was found. `memory` is None where there is no model to ask."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    memory: Memory | None = None


def check_run(data: RunData, model_config: ModelConfig, config: TrainConfig, model: HcmiModel | None = None
              ) -> Preflight:
    """Everything that can be said before a run. Without `model` one is made, as the run would make it.

    Nothing is written, and of the model only `requires_grad` is set. It takes about the memory and time that loading
    the backbone takes.
    """
    problems = [*_data_problems(data), *_tower_problems(model_config, config)]
    warnings = [*_few_clips(data, model_config), *_rates(model_config, config)]
    memory = None
    try:
        device = pick_device(config.device)
        if model is None and not problems:
            model = new_retriever(model_config, data.image_size, list(data.captions))
            if config.towers == "lora":
                add_adapters(model, config.lora)
            if config.activation_checkpointing:
                model.checkpoint_activations()
        if model is not None and not problems:
            optimizers_of(model, config)        # it says which weights learn
            warnings += _frame_size(model, data.image_size)
            fitted = config.model_copy(update={"batch_size": min(config.batch_size, data.clips["train"])})
            memory = training_memory(model, fitted, data.image_size, data.captions,
                                     pick_precision(config.precision, device))
            problems += _memory_problems(memory, config, device.type)
    except HcmiError as error:
        problems.append(str(error))
    return Preflight(problems, warnings, memory)


def refuse(found: Preflight) -> None:
    """Raises: ConfigError with the first problem."""
    if found.problems:
        more = f" ({len(found.problems) - 1} more: `hcmi train --plan` lists them.)" if len(found.problems) > 1 else ""
        raise ConfigError(found.problems[0] + more)


def _data_problems(data: RunData) -> list[str]:
    problems = [f"split {split}: need at least one clip, got none. Give some videos the split {split!r}, or raise "
                f"dataset.{split}_fraction." if split != "train" else
                "split train: need at least one clip, got none. Give more videos the split 'train'."
                for split in ("train", "val") if not data.clips.get(split)]
    named = data.files + data.missing
    if named and data.missing / named > MOST_MISSING:
        problems.append(f"videos: need at least {1 - MOST_MISSING:.0%} of the {named:,} that the captions name, got "
                        f"{data.files:,}; {data.missing:,} are missing. Put their files into the folder, or remove "
                        f"their captions.")
    if data.clips.get("train") and not data.captions:
        problems.append("captions: need some to train with, got none. Write captions.csv, or search without training: "
                        f"{ZERO_SHOT}.")
    return problems


def _tower_problems(model_config: ModelConfig, config: TrainConfig) -> list[str]:
    if model_config.backbone != "scratch" or config.towers == "train":
        return []
    return [f"train.towers {config.towers}: need a pretrained model.backbone, got scratch, whose towers know nothing. "
            f"Name a checkpoint, or set train.towers to train."]


def learns_little(data: RunData, model_config: ModelConfig) -> bool:
    """Whether the towers would start from nothing, on too few clips to learn from."""
    return model_config.backbone == "scratch" and data.clips.get("train", 0) < FEW_CLIPS


def _few_clips(data: RunData, model_config: ModelConfig) -> list[str]:
    if not learns_little(data, model_config):
        return []
    return [f"training from nothing: need about {FEW_CLIPS:,} clips for a search that means something, got "
            f"{data.clips.get('train', 0):,}. {LAPTOP}, and {ZERO_SHOT}."]


def _rates(model_config: ModelConfig, config: TrainConfig) -> list[str]:
    """Rates that suit towers from scratch and spoil pretrained ones."""
    if model_config.backbone == "scratch":
        return []
    warnings = []
    if config.towers == "train" and config.backbone_lr > HIGHEST_TOWER_LR:
        warnings.append(f"train.backbone_lr: need at most {HIGHEST_TOWER_LR:g} for pretrained towers, got "
                        f"{config.backbone_lr:g}: they forget what they know. Set it to 1e-7, or train.towers to "
                        f"frozen.")
    if config.lr > HIGHEST_NEW_LR:
        warnings.append(f"train.lr: need at most {HIGHEST_NEW_LR:g} on pretrained towers, got {config.lr:g}. Set it to "
                        f"1e-4.")
    return warnings


def _frame_size(model: HcmiModel, image_size: int) -> list[str]:
    trained = getattr(getattr(model.towers.config, "vision_config", None), "image_size", image_size)
    if model.config.backbone == "scratch" or image_size == trained:
        return []
    return [f"shards.size: need the {trained} pixels that {model.config.backbone!r} was trained on, got {image_size}. "
            f"Set it to {trained}."]


def _memory_problems(memory: Memory, config: TrainConfig, device: str) -> list[str]:
    needed = memory.total if device == "cpu" else memory.in_machine
    free = free_memory_bytes() + own_memory_bytes()     # what this process holds already is part of what is needed
    if needed <= free:
        return []
    lower = ("train.batch_size, or set train.micro_batch to a small number" if memory.activations > needed / 3
             else "train.batch_size or train.num_workers")
    frozen = ", or train.towers to frozen" if config.towers != "frozen" else ""
    return [f"memory: need about {needed / 1e9:.1f} GB to train, got {free / 1e9:.1f} GB. Lower {lower}{frozen}."]


def count_weights(model: nn.Module) -> dict[str, int]:
    """Number of weights that learn, and of those that stay."""
    counts = {True: 0, False: 0}
    for weight in model.parameters():
        counts[weight.requires_grad] += weight.numel()
    return {"trained": counts[True], "frozen": counts[False]}
