"""Stage `train`: shards in, a model folder out. `train` reads from top to bottom.

The best epoch is chosen on the validation split alone.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hcmi.config import ModelConfig, TrainConfig
from hcmi.encode import count_captioned
from hcmi.errors import ConfigError, DataError, ModelError
from hcmi.evaluate import FEWEST_CLIPS, choose_level_weights
from hcmi.evaluate import ranks as ranks_of
from hcmi.files import ask_to_write, atomic_dir
from hcmi.model import HcmiModel, NotFiniteError, score, towers_hash
from hcmi.processes import count_processes, in_processes, joined, processes_here, started_by_torchrun
from hcmi.progress import note, track
from hcmi.ranks import ALONE, Ranks
from hcmi.runtime import count_workers, pick_device, pick_precision, seed_everything, tune_allocator
from hcmi.shards import ShardReader, TrainLoader
from hcmi.train.checkpoints import Checkpoints, run_identity
from hcmi.train.curves import draw_curves
from hcmi.train.denoising import clip_meanings, denoise_mode
from hcmi.train.kept_features import encode_clips, keep_features
from hcmi.train.log import TrainingLog
from hcmi.train.micro_batch import largest_batch, pick_micro_batch, trial
from hcmi.train.objective import group_size, loss_weights
from hcmi.train.optimizers import set_learning_rate
from hcmi.train.parts import Parts, pick_parts
from hcmi.train.peak import clip_operations, matrix_peak
from hcmi.train.preflight import RunData, check_run, count_weights, model_of_run, refuse
from hcmi.train.readback import LOWER, DivergedError, Readback, check_finite
from hcmi.train.speed import Speed, epoch_line, write_speed
from hcmi.train.state import Progress, StepResult
from hcmi.train.step import training_step
from hcmi.train.tower_training import merge_adapters, optimizers_of
from hcmi.train.zero_shot import keep_zero_shot


def train(*, shards_dir: str | Path, model_dir: str | Path, metrics_dir: str | Path, checkpoint_dir: str | Path,
          model_config: ModelConfig, config: TrainConfig) -> dict:
    """Train on the split `train`, validate on `val`, and write the best epoch's model folder. Returns a summary.

    A run that was stopped continues from its last checkpoint, with the same result. It may have several processes
    (docs/training.md). A process that is not the first one of `torchrun` returns an empty summary. With no epochs the
    pretrained backbone becomes the model as it is.

    Raises: DataError for an empty split, broken shards or fewer videos than processes; ConfigError for a device that
    is not there, and for what would end the run (`preflight`); ModelError for a backbone or checkpoint that cannot be
    read, or a loss, gradient or vector that is not finite; MachineError for unwritable outputs.
    """
    options: dict[str, Any] = {"shards_dir": shards_dir, "model_dir": model_dir, "metrics_dir": metrics_dir,
                               "checkpoint_dir": checkpoint_dir, "model_config": model_config, "config": config}
    if Path(model_config.backbone).resolve() == Path(model_dir).resolve():
        raise ConfigError(f"{model_dir}: need another folder than model.backbone, which would be replaced. Name "
                          f"another folder for the trained model.")
    ask_to_write(folders={model_dir: "config.json"},
                 files=[Path(metrics_dir, "metrics.json"), Path(checkpoint_dir, "step")])
    if config.epochs == 0:
        return keep_zero_shot(shards_dir, model_dir, metrics_dir, model_config, config, validate)
    if started_by_torchrun():
        with joined(config.device) as (ranks, device):
            return train_rank(ranks, device, **options)
    count = count_processes(config.num_processes, config.device)
    if count > 1:
        return in_processes(count, config.device, train_rank, options)
    return train_rank(ALONE, pick_device(config.device), **options)


def train_rank(ranks: Ranks, device: torch.device, *, shards_dir: str | Path, model_dir: str | Path,
               metrics_dir: str | Path, checkpoint_dir: str | Path, model_config: ModelConfig,
               config: TrainConfig) -> dict:
    """One process of the training run. The first one validates, and writes everything that is written."""
    tune_allocator()
    precision = pick_precision(config.precision, device)
    seed_everything(config.seed)
    train_reader, val_reader = ShardReader(shards_dir, "train"), ShardReader(shards_dir, "val")
    data = RunData.of([train_reader, val_reader])
    model = whole = model_of_run(data, model_config, config, device)
    ranks.copy_weights(model)
    ranks.from_first(partial(check_and_say, data, model_config, config, model))
    if config.towers == "frozen":
        model, (train_reader, val_reader) = keep_features(whole, [train_reader, val_reader], precision, ranks)
    loader = TrainLoader(train_reader, config.batch_size, model_config.num_frames, seed=config.seed, rank=ranks.rank,
                         world_size=ranks.size, num_captions=config.captions_per_clip, device=device,
                         num_workers=count_workers(config.num_workers, device, processes_here(ranks))
                         if model is whole else 0)
    optimizers = optimizers_of(model, config)
    trained = loss_weights(model, config)
    model.config.level_weights = {level: float(level in trained) for level in model.head.levels}
    meaning_N = clip_meanings(train_reader)
    progress = Progress.start(len(train_reader), model.head.dim)
    identity = common_identity(ranks, shards_dir, model_config, config, whole)
    with Checkpoints(checkpoint_dir, identity) as checkpoints:
        if state := ranks.from_first(checkpoints.newest):
            state.restore(model, optimizers, loader, progress)
        micro_batch = pick_micro_batch(config, model, loader, precision, ranks)
        most = ranks.size * matrix_peak(device, precision) / clip_operations(model, config, train_reader, precision)
        run = Run(model, optimizers, loader, progress, checkpoints, config, precision, meaning_N, micro_batch, ranks,
                  most)
        run = replace(run, parts=pick_parts(config, model, run.total_steps - progress.step, partial(try_parts, run)))
        with (open_log(metrics_dir, progress.history, ranks) as log,
              track(description="train", total=run.total_steps, unit="step", shown=ranks.is_first) as bar):
            bar.update(progress.step)
            for epoch in range(loader.epoch, config.epochs):
                speed = train_epoch(run, epoch, bar)
                with explained(progress, train_reader, checkpoints):
                    validation = ranks.from_first(partial(validate, model, val_reader))
                row = progress.end_epoch(epoch, len(loader), validation, speed,
                                         count_captioned(val_reader) < FEWEST_CLIPS)
                if log is not None:
                    log.log_epoch(row)
                    note(epoch_line(row, config.epochs))
                    if progress.best_epoch == epoch:
                        checkpoints.keep_best(model)
                    if checkpoints.due(epoch_ends=True):
                        run.save()
            if log is None:
                return {}
            checkpoints.finish()
            model.load_state_dict(checkpoints.best)
            model.config.level_weights = inference_weights(model, trained, val_reader)
            log.summary = {"val": {"R@1": progress.best_score}}  # `dvc exp show` has a column for each figure in here
        write_speed(metrics_dir, progress.history)
        draw_curves(progress.history, progress.best_epoch, Path(metrics_dir, "plots", "training.png"))
        with atomic_dir(model_dir) as folder:
            merge_adapters(whole).save_pretrained(folder)
        checkpoints.clear()
    return {"model": str(model_dir), "best_epoch": progress.best_epoch + 1, "val_R@1": progress.best_score,
            "steps": progress.step, "device": str(device), "precision": precision, "processes": ranks.size,
            "micro_batch": micro_batch}


@dataclass(frozen=True)
class Run:
    """What a training run works with, on this rank."""

    model: HcmiModel
    optimizers: Sequence[Optimizer]
    loader: TrainLoader
    progress: Progress
    checkpoints: Checkpoints
    config: TrainConfig
    precision: str
    meaning_N: Tensor | None
    micro_batch: int
    ranks: Ranks
    most: float                     # clips a second that the devices' arithmetic would allow
    parts: Parts | None = None      # those of the model

    @property
    def total_steps(self) -> int:
        return self.config.epochs * len(self.loader)

    def save(self) -> None:
        """Write a checkpoint. All steps that were launched have been counted."""
        self.checkpoints.save(self.model, self.optimizers, self.loader, self.progress)


def try_parts(run: Run, parts: Parts) -> None:
    """Use them for a step's gradients, so that they are compiled before the first step."""
    batch = largest_batch(run.loader, run.model.config.num_frames)
    trial(run.micro_batch, run.model, batch, run.config, run.precision, run.ranks, parts)


def train_epoch(run: Run, epoch: int, bar: Any) -> dict[str, float]:
    """Train on the rest of an epoch; returns the figures of its speed.

    No step that has given a number which is not finite, and none after it, gets into a checkpoint: its results are read
    first.
    """
    model, loader, progress = run.model, run.loader, run.progress
    model.train()
    group_marginal_clips(loader, progress, model, run.config, epoch)
    denoise = denoise_mode(model, run.config, epoch)
    readback, speed = Readback(), Speed(model.device, run.most)

    def count(results: list[StepResult]) -> None:
        for result in results:
            check_finite(result)
            progress.add(result)
            speed.count(len(result.rows))
            bar.update(1)
            bar.set_postfix(epoch=epoch + 1, loss=f"{float(result.figures['loss']):.3f}")

    with explained(progress, loader.reader, run.checkpoints):
        for batch in speed.waiting_for(loader):
            launched = progress.step + len(readback)
            set_learning_rate(run.optimizers, launched / run.total_steps, run.config.warmup_fraction)
            count(readback.add(training_step(model, run.optimizers, batch, run.config, denoise, run.precision,
                                             run.meaning_N, run.micro_batch, run.ranks, run.parts)))
            if run.ranks.is_first and run.checkpoints.due():
                count(readback.rest())
                run.save()
        count(readback.rest())
    return speed.figures()


def check_and_say(data: RunData, model_config: ModelConfig, config: TrainConfig, model: HcmiModel) -> None:
    """Raises: ConfigError for what would end the run. What would spoil it becomes a warning."""
    found = check_run(data, model_config, config, model)
    for warning in found.warnings:
        warnings.warn(warning, stacklevel=2)
    refuse(found.problems)
    if found.memory and model_config.backbone != "scratch":
        weights = count_weights(model)
        warnings.warn(f"{weights['trained'] / 1e6:.1f} M weights learn and {weights['frozen'] / 1e6:.1f} M do not. "
                      f"Training takes about {found.memory.total / 1e9:.1f} GB of memory. `hcmi train --plan` says how "
                      f"long it takes.", stacklevel=2)


def common_identity(ranks: Ranks, shards_dir: str | Path, model_config: ModelConfig, config: TrainConfig,
                    model: HcmiModel) -> str:
    """The run's identity. `model`: as it begins.

    Raises: DataError when this process has other data or parameters than the first one.
    """
    towers = towers_hash(model) if model_config.backbone != "scratch" else ""
    own = run_identity(shards_dir, model_config, config, towers)
    if ranks.from_first(lambda: own) != own:
        raise DataError(f"training process {ranks.rank} of {ranks.size}: need the shards and parameters of the first "
                        f"process, got others. Copy params.yaml and {shards_dir} from its machine.")
    return own


def open_log(folder: str | Path, history: Sequence[dict], ranks: Ranks) -> AbstractContextManager[TrainingLog | None]:
    """The log of the first process; the others have none."""
    return TrainingLog(folder, history) if ranks.is_first else nullcontext()


@contextmanager
def explained(progress: Progress, reader: ShardReader, checkpoints: Checkpoints) -> Iterator[None]:
    """Say of a loss, a gradient or vectors that are not finite in which step that was, and what is left to continue
    from. A checkpoint of the step that gave such vectors is not good."""
    try:
        yield
    except DivergedError as error:
        clips = ", ".join(reader.clips[row].video_id for row in error.rows)
        raise ModelError(f"training, step {progress.step + 1}: {error.fact}. {LOWER} The last good checkpoint is "
                         f"{checkpoints.last_good(progress.step)}; the clips were {clips}.") from error
    except NotFiniteError as error:
        raise ModelError(f"training, validation after step {progress.step}: need finite vectors, got NaN or infinity. "
                         f"{LOWER} The last good checkpoint is {checkpoints.last_good(progress.step - 1)}."
                         ) from error


def group_marginal_clips(loader: TrainLoader, progress: Progress, model: HcmiModel, config: TrainConfig,
                         epoch: int) -> None:
    """Before an epoch's first batch, have its batches hold groups of clips that are hard to tell apart."""
    size = group_size(model, config, epoch)
    if size > 1 and loader.batch == 0:
        views_2ND = None if config.loss.denoise == "off" else progress.views_2ND.numpy()
        loader.group_marginal_clips(progress.video_ND.numpy(), size, views_2ND)


def validate(model: HcmiModel, reader: ShardReader) -> dict[str, float]:
    """Recall on a split in per cent, text to video and (`v2t_`) video to text."""
    model.eval()
    encoded = encode_clips(model, reader)
    sims_QV = model.combine(score(model, encoded.texts, encoded.videos)).numpy()
    captioned = np.unique(encoded.caption_video)
    found = {"": ranks_of(sims_QV, encoded.caption_video),
             "v2t_": ranks_of(sims_QV.T[captioned], captioned[:, None] == encoded.caption_video)}
    return {f"{way}R@{k}": float(100 * np.mean(found[way].hits_at(k))) for way in found for k in (1, 5, 10)}


def inference_weights(model: HcmiModel, trained: Iterable[str], reader: ShardReader) -> dict[str, float]:
    """Level -> its weight at inference, chosen on a split that is not the test split; 0 if it was not trained.

    Warns when the split is too small to choose by, and the weights are therefore equal.
    Source: ours (docs/method.md).
    """
    encoded = encode_clips(model, reader)
    levels = score(model, encoded.texts, encoded.videos)
    chosen = choose_level_weights({level: levels[level].numpy() for level in trained}, encoded.caption_video)
    clips = len(np.unique(encoded.caption_video))
    if len(chosen) > 1 and clips < FEWEST_CLIPS:
        warnings.warn(f"split {reader.split}: need {FEWEST_CLIPS} captioned clips to choose level weights, got "
                      f"{clips}. All levels count the same.", stacklevel=2)
    return {level: chosen.get(level, 0.0) for level in model.head.levels}
