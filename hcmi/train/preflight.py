"""What would end or spoil a training run, found before it: one check for `hcmi doctor`, `hcmi train` and its plan.

    data = RunData.of([train_reader, val_reader])
    found = check_run(data, model_config, config)
    found.problems      # training refuses to start
    found.warnings      # training says so and goes on
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import nn

from hcmi.config import ModelConfig, TrainConfig
from hcmi.errors import ConfigError, HcmiError
from hcmi.model import (
    CLIP_SQUARE,
    HcmiModel,
    Square,
    multiply_patches,
    new_retriever,
    warn_of_foreign,
    zero_shot_retriever,
)
from hcmi.runtime import free_memory_bytes, own_memory_bytes, pick_device, pick_precision
from hcmi.shards import ShardReader, captions_taken
from hcmi.train.memory import Memory, training_memory
from hcmi.train.tower_training import add_adapters, optimizers_of
from hcmi.wording import plural

FEW_CLIPS = 1000            # below this, towers that start from nothing learn little [ours]
HIGHEST_TOWER_LR = 1e-5     # of pretrained towers; published methods use 1e-7 to 1e-6
HIGHEST_NEW_LR = 1e-3       # of new layers on pretrained towers
MOST_MISSING = 0.5          # share of the videos
ZERO_SHOT = "`hcmi search QUERY --videos FOLDER --model CHECKPOINT` needs no training"
LAPTOP = "presets/laptop.yaml trains on a pretrained checkpoint"


@dataclass(frozen=True)
class RunData:
    """What is known of the data before a run."""

    captions: Mapping[str, Sequence[Sequence[str]]]     # split -> those of each clip that has a file
    image_size: int                     # of the shards ...
    square: Square = CLIP_SQUARE        # ... and how their frames became square
    untagged: int = 0                   # training clips without the tag `meaning`
    files: int = 0                      # videos that are there ...
    missing: int = 0                    # ... and that are named but not there

    @classmethod
    def of(cls, readers: Sequence[ShardReader]) -> "RunData":
        return cls({reader.split: [clip.captions for clip in reader.clips] for reader in readers},
                   readers[0].frame_shape[0], readers[0].square,
                   sum(clip.tags.get("meaning") is None for reader in readers if reader.split == "train"
                       for clip in reader.clips))

    @property
    def clips(self) -> dict[str, int]:
        """Split -> clips that have a file."""
        return {split: len(clips) for split, clips in self.captions.items()}

    @property
    def texts(self) -> list[str]:
        """The captions of the training clips."""
        return list(chain.from_iterable(self.captions.get("train", ())))


@dataclass(frozen=True)
class Preflight:
    """What was found. `model` and `memory` are None where a problem keeps the model from being made."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    model: HcmiModel | None = None
    memory: Memory | None = None


def model_of_run(data: RunData, model_config: ModelConfig, config: TrainConfig, device: torch.device) -> HcmiModel:
    """The model that a run begins with, on the device; that of a run without epochs is the backbone as it is.

    It warns of frames and captions that are not the backbone's.
    Raises: ModelError when the backbone cannot be read or cannot see such frames; ConfigError without what adapters
    need.
    """
    if not config.epochs:
        model = zero_shot_retriever(model_config, data.image_size, data.square)
        nn.Module.to(model, device)
        return model
    model = new_retriever(model_config, data.image_size, data.texts, data.square)
    if model_config.backbone != "scratch":
        warn_of_foreign(model.processor.tokenizer, data.texts, model_config.backbone)
    if config.activation_checkpointing:
        model.checkpoint_activations()
    if device.type == "cuda":
        multiply_patches(model)
    if config.towers == "lora":
        add_adapters(model, config.lora)
    nn.Module.to(model, device)
    return model


def data_problems(data: RunData, model_config: ModelConfig, config: TrainConfig) -> list[str]:
    """What can be said before a model is made. A run without epochs needs the split `val` alone."""
    needed = ("train", "val") if config.epochs else ("val",)
    return [*_split_problems(data, needed), *_caption_problems(data, config), *_tower_problems(model_config, config)]


def check_run(data: RunData, model_config: ModelConfig, config: TrainConfig, model: HcmiModel | None = None
              ) -> Preflight:
    """Everything that can be said before a run. Without `model`, that of the run is made.

    Nothing is written, and of the model only `requires_grad` is set. It takes about the memory and time that loading
    the backbone takes.
    """
    problems = data_problems(data, model_config, config)
    warnings = [*_few_clips(data, model_config), *_rates(model_config, config)] if config.epochs else []
    memory = None
    try:
        device = pick_device(config.device)
        if model is None and not problems:
            model = model_of_run(data, model_config, config, device)
        if model is not None and not problems and config.epochs:
            optimizers_of(model, config)        # it says which weights learn
            warnings += _frame_size(model, data.image_size)
            fitted = config.model_copy(update={
                "batch_size": min(config.batch_size, data.clips["train"]),
                "captions_per_clip": captions_taken(config.captions_per_clip, data.captions["train"])})
            memory = training_memory(model, fitted, data.image_size, data.texts,
                                     pick_precision(config.precision, device))
            problems += _memory_problems(memory, config, device.type)
    except HcmiError as error:
        problems.append(str(error))
    return Preflight(problems, warnings, model, memory)


def refuse(problems: Sequence[str]) -> None:
    """Raises: ConfigError with the first problem."""
    if problems:
        more = f" ({len(problems) - 1} more: `hcmi train --plan` lists them.)" if len(problems) > 1 else ""
        raise ConfigError(problems[0] + more)


def _split_problems(data: RunData, needed: Sequence[str]) -> list[str]:
    problems = [f"split {split}: need at least one clip, got none. Give some videos the split {split!r}, or raise "
                f"dataset.{split}_fraction." if split != "train" else
                "split train: need at least one clip, got none. Give more videos the split 'train'."
                for split in needed if not data.clips.get(split)]
    named = data.files + data.missing
    if named and data.missing / named > MOST_MISSING:
        problems.append(f"videos: need at least {1 - MOST_MISSING:.0%} of those that the captions name, got "
                        f"{data.files:,} and {data.missing:,} missing ones. Put their files into the folder, or remove "
                        f"their captions.")
    return problems


def _caption_problems(data: RunData, config: TrainConfig) -> list[str]:
    problems = []
    if (clips := data.captions.get("val")) and not any(clips):
        purpose = "choose the best epoch with" if config.epochs else "measure the model with"
        problems.append(f"split val: need captions to {purpose}, got {plural(len(clips), 'clip')} without "
                        f"any. Caption some.")
    if not config.epochs:
        return problems
    if data.clips.get("train") and not data.texts:
        problems.append("captions: need some to train with, got none. Write captions.csv, or search without training: "
                        f"{ZERO_SHOT}.")
    if data.untagged and config.loss.denoise != "off" and config.loss.denoise_by == "tag":
        problems.append(f"train.loss.denoise_by tag: need the tag `meaning` on every training clip, got "
                        f"{data.untagged} of {data.clips['train']} without. Choose text, or tag the clips: clips with "
                        f"equal tags count as the same.")
    return problems


def _tower_problems(model_config: ModelConfig, config: TrainConfig) -> list[str]:
    if model_config.backbone != "scratch":
        return []
    if not config.epochs:
        return ["train.epochs: need 1 or more for model.backbone scratch, whose weights are random, got 0. Name a "
                "checkpoint as model.backbone, or raise train.epochs."]
    if config.towers == "train":
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
