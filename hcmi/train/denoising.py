"""Adaptive label denoising: which clips of a batch count as the same (docs/method.md).

Each clip has two views. Two clips count as the same when they agree as well as the two views of one clip do
(`loss.same_meaning`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hcmi.config import TrainConfig
from hcmi.model import HcmiModel
from hcmi.shards import ShardReader
from hcmi.train.loss import same_meaning

Views = tuple[Tensor, Tensor]       # two views of each clip, [B, D] each


def denoise_mode(model: HcmiModel, config: TrainConfig, epoch: int) -> str:
    """`train.loss.denoise`, or `off`.

    Denoising is HCMI's own. It is off in the warm-up epochs, where embeddings do not mean anything yet.
    """
    after_warmup = epoch >= config.loss.warmup_epochs
    return config.loss.denoise if after_warmup and model.head.hcmi_training else "off"


def clip_meanings(reader: ShardReader) -> Tensor | None:
    """A number for each clip, equal for clips with the same tag `meaning`; None where a clip has no such tag."""
    tags = [clip.tags.get("meaning") for clip in reader.clips]
    return None if None in tags else torch.from_numpy(np.unique(np.array(tags), return_inverse=True)[1])


@torch.no_grad()
def clip_views(model: HcmiModel, by: str, features_BTD: Tensor, mask_BT: Tensor, sentences: Sequence[Tensor],
               meaning_B: Tensor | None = None) -> list[Views]:
    """Two views of each clip: of its captions (`by` is `text`), of its frames (`video`), or both, in this order.

    `sentences` are the embeddings [B, D] of the first, second, ... caption of each clip in the batch; the views are
    those of the first and the last. Views have length 1. The paper's authors compare videos alone. On Scenes that is
    right in one case of three, while captions separate clips that differ in one word from clips of one meaning. With
    `tag`, both views are a random direction that belongs to the clip's meaning, so that clips count as the same exactly
    where they are. [ours]
    """
    if by == "tag":
        assert meaning_B is not None, "need the clips' meanings for denoising by tag, got none"
        direction_BD = _directions(meaning_B, model.head.dim, mask_BT.device)
        return [(direction_BD, direction_BD)]
    unit = nn.functional.normalize      # a sentence's length is a weight
    views = [] if by == "video" else [(unit(sentences[0], dim=-1), unit(sentences[-1], dim=-1))]
    if by != "text":
        views.append(video_views(model, features_BTD, mask_BT))
    return views


def _directions(meaning_B: Tensor, dim: int, device: torch.device) -> Tensor:
    """A unit vector [B, D] for each meaning, drawn with the meaning's number as seed."""
    drawn_BD = np.stack([np.random.default_rng(number).standard_normal(dim, np.float32)
                         for number in meaning_B.tolist()])
    return nn.functional.normalize(torch.from_numpy(drawn_BD).to(device), dim=-1)


@torch.no_grad()
def video_views(model: HcmiModel, features_BTD: Tensor, mask_BT: Tensor) -> Views:
    """Two views of each video: the even and the odd ones of its frames, which are already encoded. [ours]

    The frames of a view are one from each of T/2 segments, as in the paper, and the towers run once instead of twice.
    A clip of one frame has no second view. Its two views are equal, so that only an equal clip counts as the same.
    """
    position_T = torch.arange(features_BTD.shape[1], device=features_BTD.device)
    even, odd = (model.head.video(features_BTD[:, half], mask_BT[:, half], position_T[half]).video_BD
                 for half in (slice(0, None, 2), slice(1 if features_BTD.shape[1] > 1 else 0, None, 2)))
    return even, torch.where(mask_BT.sum(1, keepdim=True) > 1, odd, even)


def same_clips(views: list[Views]) -> Tensor:
    """Which clips of a batch count as the same, bool [B, B], symmetric.

    Every kind of view must agree, and each clip of a pair must accept the other. [ours]
    """
    found_BB = torch.stack([same_meaning(*pair) for pair in views]).all(0)
    return found_BB & found_BB.T


def denoising_figures(positives_BB: Tensor, meaning_B: Tensor | None) -> dict[str, float]:
    """Extra positives per clip: `denoise_fired` those that denoising found.

    Where the clips' meanings are known, also `denoise_right`, those of them that are true, and `denoise_true`, all that
    are true.
    """
    extra_BB = positives_BB & ~torch.eye(len(positives_BB), dtype=torch.bool)
    figures = {"denoise_fired": float(extra_BB.sum() / len(extra_BB))}
    if meaning_B is not None:
        true_BB = (meaning_B[:, None] == meaning_B) & ~torch.eye(len(meaning_B), dtype=torch.bool)
        figures |= {"denoise_right": float((extra_BB & true_BB).sum() / len(extra_BB)),
                    "denoise_true": float(true_BB.sum() / len(extra_BB))}
    return figures


def precision_and_recall(means: dict[str, float]) -> dict[str, float]:
    """An epoch's means, with the counts of true extra positives replaced by denoising's precision and recall."""
    if "denoise_right" not in means:
        return means
    fired, right, true = (means[f"denoise_{name}"] for name in ("fired", "right", "true"))
    others = {name: value for name, value in means.items() if name not in ("denoise_right", "denoise_true")}
    return others | {"denoise_precision": right / fired if fired else 1.0,
                     "denoise_recall": right / true if true else 1.0}
