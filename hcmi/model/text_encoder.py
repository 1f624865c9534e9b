"""The text side of a trained model: all that searching an index needs, without the video tower.

    encoder = load_text_encoder("models/hcmi")
    encode_texts(encoder, ["a red ring slides left"])

The tower is most of a pretrained model (88 of CLIP ViT-B/32's 151 million weights), and an index holds what it made.
"""

from pathlib import Path

import torch

from hcmi.errors import ModelError
from hcmi.model.modeling import HcmiConfig, HcmiModel, load_retriever
from hcmi.types import VideoTokens

VIDEO_TOWER = ("vision_model", "visual_projection")     # what CLIP and SigLIP call its parts


class TextEncoder(HcmiModel):
    """A retriever whose video tower was let go: texts and scores are the whole model's, videos are refused."""

    whole_fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """Of the model it is a part of: what an index must agree with."""
        return self.whole_fingerprint

    def encode_videos(self, pixel_values_BTCHX: torch.Tensor, frame_mask_BT: torch.Tensor) -> VideoTokens:
        """Raises: ModelError."""
        raise ModelError("text encoder: need the whole model to encode videos, got its text side. "
                         "Load the folder with load_retriever.")


def load_text_encoder(folder: str | Path, device: str | torch.device = "cpu") -> TextEncoder:
    """The text side of a folder that `hcmi train` wrote.

    Raises: ModelError as `load_retriever` does.
    """
    whole = load_retriever(folder, device)
    assert isinstance(whole.config, HcmiConfig), "as HcmiModel made it"
    encoder = TextEncoder(whole.config, whole.towers)
    encoder.head, encoder.processor, encoder.whole_fingerprint = whole.head, whole.processor, whole.fingerprint
    for part in VIDEO_TOWER:
        if hasattr(encoder.towers, part):
            setattr(encoder.towers, part, None)
    return encoder.eval()
