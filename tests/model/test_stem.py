"""The image tower for training from scratch: its shapes, its folder, and what its class token knows."""

import pytest
import torch
from transformers import AutoModel

from hcmi.model.stem import ConvStem, ConvStemClipConfig, ConvStemClipModel, sine_positions
from hcmi.model.towers import build_towers, frame_features


def small_config(image_size: int = 32, patch: int = 8) -> ConvStemClipConfig:
    common = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1,
              "projection_dim": 32}
    return ConvStemClipConfig(
        projection_dim=32, vision_config={**common, "image_size": image_size, "patch_size": patch},
        text_config={**common, "vocab_size": 300, "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 2,
                     "pad_token_id": 2})


@pytest.fixture
def towers() -> ConvStemClipModel:
    torch.manual_seed(0)
    return build_towers(small_config()).eval()


@pytest.mark.parametrize(("size", "stride"), [(32, 8), (48, 16), (64, 4)])
def test_stem_gives_one_token_for_each_stride(size, stride):
    assert ConvStem(3, 32, stride)(torch.zeros(2, 3, size, size)).shape == (2, 32, size // stride, size // stride)


def test_stem_sees_beyond_its_own_patch():
    """Overlapping: a pixel changes the tokens around its own too."""
    torch.manual_seed(0)
    stem, pixels = ConvStem(3, 32, 8), torch.zeros(1, 3, 64, 64)
    changed = pixels.clone()
    changed[..., 28, 28] = 5
    moved_HX = (stem(changed) - stem(pixels))[0].abs().amax(0) > 1e-6
    assert moved_HX[3, 3]
    assert moved_HX[2, 3]
    assert moved_HX[3, 4]


def test_folder_is_one_of_transformers_and_loads_to_equal_features(towers, tmp_path):
    towers.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, ConvStemClipModel)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, needed = (model.get_image_features(pixel_values=pixels).pooler_output for model in (loaded, towers))
    assert torch.equal(found, needed)
    assert needed.std(0).min() > 0.01       # otherwise equality would mean little
    torch.testing.assert_close(frame_features(towers, pixels), needed)


def test_positions_are_different_for_every_place_and_of_unit_variance():
    positions_LD = sine_positions(8, 64)
    assert positions_LD.shape == (64, 64)
    assert torch.cdist(positions_LD, positions_LD).fill_diagonal_(9).min() > 0.3
    torch.testing.assert_close(positions_LD.square().sum(1), torch.full((64,), 16.0))      # 32 pairs of 1/2 each


def test_class_token_depends_on_the_place_of_a_spot_when_it_enters_the_tower(towers):
    """In CLIP's own tower it is the same for every image there, and attention has to find the place."""
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[0, :, 4:8, 4:8] = pixels[1, :, 20:24, 20:24] = 3
    class_ND = towers.vision_model.embeddings(pixels)[:, 0]
    assert (class_ND[0] - class_ND[1]).abs().mean() > 0.05


def test_other_image_sizes_are_refused(towers):
    with pytest.raises(AssertionError, match="need images of 32 pixels"):
        frame_features(towers, torch.zeros(1, 3, 48, 48))
