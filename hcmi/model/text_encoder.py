"""The text side of a trained model, which is all that searching an index needs.

    encoder = load_text_encoder("models/hcmi")
    encode_texts(encoder, ["a red ring slides left"])

The image tower is most of a pretrained model (88 of CLIP ViT-B/32's 151 million weights), and the index already holds
what it computed.
"""

from pathlib import Path

import torch

from hcmi.errors import ModelError
from hcmi.model.checkpoint import load_retriever
from hcmi.model.modeling import HcmiConfig, HcmiModel
from hcmi.model.towers import drop_vision_tower
from hcmi.types import VideoTokens


class TextEncoder(HcmiModel):
    """A retriever without its image tower. It encodes and scores texts exactly as the whole model does."""

    def encode_videos(self, pixel_values_BTCHX: torch.Tensor, frame_mask_BT: torch.Tensor) -> VideoTokens:
        """Raises: ModelError, always."""
        raise ModelError("text encoder: need the whole model to encode videos, got its text side. "
                         "Load the folder with load_retriever.")


def load_text_encoder(source: str | Path, device: str | torch.device = "cpu", precision: str = "float32"
                      ) -> TextEncoder:
    """The text side of a model that `load_retriever` takes. Its fingerprint is that of the whole model.

    Raises: ModelError as `load_retriever` does.
    """
    whole = load_retriever(source, device, precision)
    assert isinstance(whole.config, HcmiConfig), "the configuration is the one that HcmiModel made"
    encoder = TextEncoder(whole.config, whole.towers)
    encoder.head, encoder.processor, encoder.checkpoint = whole.head, whole.processor, whole.checkpoint
    encoder.kept_fingerprint = whole.fingerprint
    drop_vision_tower(encoder.towers)
    return encoder.eval()
