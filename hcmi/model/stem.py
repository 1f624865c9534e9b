"""A CLIP for towers that are trained from scratch: it begins with convolutions, and its class token knows places.

Small towers that are trained on few clips lose two things with CLIP's own image tower. A patch embedding sees each
patch once and through one matrix, and learns shapes late (Xiao et al. 2021, arXiv 2106.14881). And the class token is
an average of what it attends to: on Scenes, the position of a shape explained 3 % of it, so that the direction of a
motion was lost (docs/experiments.md). Everything else is `transformers`' CLIP, and so are the model folder and its
loading.
"""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

MAP_CHANNELS = 16       # of the map that the class token is made of [ours]


class ConvStemClipConfig(CLIPConfig):
    """CLIP's configuration. `vision_config.patch_size` is the stride of the whole stem, in pixels, and is even."""

    model_type = "clip_conv_stem"


class ConvStemClipModel(CLIPModel):
    """CLIP whose image tower begins with `ConvStemEmbeddings`."""

    config_class = ConvStemClipConfig

    def __init__(self, config: ConvStemClipConfig):
        super().__init__(config)
        self.vision_model.embeddings = ConvStemEmbeddings(config.vision_config)


class ConvStemEmbeddings(CLIPVisionEmbeddings):
    """Tokens of a `ConvStem`, and a class token that starts from a map of them: their places are not averaged away.

    Positions start as sines and cosines of both coordinates. [ours]
    """

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.patch_embedding = ConvStem(  # type: ignore[assignment]
            config.num_channels, width, config.patch_size)
        self.map = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, MAP_CHANNELS), nn.GELU(approximate="tanh"),
                                 nn.Flatten(1), nn.Linear(MAP_CHANNELS * self.num_patches, width))
        with torch.no_grad():
            self.class_embedding.zero_()
            self.position_embedding.weight.zero_()
            self.position_embedding.weight[1:] = sine_positions(config.image_size // config.patch_size, width)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Pixels [N, 3, H, X] of the size that the tower was made for, to [N, 1 + patches, D]."""
        assert not interpolate_pos_encoding, f"need images of {self.image_size} pixels"
        tokens_NLD = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        class_N1D = (self.class_embedding + self.map(tokens_NLD))[:, None]
        return torch.cat([class_N1D, tokens_NLD], 1) + self.position_embedding(self.position_ids)


def sine_positions(side: int, width: int) -> Tensor:
    """[side * side, width]: sines and cosines of column and row, with wavelengths from 0.8 sides upwards."""
    frequencies = 100 ** -(torch.arange(width // 4) / (width // 4))
    row, column = (torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side))
    angles = [place[:, None] * 8 / side * frequencies for place in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1) * 0.5**0.5


class ConvStem(nn.Module):
    """Pixels [N, 3, H, X] to tokens [N, D, H / stride, X / stride]. [ours]

    The first convolution works on blocks of `stride / 2` pixels square as channels (space-to-depth): at full
    resolution the same convolutions took twice as long on a CPU. The second one has stride 2, and two residual ones
    follow.
    """

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        block, half = stride // 2, width // 2
        self.to_blocks = nn.PixelUnshuffle(block)
        self.first = nn.Conv2d(channels * block**2, half, kernel_size=3, padding=1)
        self.layers = nn.Sequential(
            nn.GroupNorm(1, half),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(half, width, kernel_size=3, stride=2, padding=1),
            ResidualConvolution(width),
            ResidualConvolution(width))

    @property
    def weight(self) -> Tensor:
        """The first weights, whose type `transformers` gives the pixels."""
        return self.first.weight

    def forward(self, pixels_NCHX: Tensor) -> Tensor:
        blocks_NCHX = self.to_blocks(pixels_NCHX.contiguous(memory_format=torch.channels_last))
        return self.layers(self.first(blocks_NCHX))


class ResidualConvolution(nn.Module):
    """X + conv(gelu(norm(X))), 3 by 3."""

    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(nn.GroupNorm(1, width), nn.GELU(approximate="tanh"),
                                    nn.Conv2d(width, width, kernel_size=3, padding=1))

    def forward(self, tokens_NDHX: Tensor) -> Tensor:
        return tokens_NDHX + self.branch(tokens_NDHX)


AutoConfig.register(ConvStemClipConfig.model_type, ConvStemClipConfig)
AutoModel.register(ConvStemClipConfig, ConvStemClipModel)
