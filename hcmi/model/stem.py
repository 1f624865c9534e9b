"""A CLIP whose image tower begins with convolutions, for towers that are trained from scratch.

A patch embedding sees each patch once and through one matrix. Small towers trained on few clips learn shapes and
positions several times as fast from overlapping convolutions (Xiao et al. 2021, arXiv 2106.14881). Everything else is
`transformers`' CLIP, and so are the model folder and its loading.
"""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel


class ConvStemClipConfig(CLIPConfig):
    """CLIP's configuration. `vision_config.patch_size` is the stride of the whole stem, in pixels, and is even."""

    model_type = "clip_conv_stem"


class ConvStemClipModel(CLIPModel):
    """CLIP with `ConvStem` in place of the patch embedding."""

    config_class = ConvStemClipConfig

    def __init__(self, config: ConvStemClipConfig):
        super().__init__(config)
        vision = config.vision_config
        self.vision_model.embeddings.patch_embedding = ConvStem(vision.num_channels, vision.hidden_size,
                                                                vision.patch_size)


class ConvStem(nn.Module):
    """Pixels [N, 3, H, X] to tokens [N, D, H / stride, X / stride]. [ours]

    The first convolution works on blocks of `stride / 2` pixels square as channels (space-to-depth): at full
    resolution the same convolutions took twice as long on a CPU. The second one has stride 2, the third a residual
    connection.
    """

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        block, half = stride // 2, width // 2
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(block),
            nn.Conv2d(channels * block**2, half, kernel_size=3, padding=1),
            *_normalised(half),
            nn.Conv2d(half, width, kernel_size=3, stride=2, padding=1))
        self.residual = nn.Sequential(*_normalised(width), nn.Conv2d(width, width, kernel_size=3, padding=1))

    @property
    def weight(self) -> Tensor:
        """The first weights, whose type `transformers` gives the pixels."""
        return self.residual[-1].weight

    def forward(self, pixels_NCHX: Tensor) -> Tensor:
        tokens_NDHX = self.layers(pixels_NCHX.contiguous(memory_format=torch.channels_last))
        return tokens_NDHX + self.residual(tokens_NDHX)


def _normalised(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(1, channels), nn.GELU(approximate="tanh")


AutoConfig.register(ConvStemClipConfig.model_type, ConvStemClipConfig)
AutoModel.register(ConvStemClipConfig, ConvStemClipModel)
