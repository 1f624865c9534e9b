"""`train.epochs: 0`: the model is the pretrained backbone as it is, and the stages after it measure what it can do."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hcmi.config import ModelConfig, TrainConfig
from hcmi.files import atomic_dir
from hcmi.model import HcmiModel
from hcmi.runtime import pick_device
from hcmi.shards import ShardReader
from hcmi.train.curves import draw_curves
from hcmi.train.log import TrainingLog
from hcmi.train.preflight import RunData, data_problems, model_of_run, refuse


def keep_zero_shot(shards_dir: str | Path, model_dir: str | Path, metrics_dir: str | Path, model_config: ModelConfig,
                   config: TrainConfig, validate: Callable[[HcmiModel, ShardReader], dict[str, float]]
                   ) -> dict[str, Any]:
    """Write the backbone as a model folder, and its figures on the split `val` as those of epoch 0. Returns a summary.

    Raises: ConfigError when the backbone is `scratch` or the split `val` has no captions; ModelError when the backbone
    cannot be read; DataError when the split is empty.
    """
    if int(os.environ.get("RANK", 0)):      # another process of `torchrun` than the first one
        return {}
    reader, device = ShardReader(shards_dir, "val"), pick_device(config.device)
    data = RunData.of([reader])
    refuse(data_problems(data, model_config, config))
    model = model_of_run(data, model_config, config, device)
    figures = {f"val/{name}": value for name, value in validate(model, reader).items()}
    with TrainingLog(metrics_dir) as log:
        log.log_epoch(figures)
        log.summary = {"val": {"R@1": figures["val/R@1"]}}
    draw_curves([{"epoch": -1, "train/loss": float("nan"), **figures}], -1, Path(metrics_dir, "plots", "training.png"))
    with atomic_dir(model_dir) as folder:
        model.save_pretrained(folder)
    return {"model": str(model_dir), "zero_shot": model_config.backbone, "val_R@1": figures["val/R@1"], "steps": 0,
            "device": str(device)}
