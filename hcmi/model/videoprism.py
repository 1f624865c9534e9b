"""VideoPrism's towers as `transformers` has them, with their own attention and their own rule for texts."""

import string
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, VideoPrismClipModel, VideoPrismConfig

from hcmi.errors import ModelError

NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


class VideoPrismTowers(VideoPrismClipModel):
    """Attention is the library's slow one, whatever is asked for: `layers.ATTENTION` knows no cap of the logits."""

    _supports_sdpa = True       # otherwise it is refused when another is asked for

    def __init__(self, config: VideoPrismConfig):
        config._attn_implementation = "eager"
        super().__init__(config)

    def set_attn_implementation(self, *_, **__) -> None:
        """Change nothing."""


AutoModel.register(VideoPrismConfig, VideoPrismTowers, exist_ok=True)


def clip_vectors(towers: Any, pixels_NCHX: Tensor, interpolate: bool) -> Tensor:
    """[N, D] the vector of the clip that each frame is of. VideoPrism sees the frames of a clip together.

    Raises: ModelError when the frames are not those of whole clips.
    """
    num_frames = towers.config.vision_config.num_frames
    if len(pixels_NCHX) % num_frames:
        raise ModelError(f"VideoPrism: need {num_frames} frames of each clip, got {len(pixels_NCHX)} frames. Give "
                         f"whole clips.")
    clips_BD = towers.get_video_features(pixel_values_videos=pixels_NCHX.unflatten(0, (-1, num_frames)),
                                         interpolate_pos_encoding=interpolate).pooler_output[:, 0]
    return clips_BD.repeat_interleave(num_frames, 0)


def text_vectors(towers: Any, input_ids_BW: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
    """States of all tokens, and the anchor: a token that the tower adds after the text. The mask hides padding."""
    found = towers.get_text_features(input_ids=input_ids_BW, attention_mask=mask_BW.to(torch.long))
    return found.last_hidden_state[:, :-1], found.pooler_output


def words_and_a_period(text: str) -> str:
    """Words in small letters without ASCII punctuation, and a period at the end.

    Source: `canonicalize_text` of VideoPrism's own code, which its authors use on every text.
    """
    return " ".join(text.translate(NO_PUNCTUATION).lower().split()) + "."
