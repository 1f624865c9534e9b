"""The `train` stage: shards in, a model folder out. The loop reads top to bottom in `train`.

The best epoch is chosen by validation alone. A run that was stopped goes on from its last checkpoint with the very
same batches; a checkpoint of other data or parameters is left alone and training starts anew.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hcmi.config import ModelConfig, TrainConfig
from hcmi.errors import DataError, ModelError
from hcmi.evaluate import choose_level_weights, encode_split, ranks
from hcmi.files import ask_to_write, atomic_dir, atomic_file
from hcmi.model import HcmiModel, new_retriever, score
from hcmi.progress import track
from hcmi.runtime import pick_device, pick_precision, seed_everything, tune_allocator
from hcmi.shards import ShardReader, TrainBatch, TrainLoader
from hcmi.train.curves import draw_curves
from hcmi.train.log import TrainingLog
from hcmi.train.loss import contrastive, margin, same_meaning

CHECKPOINT_SECONDS = 300        # between two checkpoints within an epoch
VALIDATION_BATCH = 64


@dataclass
class Progress:
    """What a checkpoint holds besides weights, optimiser and loader: where training stands and how it went."""

    seen_3ND: Tensor    # of each training clip when it was last seen: video embedding, denoising's two views; 0 before
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)    # of the epoch at hand's figures, over its steps so far
    history: list[dict] = field(default_factory=list)       # one row of figures an epoch

    def add(self, rows: list[int], figures: dict[str, float], seen_KBD: Tensor) -> None:
        """One step more, which saw the clips `rows`: their video embeddings, and where it denoised their views."""
        self.step += 1
        self.seen_3ND[:len(seen_KBD), rows] = seen_KBD
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, epoch: int, num_steps: int, validation: dict[str, float], seconds: float) -> dict:
        """The epoch's row of the history: means over its steps; of denoising's counts their ratios."""
        means = {name: total / num_steps for name, total in self.sums.items()}
        if "denoise_right" in means:
            right, true = means.pop("denoise_right"), means.pop("denoise_true")
            fired = means["denoise_fired"]
            means |= {"denoise_precision": right / fired if fired else 1.0,
                      "denoise_recall": right / true if true else 1.0}
        row = {"epoch": epoch, "train/seconds": seconds, **{f"train/{name}": value for name, value in means.items()},
               **{f"val/{name}": value for name, value in validation.items()}}
        self.history.append(row)
        self.sums.clear()
        return row


def train(*, shards_dir: str | Path, model_dir: str | Path, metrics_dir: str | Path, checkpoint_dir: str | Path,
          model_config: ModelConfig, config: TrainConfig) -> dict:
    """Train on the split `train`, validate on `val`, and write the best epoch's model folder. Returns a summary.

    Raises: DataError when a split is empty, shards are broken or clips lack the tag that denoising asks for; ModelError
    when the backbone cannot be loaded, a checkpoint is of another version of this code, or the loss is not a number;
    MachineError when an output cannot be written, asked before training.
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
    progress = Progress(torch.zeros(3, len(train_reader), model.head.dim))
    meaning_N = meanings(train_reader, needed=config.loss.denoise != "off" and config.loss.denoise_by == "tag")
    checkpoints = Checkpoints(checkpoint_dir, identity(shards_dir, model_config, config))
    checkpoints.restore(model, optimizers, loader, progress)

    with TrainingLog(metrics_dir) as log:
        for row in progress.history:
            log.log_epoch(row)
        with track(description="train", total=total_steps, unit="step") as bar:
            bar.update(progress.step)
            for epoch in range(loader.epoch, config.epochs):
                model.train()
                started = time.monotonic()
                if loader.batch == 0 and group_size(model, config, epoch) > 1:
                    views_2ND = None if config.loss.denoise == "off" else progress.seen_3ND[1:].numpy()
                    loader.group_marginal_clips(progress.seen_3ND[0].numpy(), group_size(model, config, epoch),
                                                views_2ND)
                for batch in loader:
                    set_learning_rate(optimizers, progress.step / total_steps, config.warmup_fraction)
                    figures, seen_KBD = training_step(
                        model, optimizers, batch, config, denoise_mode(model, config, epoch), precision,
                        None if meaning_N is None else meaning_N[batch.rows])
                    progress.add(batch.rows, figures, seen_KBD)
                    bar.update(1)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{figures['loss']:.3f}")
                    if checkpoints.due():
                        checkpoints.save(model, optimizers, loader, progress)
                validation = validate(model, val_reader)
                log.log_epoch(progress.end_epoch(epoch, len(loader), validation, time.monotonic() - started))
                if validation["R@1"] > progress.best_score:
                    progress.best_score, progress.best_epoch = validation["R@1"], epoch
                    checkpoints.save_best(model)
                checkpoints.save(model, optimizers, loader, progress)
        checkpoints.load_best(model)
        model.config.level_weights = level_weights(model, trained, val_reader)
        log.summary = {"val": {"R@1": progress.best_score}}    # `dvc exp show` has a column for each figure in here
    draw_curves(progress.history, progress.best_epoch, Path(metrics_dir, "plots", "training.png"))
    with atomic_dir(model_dir) as folder:
        model.save_pretrained(folder)
    checkpoints.clear()
    return {"model": str(model_dir), "best_epoch": progress.best_epoch, "val_R@1": progress.best_score,
            "steps": progress.step, "device": str(device), "precision": precision}


def training_step(model: HcmiModel, optimizers: Sequence[Optimizer], batch: TrainBatch, config: TrainConfig,
                  denoise: str, precision: str,
                  meaning_B: Tensor | None = None) -> tuple[dict[str, float], Tensor]:
    """Forward, backward, update; returns figures for the log, and the videos' embeddings [1, B, D] or, where it
    denoises, those and two views of each clip [3, B, D].

    Videos are encoded once for all of a clip's captions.
    `meaning_B`: equal numbers for videos that truly show the same, where that is known; denoising is measured by it.
    """
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    pixels_BTCHX = model.processor.frames(batch.frames_KBTHXC[0].to(device, non_blocking=True))
    mask_BT = batch.frame_mask_BT.to(device)
    ids_QW, word_mask_QW = (tensor.to(device) for tensor in model.processor.texts(list(chain(*batch.captions))))
    with autocast:
        features_BTD = model.frame_features(pixels_BTCHX)
        videos = model.head.video(features_BTD, mask_BT)
        texts = model.encode_texts(ids_QW, word_mask_QW)
        levels = model.similarities(texts, videos)
        sentences = texts.sentence_BD.detach().split(len(batch.rows))
        views = [] if denoise == "off" else two_views(model, config.loss.denoise_by, features_BTD, mask_BT, sentences,
                                                      meaning_B)
    positives_BB = positives(views) if views else None
    total, figures = total_loss(model, levels, config, positives_BB, denoise)
    if not math.isfinite(figures["loss"]):
        raise ModelError(f"training: need a finite loss, got {figures['loss']}. Lower train.lr or train.backbone_lr, "
                         f"or set train.precision to float32.")
    model.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    if positives_BB is not None:
        figures |= denoise_figures(positives_BB.cpu(), meaning_B)
    return figures, torch.stack([videos.video_BD, *(views[0] if views else ())]).detach().float().cpu()


def total_loss(model: HcmiModel, levels: dict[str, Tensor], config: TrainConfig, positives_BB: Tensor | None,
               denoise: str) -> tuple[Tensor, dict[str, float]]:
    """Method model_config 4, and the same loss on the sum of the levels, since that is what search ranks by [ours].

    `levels` are similarities [N * B, B] with N captions of each clip. Denoising, the sum and the margin belong to HCMI;
    the peers' heads train with the plain loss.
    """
    weights = {level: weight for level, weight in loss_weights(model, config).items() if level in levels}
    scales = {level: model.head.scale(level) for level in weights}
    parts = {level: weight * contrastive(levels[level], scales[level], positives_BB, denoise)
             for level, weight in weights.items()}
    if model.config.head == "hcmi" and config.loss.sum_weight > 0:
        parts["sum"] = config.loss.sum_weight * contrastive(
            torch.stack([levels[level] for level in weights]).sum(0), torch.stack(list(scales.values())).mean(),
            positives_BB, denoise)
    if model.config.head == "hcmi" and config.loss.margin_weight > 0:
        parts["margin"] = config.loss.margin_weight * margin(levels["video_sentence"], config.loss.margin,
                                                                    positives_BB)
    total = torch.stack(list(parts.values())).sum()
    figures = {"loss": float(total.detach())} | {f"loss_{name}": float(part.detach()) for name, part in parts.items()}
    return total, figures


def loss_weights(model: HcmiModel, config: TrainConfig) -> dict[str, float]:
    """Weight in the loss of each level that is trained; each of a peer's levels counts 1."""
    weights = config.loss.level_weights.model_dump() if model.config.head == "hcmi" else {}
    return {level: weights.get(level, 1.0) for level in model.head.levels if weights.get(level, 1.0) > 0}


def denoise_figures(positives_BB: Tensor, meaning_B: Tensor | None) -> dict[str, float]:
    """Extra positives a clip: those that denoising calls so, and where the truth is known those that are and both."""
    extra_BB = positives_BB & ~torch.eye(len(positives_BB), dtype=torch.bool)
    figures = {"denoise_fired": float(extra_BB.sum() / len(extra_BB))}
    if meaning_B is not None:
        true_BB = (meaning_B[:, None] == meaning_B) & ~torch.eye(len(meaning_B), dtype=torch.bool)
        figures |= {"denoise_right": float((extra_BB & true_BB).sum() / len(extra_BB)),
                    "denoise_true": float(true_BB.sum() / len(extra_BB))}
    return figures


def meanings(reader: ShardReader, needed: bool = False) -> Tensor | None:
    """A number for each clip, equal for clips of one meaning; None where clips have no tag `meaning`.

    Raises: DataError when that is so and denoising goes by the tag.
    """
    tags = [clip.tags.get("meaning") for clip in reader.clips]
    if None in tags:
        if needed:
            raise DataError(f"train.loss.denoise_by tag: need the tag `meaning` on every training clip, got "
                            f"{tags.count(None)} of {len(tags)} without. Choose text, or tag the clips: equal tags are "
                            f"the same.")
        return None
    return torch.from_numpy(np.unique(np.array(tags), return_inverse=True)[1])


Views = tuple[Tensor, Tensor]


@torch.no_grad()
def two_views(model: HcmiModel, by: str, features_BTD: Tensor, mask_BT: Tensor, sentences: Sequence[Tensor],
              meaning_B: Tensor | None = None) -> list[Views]:
    """Two views [B, D] of each clip for adaptive label denoising: its captions', its frames', or both, in this order.

    The paper's authors compare videos alone. On Scenes that is right in one case of three, while captions tell clips of
    one meaning from those that differ in a word: `text` applies the same rule to a clip's first and last caption in the
    batch. For `tag` both views are a direction of the meaning's own: clips are the same where they are known to be.
    [ours]
    """
    if by == "tag":
        assert meaning_B is not None, "need the clips' meanings for denoising by tag, got none"
        own_BD = torch.from_numpy(np.stack([np.random.default_rng(number).standard_normal(model.head.dim, np.float32)
                                            for number in meaning_B.tolist()])).to(mask_BT.device)
        own_BD = nn.functional.normalize(own_BD, dim=-1)
        return [(own_BD, own_BD)]
    found = [] if by == "video" else [(sentences[0], sentences[-1])]
    if by != "text":
        found.append(video_views(model, features_BTD, mask_BT))
    return found


@torch.no_grad()
def video_views(model: HcmiModel, features_BTD: Tensor, mask_BT: Tensor) -> Views:
    """Two views of each video: the even and the odd frames of those already encoded. [ours]

    A view's frames are one from each of T/2 segments, as in the paper, and the towers run once instead of twice.
    A clip of one frame has no second view: its two agree fully, so that only an equal clip is the same.
    """
    position_T = torch.arange(features_BTD.shape[1], device=features_BTD.device)
    even, odd = (model.head.video(features_BTD[:, half], mask_BT[:, half], position_T[half]).video_BD
                 for half in (slice(0, None, 2), slice(1 if features_BTD.shape[1] > 1 else 0, None, 2)))
    return even, torch.where(mask_BT.sum(1, keepdim=True) > 1, odd, even)


def positives(views: list[Views]) -> Tensor:
    """Which clips of a batch count as the same, bool [B, B]: both ways round, by each kind of view there is. [ours]"""
    found_BB = torch.stack([same_meaning(*pair) for pair in views]).all(0)
    return found_BB & found_BB.T


def denoise_mode(model: HcmiModel, config: TrainConfig, epoch: int) -> str:
    """Denoising belongs to HCMI, and needs embeddings that mean something: not in the first epochs."""
    late = epoch >= config.loss.warmup_epochs
    return config.loss.denoise if late and model.config.head == "hcmi" else "off"


def group_size(model: HcmiModel, config: TrainConfig, epoch: int) -> int:
    """How many clips that are hard to tell apart share a batch; part of HCMI's marginal sample enhancement."""
    late = epoch >= config.loss.warmup_epochs
    return config.loss.marginal_group if late and model.config.head == "hcmi" else 1


def validate(model: HcmiModel, reader: ShardReader) -> dict[str, float]:
    """Text-to-video recall on a split, in per cent."""
    model.eval()
    encoded = encode_split(model, reader, VALIDATION_BATCH)
    sims_QV = model.combine(score(model, encoded.texts, encoded.videos)).numpy()
    found = ranks(sims_QV, encoded.caption_video)
    return {f"R@{k}": float(100 * np.mean(found.hits_at(k))) for k in (1, 5, 10)}


def level_weights(model: HcmiModel, trained: Iterable[str], reader: ShardReader) -> dict[str, float]:
    """Weights of the levels at inference, chosen on a split that is not the test split (method section 3); of a level
    that was not trained, 0."""
    encoded = encode_split(model, reader, VALIDATION_BATCH)
    levels = score(model, encoded.texts, encoded.videos)
    chosen = choose_level_weights({level: levels[level].numpy() for level in trained}, encoded.caption_video)
    return {level: chosen.get(level, 0.0) for level in model.head.levels}


def make_optimizers(model: HcmiModel, config: TrainConfig) -> list[Optimizer]:
    """Muon for the matrices of layers that are new, AdamW for all else; or AdamW for all.

    Towers have a rate of their own, 0 freezes them; there is no decay on vectors and scalars, logit scales included.
    Pretrained towers stay with AdamW, as they were trained. Muon's steps are scaled to the size of AdamW's, so that
    both share a rate. Source: Jordan et al. 2024; Liu et al. 2025 (arXiv 2502.16982) for the scale.
    """
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}     # by optimiser, rate and decay
    for name, weight in model.named_parameters():
        tower = name.startswith("towers.")
        rate = config.backbone_lr if tower else config.lr
        new = not tower or model.config.backbone == "scratch"
        kind = config.optimizer if new and name in matrices else "adamw"
        decay = config.weight_decay if weight.dim() > 1 else 0.0
        weight.requires_grad_(rate > 0)
        if rate > 0:
            groups.setdefault((kind, rate, decay), []).append(weight)

    def of(optimizer: str) -> list[dict]:
        return [{"params": weights, "lr": rate, "peak_lr": rate, "weight_decay": decay}
                for (kind, rate, decay), weights in groups.items() if kind == optimizer]

    optimizers: list[Optimizer] = [torch.optim.AdamW(of("adamw"), betas=(0.9, 0.98), fused=True)]
    if of("muon"):
        optimizers.append(torch.optim.Muon(of("muon"), adjust_lr_fn="match_rms_adamw"))
    return optimizers


def set_learning_rate(optimizers: Sequence[Optimizer], done: float, warmup: float) -> None:
    """Linear warm-up, then cosine to zero; `done` is the share of all steps in 0..1."""
    factor = done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak_lr"] * max(factor, 1e-3)


def identity(shards_dir: str | Path, model_config: ModelConfig, config: TrainConfig) -> str:
    """Hash of all that a checkpoint depends on: data, model and training parameters."""
    index = hashlib.sha256((Path(shards_dir) / "index.parquet").read_bytes()).hexdigest()
    where = {"device", "num_workers"}       # may change between a stop and going on
    parts = [index, model_config.model_dump(), config.model_dump(exclude=where)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """Two files in a folder outside the pipeline's outputs, replaced whole: `last.pt` to go on, `best.pt` to keep."""

    def __init__(self, folder: str | Path, identity: str):
        self.last, self.best = Path(folder, "last.pt"), Path(folder, "best.pt")
        self.identity = identity
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def save(self, model, optimizers: Sequence[Optimizer], loader: TrainLoader, progress: Progress) -> None:
        state = {"identity": self.identity, "model": model.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                 "loader": loader.state_dict(), "progress": vars(progress)}
        _save(state, self.last)
        self.saved_at = time.monotonic()

    def save_best(self, model) -> None:
        _save(model.state_dict(), self.best)

    def restore(self, model, optimizers: Sequence[Optimizer], loader: TrainLoader, progress: Progress) -> bool:
        """Load `last.pt` where it belongs to this data and these parameters; says whether it did."""
        path = self.last
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            return False
        needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in sorted(needed.keys() | state["model"].keys()):
            got = tuple(state["model"][name].shape) if name in state["model"] else None
            if needed.get(name) != got:
                raise ModelError(f"checkpoint {path}, tensor {name}: need shape {needed.get(name)}, got {got}. "
                                 f"It is of another version of hcmi: remove it to train anew.")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        loader.load_state_dict(state["loader"])
        vars(progress).update(state["progress"])
        return True

    def load_best(self, model) -> None:
        model.load_state_dict(torch.load(self.best, map_location="cpu", weights_only=True))

    def clear(self) -> None:
        for path in (self.last, self.best):
            path.unlink(missing_ok=True)


def _save(state: dict, path: Path) -> None:
    with atomic_file(path) as temporary, open(temporary, "wb") as file:     # of a path torch would not say what failed
        torch.save(state, file)
