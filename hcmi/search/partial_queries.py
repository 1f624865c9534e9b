"""Queries that describe a part of a video: what else the video shows does not lower its score."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hcmi.errors import ConfigError
from hcmi.model import HcmiModel
from hcmi.types import TextTokens, VideoTokens

PART_HEADS = ("hcmi", "wti")    # the heads that compare words with frames from each side
PART_LEVELS = ("frame_word", "clip_phrase")


def supports_partial_queries(model: HcmiModel) -> bool:
    """Whether `part` may be asked for."""
    weights = model.level_weights
    return model.config.head in PART_HEADS and any(weights.get(level) for level in PART_LEVELS)


def check_part(model: HcmiModel, name: str = "part") -> None:
    """Raises: ConfigError when the model does not support queries for a part of a video."""
    if not supports_partial_queries(model):
        raise ConfigError(f"{name}: need a model with head {' or '.join(PART_HEADS)} and weight on "
                          f"{' or '.join(PART_LEVELS)}, got {model.config.head} with {model.level_weights}. "
                          "Leave it out.")


def part_similarities(texts: TextTokens, videos: VideoTokens, levels: Iterable[str]) -> dict[str, Tensor]:
    """Level -> [Q, V] similarities that do not count frames and clips which no word of the text matches.

        S = sum_w u_w max_t cos(w, t)

    The level of whole videos is left out, because its one vector describes everything that a video shows.
    Source: ours.
    """
    def by_text(tokens_QWD: Tensor, weights_QW: Tensor, others_VTD: Tensor, others_VT: Tensor) -> Tensor:
        sims_QWVT = torch.einsum("qwd,vtd->qwvt", tokens_QWD.float(), others_VTD.float())
        per_word_QWV = sims_QWVT.masked_fill(others_VT <= 0, -1).amax(3)
        return torch.einsum("qwv,qw->qv", per_word_QWV, weights_QW.float())

    sides = {"frame_word": (texts.words_BWD, texts.word_weights_BW, videos.frames_BTD, videos.frame_weights_BT),
             "clip_phrase": (texts.phrases_BPD, texts.phrase_weights_BP, videos.clips_BCD, videos.clip_weights_BC)}
    return {level: by_text(*sides[level]) for level in levels if level in PART_LEVELS}
