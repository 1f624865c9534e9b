"""The text side of a trained model, which is all that searching an index needs.

    encoder = load_text_encoder("models/hcmi")
    encode_texts(encoder, ["a red ring slides left"])

The image tower is most of a pretrained model (88 of CLIP ViT-B/32's 151 million weights), and the index already holds
what it computed.
"""

from pathlib import Path

import torch

from hcmi.errors import ModelError
from hcmi.model.modeling import HcmiConfig, HcmiModel, load_retriever
from hcmi.model.towers import drop_vision_tower
from hcmi.types import VideoTokens


class TextEncoder(HcmiModel):
    """A retriever without its image tower. It encodes and scores texts exactly as the whole model does."""

    whole_fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the whole model, which an index is compared with."""
        return self.whole_fingerprint

    def encode_videos(self, pixel_values_BTCHX: torch.Tensor, frame_mask_BT: torch.Tensor) -> VideoTokens:
        """Raises: ModelError, always."""
        raise ModelError("text encoder: need the whole model to encode videos, got its text side. "
                         "Load the folder with load_retriever.")


def load_text_encoder(folder: str | Path, device: str | torch.device = "cpu") -> TextEncoder:
    """The text side of the model in a folder that `hcmi train` wrote.

    Raises: ModelError as `load_retriever` does.
    """
    whole = load_retriever(folder, device)
    assert isinstance(whole.config, HcmiConfig), "the configuration is the one that HcmiModel made"
    encoder = TextEncoder(whole.config, whole.towers)
    encoder.head, encoder.processor, encoder.whole_fingerprint = whole.head, whole.processor, whole.fingerprint
    drop_vision_tower(encoder.towers)
    return encoder.eval()
