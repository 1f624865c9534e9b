"""Towers against `transformers`' own forward passes, on CLIP and SigLIP with random weights, saved like checkpoints."""

import json

import pytest
import torch
from model_world import pictures, randomised, save_small_clip, save_small_siglip
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPConfig, CLIPModel

from hcmi.errors import ModelError
from hcmi.model.towers import drop_vision_tower, embedding_dim, frame_features, load_towers, text_features


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    return save_small_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_towers(str(clip_folder), 77).eval()


@pytest.fixture(scope="module")
def clip_by_transformers(clip_folder):
    return CLIPModel.from_pretrained(clip_folder, attn_implementation="eager", dtype=torch.float32).eval()


def pixels(count: int, size: int) -> torch.Tensor:
    return pictures(count, size=size).movedim(-1, 1).float() / 64 - 2


def captions(towers, lengths: list[int], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids between start and end, right padded with the end token as CLIP's tokenizer does."""
    config = towers.config.text_config
    ids_BW = torch.randint(0, 400, (len(lengths), longest), generator=torch.Generator().manual_seed(0))
    ids_BW[:, 0] = config.bos_token_id
    mask_BW = torch.arange(longest) < torch.tensor(lengths)[:, None]
    for row, length in enumerate(lengths):
        ids_BW[row, length - 1:] = config.eos_token_id
    return ids_BW, mask_BW


# images

@torch.no_grad()
def test_frame_features_are_clips_own_when_images_have_its_size(clip, clip_by_transformers):
    images = pixels(5, 32)
    needed = clip_by_transformers.get_image_features(pixel_values=images).pooler_output
    found = frame_features(clip, images)
    assert found.shape == (5, 24)
    assert found.std(0).min() > 0.01        # otherwise equality would mean little
    torch.testing.assert_close(found, needed, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [24, 64, 40])
def test_frame_features_interpolate_positions_when_images_have_another_size(clip, clip_by_transformers, size):
    images = pixels(3, size)
    needed = clip_by_transformers.get_image_features(pixel_values=images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(frame_features(clip, images), needed, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_are_siglips_own_when_the_towers_are_siglip(siglip_folder):
    towers = load_towers(str(siglip_folder), 64).eval()
    own = AutoModel.from_pretrained(siglip_folder, attn_implementation="eager").eval()
    images = pixels(4, 32)
    needed = own.get_image_features(pixel_values=images).pooler_output
    torch.testing.assert_close(frame_features(towers, images), needed, atol=1e-5, rtol=1e-5)
    ids_BW = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    ids_BW[0, 5:], ids_BW[1, -1] = 1, 1
    padded = torch.nn.functional.pad(ids_BW, (0, 64 - 9), value=1)
    states_BWD, anchor_BD = text_features(towers, ids_BW, ids_BW > 1)
    assert states_BWD.shape == (2, 9, embedding_dim(towers.config))
    torch.testing.assert_close(anchor_BD, own.get_text_features(input_ids=padded).pooler_output, atol=1e-5, rtol=1e-5)


# texts

@torch.no_grad()
def test_text_anchor_is_clips_own_sentence_when_captions_have_several_lengths(clip, clip_by_transformers):
    ids_BW, mask_BW = captions(clip, [12, 5, 2], 12)
    states_BWD, anchor_BD = text_features(clip, ids_BW, mask_BW)
    needed = clip_by_transformers.get_text_features(input_ids=ids_BW, attention_mask=mask_BW.long()).pooler_output
    assert anchor_BD.std(0).min() > 0.01
    torch.testing.assert_close(anchor_BD, needed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states_BWD[1, 4], anchor_BD[1])      # the end token of a caption of five


@torch.no_grad()
def test_text_states_are_unchanged_when_padding_changes(clip):
    ids_BW, mask_BW = captions(clip, [7, 4], 7)
    longer = torch.cat([ids_BW, torch.full((2, 5), 9)], 1)
    longer[1, 4:] = 11
    before_BWD, before_BD = text_features(clip, ids_BW, mask_BW)
    after_BWD, after_BD = text_features(clip, longer, torch.nn.functional.pad(mask_BW, (0, 5)))
    torch.testing.assert_close(after_BD, before_BD)
    torch.testing.assert_close(after_BWD[:, :7][mask_BW], before_BWD[mask_BW])


@torch.no_grad()
def test_text_positions_are_interpolated_when_captions_are_longer_than_77(clip_folder, clip):
    long = load_towers(str(clip_folder), 153).eval()
    before = clip.text_model.embeddings.position_embedding.weight
    after = long.text_model.embeddings.position_embedding.weight
    assert after.shape == (153, 40)
    torch.testing.assert_close(after[::2], before)      # 153 = 2 * 77 - 1: every other one is an old one
    torch.testing.assert_close(after[1::2], (before[1:] + before[:-1]) / 2)
    states_BWD, anchor_BD = text_features(long, *captions(long, [153, 100], 153))
    assert states_BWD.shape == (2, 153, 24)
    assert torch.isfinite(anchor_BD).all()


@torch.no_grad()
def test_text_positions_are_the_first_ones_when_captions_are_short(clip_folder, clip):
    short = load_towers(str(clip_folder), 16).eval()
    ids_BW, mask_BW = captions(clip, [16, 3], 16)
    for left, right in zip(text_features(short, ids_BW, mask_BW), text_features(clip, ids_BW, mask_BW), strict=True):
        assert torch.equal(left, right)


@torch.no_grad()
def test_text_features_are_finite_when_a_caption_is_padding_alone(clip):
    ids_BW, _ = captions(clip, [4, 4], 4)
    for tensor in text_features(clip, ids_BW, torch.zeros(2, 4, dtype=torch.bool)):
        assert torch.isfinite(tensor).all()


# checkpoints

def test_load_towers_gives_float32_when_the_checkpoint_stores_float16(tmp_path):
    towers = load_towers(str(save_small_clip(tmp_path, dtype=torch.float16)), 32)
    assert {weight.dtype for weight in towers.parameters()} == {torch.float32}


def test_load_towers_says_nothing_on_stderr_when_all_is_well(clip_folder, capfd):
    load_towers(str(clip_folder), 32)
    assert capfd.readouterr().err == ""


def test_load_towers_names_tensor_and_both_shapes_when_one_does_not_fit(tmp_path):
    folder = save_small_clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["projection_dim"] = 20
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_towers(str(folder), 32)
    assert str(caught.value) == ("model.backbone, tensor text_projection.weight: need shape (20, 40), got (24, 40). "
                                 "Choose a complete checkpoint.")


def test_load_towers_names_the_tensor_when_one_is_missing(tmp_path):
    folder = save_small_clip(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"visual_projection\.weight: need it in the weights, got none\. Choose"):
        load_towers(str(folder), 32)


def test_load_towers_says_what_is_wrong_when_the_weights_are_cut_short(tmp_path):
    folder = save_small_clip(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ModelError, match=r"need a CLIP or SigLIP checkpoint that transformers can read, got: .+ Copy"):
        load_towers(str(folder), 32)


@torch.no_grad()
@pytest.mark.parametrize("shape", ["B/32", "B/16", "L/14"])
def test_embedding_dim_is_that_of_the_features_when_the_shape_is_a_known_one(shape):
    width, patch, dim = {"B/32": (96, 32, 512), "B/16": (96, 16, 512), "L/14": (128, 14, 768)}[shape]
    config = CLIPConfig(projection_dim=dim, vision_config={"hidden_size": width, "intermediate_size": 96,
                                                           "num_hidden_layers": 1, "num_attention_heads": 2,
                                                           "image_size": 224, "patch_size": patch},
                        text_config={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
                                     "num_attention_heads": 2, "vocab_size": 500})
    towers = randomised(CLIPModel(config))
    assert embedding_dim(config) == frame_features(towers, pixels(1, 224)).shape[-1] == dim


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_drop_vision_tower_keeps_text_features_and_frees_the_rest(clip_folder, siglip_folder, family):
    towers = load_towers(str({"clip": clip_folder, "siglip": siglip_folder}[family]), 64).eval()
    ids_BW = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    mask_BW = torch.ones(2, 9, dtype=torch.bool)
    before = text_features(towers, ids_BW, mask_BW)
    drop_vision_tower(towers)
    for left, right in zip(text_features(towers, ids_BW, mask_BW), before, strict=True):
        assert torch.equal(left, right)
    assert not [name for name, _ in towers.named_parameters() if name.startswith(("vision", "visual"))]
