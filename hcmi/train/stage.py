"""Stage `train`: shards in, a model folder out. `train` reads from top to bottom.

The best epoch is chosen on the validation split alone.
"""

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hcmi.config import ModelConfig, TrainConfig
from hcmi.errors import ModelError
from hcmi.evaluate import FEWEST_CLIPS, choose_level_weights, encode_split, ranks
from hcmi.files import ask_to_write, atomic_dir
from hcmi.model import HcmiModel, bucketed_similarities, new_retriever, score
from hcmi.progress import track
from hcmi.runtime import pick_device, pick_precision, seed_everything, tune_allocator
from hcmi.shards import ShardReader, TrainBatch, TrainLoader
from hcmi.train.checkpoints import Checkpoints, run_identity
from hcmi.train.curves import draw_curves
from hcmi.train.denoising import clip_meanings, clip_views, denoise_mode, denoising_figures, same_clips
from hcmi.train.log import TrainingLog
from hcmi.train.objective import group_size, loss_weights, total_loss
from hcmi.train.optimizers import make_optimizers, set_learning_rate
from hcmi.train.state import Progress, StepResult

VALIDATION_BATCH = 64


def train(*, shards_dir: str | Path, model_dir: str | Path, metrics_dir: str | Path, checkpoint_dir: str | Path,
          model_config: ModelConfig, config: TrainConfig) -> dict:
    """Train on the split `train`, validate on `val`, and write the best epoch's model folder. Returns a summary.

    A run that was stopped continues from its last checkpoint. A checkpoint of other data or parameters is ignored.

    Raises: DataError for an empty split, broken shards or clips without the tag that denoising needs; ModelError for a
    backbone or checkpoint that cannot be read, or a loss that is not a number; MachineError for unwritable outputs.
    """
    ask_to_write(folders=[model_dir], files=[Path(metrics_dir, "metrics.json"), Path(checkpoint_dir, "last.pt")])
    tune_allocator()
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    seed_everything(config.seed)
    train_reader, val_reader = ShardReader(shards_dir, "train"), ShardReader(shards_dir, "val")
    model = new_retriever(model_config, train_reader.frame_shape[0],
                          [caption for clip in train_reader.clips for caption in clip.captions])
    nn.Module.to(model, device)
    loader = TrainLoader(train_reader, config.batch_size, model_config.num_frames, seed=config.seed,
                         num_workers=config.num_workers, num_captions=config.captions_per_clip)
    total_steps = config.epochs * len(loader)
    optimizers = make_optimizers(model, config)
    trained = loss_weights(model, config)
    model.config.level_weights = {level: float(level in trained) for level in model.head.levels}
    meaning_N = clip_meanings(train_reader, config)
    progress = Progress.start(len(train_reader), model.head.dim)
    checkpoints = Checkpoints(checkpoint_dir, run_identity(shards_dir, model_config, config))
    checkpoints.restore(model, optimizers, loader, progress)

    with TrainingLog(metrics_dir, progress.history) as log:
        with track(description="train", total=total_steps, unit="step") as bar:
            bar.update(progress.step)
            for epoch in range(loader.epoch, config.epochs):
                started = time.monotonic()
                model.train()
                group_marginal_clips(loader, progress, model, config, epoch)
                denoise = denoise_mode(model, config, epoch)
                for batch in loader:
                    set_learning_rate(optimizers, progress.step / total_steps, config.warmup_fraction)
                    result = training_step(model, optimizers, batch, config, denoise, precision, meaning_N)
                    progress.add(batch.rows, result)
                    bar.update(1)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{result.figures['loss']:.3f}")
                    if checkpoints.due():
                        checkpoints.save(model, optimizers, loader, progress)
                validation = validate(model, val_reader)
                log.log_epoch(progress.end_epoch(epoch, len(loader), validation, time.monotonic() - started))
                if validation["R@1"] > progress.best_score:
                    progress.best_score, progress.best_epoch = validation["R@1"], epoch
                    checkpoints.save_best(model)
                checkpoints.save(model, optimizers, loader, progress)
        checkpoints.load_best(model)
        model.config.level_weights = inference_weights(model, trained, val_reader)
        log.summary = {"val": {"R@1": progress.best_score}}    # `dvc exp show` has a column for each figure in here
    draw_curves(progress.history, progress.best_epoch, Path(metrics_dir, "plots", "training.png"))
    with atomic_dir(model_dir) as folder:
        model.save_pretrained(folder)
    checkpoints.clear()
    return {"model": str(model_dir), "best_epoch": progress.best_epoch, "val_R@1": progress.best_score,
            "steps": progress.step, "device": str(device), "precision": precision}


def group_marginal_clips(loader: TrainLoader, progress: Progress, model: HcmiModel, config: TrainConfig,
                         epoch: int) -> None:
    """Before an epoch's first batch, have its batches hold groups of clips that are hard to tell apart."""
    size = group_size(model, config, epoch)
    if size > 1 and loader.batch == 0:
        views_2ND = None if config.loss.denoise == "off" else progress.views_2ND.numpy()
        loader.group_marginal_clips(progress.video_ND.numpy(), size, views_2ND)


def training_step(model: HcmiModel, optimizers: Sequence[Optimizer], batch: TrainBatch, config: TrainConfig,
                  denoise: str, precision: str, meaning_N: Tensor | None = None) -> StepResult:
    """Forward, backward, update. Each video is encoded once for all captions of its clip.

    `meaning_N`: equal numbers for training clips that truly show the same, where that is known. Denoising is measured
    by it.
    Raises: ModelError when the loss is not a finite number.
    """
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    pixels_BTCHX = model.processor.frames(batch.frames_KBTHXC[0].to(device, non_blocking=True))
    mask_BT = batch.frame_mask_BT.to(device)
    meaning_B = None if meaning_N is None else meaning_N[batch.rows]
    ids_QW, word_mask_QW = (tensor.to(device) for tensor in model.processor.texts(list(chain(*batch.captions))))
    with autocast:
        features_BTD = model.frame_features(pixels_BTCHX)
        videos = model.head.video(features_BTD, mask_BT)
        levels, sentence_QD = bucketed_similarities(model, ids_QW, word_mask_QW, videos)
        views = [] if denoise == "off" else clip_views(model, config.loss.denoise_by, features_BTD, mask_BT,
                                                       sentence_QD.detach().split(len(batch.rows)), meaning_B)
    positives_BB = same_clips(views) if views else None
    total, figures = total_loss(model, levels, sentence_QD, config, positives_BB, denoise)
    if not math.isfinite(figures["loss"]):
        raise ModelError(f"training: need a finite loss, got {figures['loss']}. Lower train.lr or train.backbone_lr, "
                         f"or set train.precision to float32.")
    model.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    if positives_BB is not None:
        figures |= denoising_figures(positives_BB.cpu(), meaning_B)
    # one copy from the device instead of three
    vectors_KBD = torch.stack([videos.video_BD, *(views[0] if views else ())]).detach().float().cpu()
    return StepResult(figures, vectors_KBD[0], vectors_KBD[1:] if views else None)


def validate(model: HcmiModel, reader: ShardReader) -> dict[str, float]:
    """Text-to-video recall on a split, in per cent."""
    model.eval()
    encoded = encode_split(model, reader, VALIDATION_BATCH)
    sims_QV = model.combine(score(model, encoded.texts, encoded.videos)).numpy()
    found = ranks(sims_QV, encoded.caption_video)
    return {f"R@{k}": float(100 * np.mean(found.hits_at(k))) for k in (1, 5, 10)}


def inference_weights(model: HcmiModel, trained: Iterable[str], reader: ShardReader) -> dict[str, float]:
    """Level -> its weight at inference, chosen on a split that is not the test split; 0 if it was not trained.

    Warns when the split is too small to choose by, and the weights are therefore equal.
    Source: ours (docs/method.md).
    """
    encoded = encode_split(model, reader, VALIDATION_BATCH)
    levels = score(model, encoded.texts, encoded.videos)
    chosen = choose_level_weights({level: levels[level].numpy() for level in trained}, encoded.caption_video)
    clips = len(np.unique(encoded.caption_video))
    if len(chosen) > 1 and clips < FEWEST_CLIPS:
        warnings.warn(f"split {reader.split}: need {FEWEST_CLIPS} captioned clips to choose level weights, got "
                      f"{clips}. All levels count the same.", stacklevel=2)
    return {level: chosen.get(level, 0.0) for level in model.head.levels}
