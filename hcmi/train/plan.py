"""`hcmi train --plan`: what a run would take, from a few timed steps, and what it would ignore. Nothing is written."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hcmi.config import ModelConfig, TrainConfig
from hcmi.model import HcmiModel, HeadOnFeatures
from hcmi.processes import count_processes
from hcmi.runtime import free_memory_bytes, own_memory_bytes, pick_device, pick_precision, seed_everything
from hcmi.shards import ShardReader, TrainBatch, TrainLoader
from hcmi.train.feature_files import features_folder
from hcmi.train.kept_features import encoding_seconds, missing_features
from hcmi.train.memory import FLOAT
from hcmi.train.preflight import RunData, check_run, count_weights
from hcmi.train.step import training_step
from hcmi.train.tower_training import optimizers_of

TIMED_SECONDS = 5.0         # a step of as many clips is timed as take about this long
FORWARD_SHARE = 1 / 3       # of the time of a step, which validation takes for as many clips
# keys of `train` that do nothing, by what makes them so
BY_TOWERS = {"frozen": ("backbone_lr", "layer_decay", "lora", "num_workers", "activation_checkpointing"),
             "lora": ("backbone_lr",), "train": ("lora",)}
OF_HCMI = ("loss.level_weights", "loss.sum_weight", "loss.balance_weight", "loss.margin", "loss.margin_weight",
           "loss.marginal_group", "loss.denoise", "loss.denoise_by", "loss.warmup_epochs")


def plan_training(*, shards_dir: str | Path, model_config: ModelConfig, config: TrainConfig) -> dict[str, Any]:
    """Weights, memory, time, disk space, what is ignored, and the problems that `train` would refuse to start with.

    The timed steps are on random frames: reading the shards, which workers do beside training, is not counted.
    Raises: DataError for missing or broken shards; ConfigError for a device that is not there, or a batch that the
    processes cannot share.
    """
    readers = [ShardReader(shards_dir, split) for split in (("train", "val") if config.epochs else ("val",))]
    data = RunData.of(readers)
    device = pick_device(config.device)
    plan: dict[str, Any] = {"device": str(device), "precision": pick_precision(config.precision, device),
                            "clips": data.clips, "ignored": ignored_settings(model_config, config)}
    seed_everything(config.seed)
    found = check_run(data, model_config, config)
    plan |= {"warnings": found.warnings, "problems": found.problems}
    model = found.model
    if model is None:
        return plan
    plan["weights"] = count_weights(model)
    if found.memory is None:
        return plan
    gigabytes = {part: round(size / 1e9, 2) for part, size in asdict(found.memory).items()}
    plan["memory_gb"] = {**gigabytes, "total": round(found.memory.total / 1e9, 2),
                         "free": round((free_memory_bytes() + own_memory_bytes()) / 1e9, 2)}
    if device.type == "cuda":
        plan["memory_gb"]["gpu"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 2)
    plan |= _time(model, readers, config, plan["precision"])
    plan["disk_gb"] = _disk(model, config, plan.pop("features_bytes"))
    return plan


def ignored_settings(model_config: ModelConfig, config: TrainConfig) -> list[str]:
    """Keys of params.yaml that do nothing in this run, each with the reason."""
    found = {f"train.{name}": f"train.towers is {config.towers}" for name in BY_TOWERS[config.towers]}
    if config.layer_decay == 1:
        found.pop("train.layer_decay", None)
    if model_config.backbone != "scratch":
        found["model.scratch"] = "model.backbone is pretrained"
    if model_config.head != "hcmi":
        found |= {f"train.{name}": f"model.head is {model_config.head}" for name in OF_HCMI}
    elif config.loss.denoise == "off":
        found["train.loss.denoise_by"] = "train.loss.denoise is off"
    return [f"{name}: {reason}" for name, reason in found.items()]


def _time(model: HcmiModel, readers: list[ShardReader], config: TrainConfig, precision: str) -> dict[str, Any]:
    """Seconds of a step, of an epoch with its validation, and of the whole run."""
    train_reader, val_reader = readers
    loader = TrainLoader(train_reader, config.batch_size, model.config.num_frames,
                         num_captions=config.captions_per_clip,
                         world_size=count_processes(config.num_processes, config.device))
    features = {"features_bytes": 0.0, "features_s": 0.0}
    learner, slots = model, train_reader.frame_shape
    longest = max((caption for clip in train_reader.clips for caption in clip.captions), key=len)
    if config.towers == "frozen":
        missing = missing_features(model, readers, precision)
        features = {"features_bytes": 2.0 * model.head.dim * (missing.frames + missing.states),
                    "features_s": encoding_seconds(model, precision, missing, train_reader.frame_shape, longest)}
        num_tokens = int(model.processor.texts([longest])[1].sum())
        states_ND = np.random.default_rng(0).standard_normal((num_tokens + 1, model.head.dim)).astype(np.float16)
        learner, slots = HeadOnFeatures(model, {longest: (0, num_tokens)}, [states_ND]), (2 * model.head.dim,)
    step_s = _step_seconds(learner, slots, config, precision, loader, longest)
    validation_s = FORWARD_SHARE * step_s * len(val_reader) / loader.batch_size
    epoch_s = len(loader) * step_s + validation_s
    return {"steps_per_epoch": len(loader), "batch_size": loader.batch_size, **features, "step_s": step_s,
            "epoch_s": epoch_s, "hours": (features["features_s"] + config.epochs * epoch_s) / 3600}


def _step_seconds(model: HcmiModel, slots: tuple[int, ...], config: TrainConfig, precision: str, loader: TrainLoader,
                  caption: str) -> float:
    """Of a whole batch, from the largest part of it that takes some seconds."""
    optimizers, batch_size = optimizers_of(model, config), loader.batch_size
    micro_batch = 0 if config.micro_batch == "auto" else int(config.micro_batch)
    model.train()

    def timed(clips: int) -> float:
        noise = torch.randn(clips, model.config.num_frames, slots[0] // 2, generator=torch.Generator().manual_seed(0)
                            ).half().view(torch.uint8) if len(slots) == 1 else torch.randint(
            0, 256, (clips, model.config.num_frames, *slots), dtype=torch.uint8)
        batch = TrainBatch(list(range(clips)), [[caption] * clips] * loader.num_captions, noise,
                           torch.ones(clips, model.config.num_frames, dtype=torch.bool))
        started = time.perf_counter()
        training_step(model, optimizers, batch, config, "off", precision, None, micro_batch)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - started

    clips = min(2, batch_size)
    timed(clips)            # the first step makes what later ones use again
    seconds = timed(clips)
    larger = min(batch_size, int(clips * TIMED_SECONDS / seconds))
    if larger > clips:
        clips, seconds = larger, timed(larger)
    return seconds * batch_size / clips


def _disk(model: HcmiModel, config: TrainConfig, features_bytes: float) -> dict[str, float]:
    """Gigabytes of the model, of checkpoints while the run lasts, and of features that are not there yet."""
    whole = FLOAT * sum(weight.numel() for weight in model.parameters())
    learning = FLOAT * count_weights(model)["trained"]
    state = (learning if config.towers == "frozen" else whole) + 2 * learning
    place = features_folder()
    while not place.exists():
        place = place.parent
    sizes = {"model": whole, "checkpoints": 2 * state + (state - 2 * learning), "features": features_bytes,
             "free": shutil.disk_usage(".").free, "free_for_features": shutil.disk_usage(place).free}
    return {name: round(size / 1e9, 3) for name, size in sizes.items()}


def plan_text(plan: dict[str, Any]) -> str:
    """The plan for people; its last lines are the problems, or say that there are none."""
    rows = {"clips": ", ".join(f"{count:,} {split}" for split, count in plan["clips"].items()),
            "device": f"{plan['device']}, {plan['precision']}"}
    if "weights" in plan:
        rows["weights"] = " ".join((f"{plan['weights']['trained'] / 1e6:.1f} M learn,",
                                    f"{plan['weights']['frozen'] / 1e6:.1f} M stay as they are"))
    if memory := plan.get("memory_gb"):
        parts = {"weights": "weights", "learning": "gradients and optimisers", "activations": "activations",
                 "batches": "batches", "copies": "copies for checkpoints", "process": "the program"}
        rows["memory"] = (f"about {memory['total']:.1f} GB of {memory['free']:.1f} GB: "
                          + ", ".join(f"{words} {memory[part]:.1f}" for part, words in parts.items()))
        if "gpu" in memory:
            on_card = memory["weights"] + memory["learning"] + memory["activations"]
            rows["GPU memory"] = f"about {on_card:.1f} GB of {memory['gpu']:.1f} GB for a whole batch at once"
    if "step_s" in plan:
        if plan["features_s"]:
            rows["features"] = f"about {_duration(plan['features_s'])}, once"
        rows["time"] = (f"about {_duration(3600 * plan['hours'])}: {plan['steps_per_epoch']} steps of "
                        f"{plan['step_s']:.2f} s an epoch of {_duration(plan['epoch_s'])}")
        disk = plan["disk_gb"]
        rows["disk"] = (f"{disk['model']:.2f} GB model, {disk['checkpoints']:.2f} GB checkpoints until it is done "
                        f"({disk['free']:.0f} GB free); {disk['features']:.2f} GB features "
                        f"({disk['free_for_features']:.0f} GB free)")
    lines = [f"{name:12}{value}" for name, value in rows.items()]
    lines += [f"ignored: {text}" for text in plan["ignored"]]
    lines += [f"warning: {text}" for text in plan["warnings"]]
    lines += [f"problem: {text}" for text in plan["problems"]] or ["ready: no problem found"]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"
