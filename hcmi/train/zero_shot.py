"""`train.epochs: 0`: the model is the pretrained backbone as it is, and the stages after it measure what it can do."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hcmi.config import ModelConfig, TrainConfig
from hcmi.encode import require_captions
from hcmi.errors import ConfigError
from hcmi.files import atomic_dir
from hcmi.model import HcmiModel, zero_shot_retriever
from hcmi.runtime import pick_device
from hcmi.shards import ShardReader
from hcmi.train.curves import draw_curves
from hcmi.train.log import TrainingLog


def keep_zero_shot(shards_dir: str | Path, model_dir: str | Path, metrics_dir: str | Path, model_config: ModelConfig,
                   config: TrainConfig, validate: Callable[[HcmiModel, ShardReader], dict[str, float]]
                   ) -> dict[str, Any]:
    """Write the backbone as a model folder, and its figures on the split `val` as those of epoch 0. Returns a summary.

    Raises: ConfigError when the backbone is `scratch`; ModelError when it cannot be read; DataError when the split
    `val` is empty or has no captions.
    """
    if int(os.environ.get("RANK", 0)):      # another process of `torchrun` than the first one
        return {}
    if model_config.backbone == "scratch":
        raise ConfigError("train.epochs: need 1 or more for model.backbone scratch, whose weights are random, got 0. "
                          "Name a checkpoint as model.backbone, or raise train.epochs.")
    reader, device = ShardReader(shards_dir, "val"), pick_device(config.device)
    require_captions(reader, "measure the model with")
    model = zero_shot_retriever(model_config, reader.frame_shape[0], reader.square)
    nn.Module.to(model, device)
    figures = {f"val/{name}": value for name, value in validate(model, reader).items()}
    with TrainingLog(metrics_dir) as log:
        log.log_epoch(figures)
        log.summary = {"val": {"R@1": figures["val/R@1"]}}
    draw_curves([{"epoch": -1, "train/loss": float("nan"), **figures}], -1, Path(metrics_dir, "plots", "training.png"))
    with atomic_dir(model_dir) as folder:
        model.save_pretrained(folder)
    return {"model": str(model_dir), "zero_shot": model_config.backbone, "val_R@1": figures["val/R@1"], "steps": 0,
            "device": str(device)}
