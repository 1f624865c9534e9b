"""What one family of towers computes, and that another family is one row of the table."""

import pytest
import torch
from model_world import pictures, randomised, save_small_clip
from transformers import ChineseCLIPConfig, ChineseCLIPModel, MetaClip2Config, MetaClip2Model

from hcmi.errors import ModelError
from hcmi.model.families import FAMILIES, Family, clip_class_token
from hcmi.model.towers import embedding_dim, frame_features, load_towers, text_features


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_towers(str(clip_folder), 77).eval()


def pixels(count: int, size: int) -> torch.Tensor:
    return pictures(count, size=size).movedim(-1, 1).float() / 64 - 2


@torch.no_grad()
def test_class_token_is_the_pooled_output_when_only_it_is_computed(clip):
    images = pixels(4, 32)
    needed = clip.vision_model(pixel_values=images).pooler_output
    torch.testing.assert_close(clip_class_token(clip.vision_model, images, False), needed, atol=1e-5, rtol=1e-5)


def test_class_token_has_the_gradients_of_the_pooled_output_when_backpropagated(clip_folder):
    found, needed = [], []
    for gradients, run in ((found, lambda vision, x: clip_class_token(vision, x, False)),
                           (needed, lambda vision, x: vision(pixel_values=x).pooler_output)):
        vision = load_towers(str(clip_folder), 77).vision_model
        run(vision, pixels(3, 32)).square().sum().backward()
        gradients.extend(weight.grad for weight in vision.parameters())
    for left, right in zip(found, needed, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_new_family_is_read_when_it_has_a_row(tmp_path, monkeypatch):
    """MetaCLIP 2 is put together as CLIP is, so its row is CLIP's; nothing else has to change."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "projection_dim": 24}
    config = MetaClip2Config(projection_dim=24, vision_config=dict(common, image_size=32, patch_size=8),
                             text_config=dict(common, vocab_size=50, eos_token_id=2, pad_token_id=1, bos_token_id=0))
    randomised(MetaClip2Model(config)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"need a dual tower of family clip or .*, got 'metaclip_2'"):
        load_towers(str(tmp_path), 16)
    monkeypatch.setitem(FAMILIES, "metaclip_2", FAMILIES["clip"])
    towers, own = load_towers(str(tmp_path), 16).eval(), MetaClip2Model.from_pretrained(tmp_path).eval()
    images = pixels(3, 32)
    needed = own.get_image_features(pixel_values=images).pooler_output
    torch.testing.assert_close(frame_features(towers, images), needed, atol=1e-5, rtol=1e-5)
    ids_BW = torch.tensor([[0, 7, 8, 9, 2], [0, 5, 2, 1, 1]])
    mask_BW = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    states_BWD, anchor_BD = text_features(towers, ids_BW, mask_BW)
    assert states_BWD.shape == (2, 5, embedding_dim(towers.config))
    torch.testing.assert_close(anchor_BD, own.get_text_features(input_ids=ids_BW).pooler_output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_new_family_is_read_when_its_text_attends_in_both_directions(tmp_path, monkeypatch):
    """Chinese CLIP has BERT's text tower: its padding needs a mask, and its positions have another name."""
    def text(towers, ids_BW, mask_BW):
        seen_B11W = torch.zeros(mask_BW.shape).masked_fill(~mask_BW, -1e9)[:, None, None]
        states_BWD = towers.text_model(input_ids=ids_BW, token_type_ids=torch.zeros_like(ids_BW),
                                       attention_mask=seen_B11W).last_hidden_state
        return towers.text_projection(states_BWD), towers.text_projection(states_BWD[:, 0])

    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ChineseCLIPConfig(projection_dim=24, vision_config=dict(common, image_size=32, patch_size=8),
                               text_config=dict(common, vocab_size=50, max_position_embeddings=8))
    randomised(ChineseCLIPModel(config)).save_pretrained(tmp_path)
    like_clip = FAMILIES["clip"]
    monkeypatch.setitem(FAMILIES, "chinese_clip", Family(like_clip.image, text, like_clip.embedding_dim,
                                                         like_clip.vision_parts, "position_embeddings"))
    towers, own = load_towers(str(tmp_path), 8).eval(), ChineseCLIPModel.from_pretrained(tmp_path).eval()
    images = pixels(3, 32)
    needed = own.get_image_features(pixel_values=images).pooler_output
    torch.testing.assert_close(frame_features(towers, images), needed, atol=1e-5, rtol=1e-5)
    ids_BW = torch.tensor([[2, 7, 8, 9, 3], [2, 5, 3, 0, 0]])
    mask_BW = ids_BW > 0
    needed = own.get_text_features(input_ids=ids_BW, attention_mask=mask_BW.long()).pooler_output
    torch.testing.assert_close(text_features(towers, ids_BW, mask_BW)[1], needed, atol=1e-5, rtol=1e-5)
    long_BW = torch.arange(3, 15)[None]     # 12 tokens, more than its 8 positions
    longer = load_towers(str(tmp_path), 12).eval()
    assert text_features(longer, long_BW, long_BW > 0)[0].shape == (1, 12, 24)
