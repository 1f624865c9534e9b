"""Attention against torch's own, alone and in a whole tower."""

import pytest
import torch
from model_world import pictures, save_small_clip
from transformers import CLIPModel

from hcmi.model.layers import attention, stretch_positions
from hcmi.model.towers import load_towers


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs_own_when_in_float32(causal):
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 2, 5, 4, generator=generator)
    needed = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=0.3)
    assert torch.equal(attention(queries, keys, values, causal=causal, scale=0.3), needed)


def test_attention_keeps_its_type_and_precision_when_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 2, 5, 4, generator=generator).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(queries, keys, values)
    assert found.dtype == torch.bfloat16
    exact = torch.nn.functional.scaled_dot_product_attention(queries.float(), keys.float(), values.float())
    assert torch.equal(found, exact.bfloat16())


@torch.no_grad()
def test_attention_equals_sdpa_and_eager_when_a_whole_tower_uses_it(tmp_path):
    folder = save_small_clip(tmp_path)
    towers = load_towers(str(folder), 77).eval()
    ids_BW = torch.randint(0, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    pixels_BCHX = pictures(2, size=32).movedim(-1, 1).float() / 64 - 2
    for name in ("sdpa", "eager"):
        own = CLIPModel.from_pretrained(folder, attn_implementation=name).eval()
        torch.testing.assert_close(towers.text_model(input_ids=ids_BW).last_hidden_state,
                                   own.text_model(input_ids=ids_BW).last_hidden_state, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(towers.vision_model(pixel_values=pixels_BCHX).last_hidden_state,
                                   own.vision_model(pixel_values=pixels_BCHX).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_stretch_positions_interpolates_when_there_are_too_few():
    positions_LD = torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0]])
    stretched_LD = stretch_positions(positions_LD, 5)
    assert stretched_LD.tolist() == [[0.0, 5.0], [0.5, 5.0], [1.0, 5.0], [2.5, 5.0], [4.0, 5.0]]


def test_stretch_positions_changes_nothing_when_there_are_enough():
    positions_LD = torch.randn(6, 2)
    assert stretch_positions(positions_LD, 4) is positions_LD
