"""A patch embedding as a matrix product, against torch's convolution."""

import copy

import pytest
import torch
from model_world import tiny_model
from torch import nn
from torch.testing import assert_close

from hcmi.model.patches import PatchProduct, multiply_patches


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("patch", "size"), [(4, (12, 8)), ((2, 3), (6, 9)), (4, (15, 13))])
def test_patch_product_gives_the_convolution_and_its_gradients(bias, patch, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel_size=patch, stride=patch, bias=bias)
    product = copy.deepcopy(layer)
    multiply_patches(product)
    assert type(product) is PatchProduct
    assert product.state_dict().keys() == layer.state_dict().keys()
    pixels = torch.randn(2, 3, *size)
    results = []
    for each in (layer, product):
        given = pixels.clone().requires_grad_()
        made = each(given)
        results.append((made, *torch.autograd.grad(made.square().sum(), [given, *each.parameters()])))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_only_patch_embeddings_become_products():
    model = tiny_model("mean_pool")
    embedding = model.towers.vision_model.embeddings.patch_embedding
    overlapping = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1),
                                 nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, stride=2, groups=2)])
    multiply_patches(model)
    multiply_patches(overlapping)
    assert type(embedding) is PatchProduct
    assert [type(layer) for layer in overlapping] == [nn.Conv2d] * 4
    assert type(copy.deepcopy(model).towers.vision_model.embeddings.patch_embedding) is PatchProduct


def test_model_gives_the_same_tokens_when_its_patches_are_products():
    plain, product = tiny_model("mean_pool", wild=True), tiny_model("mean_pool", wild=True)
    multiply_patches(product)
    pixels, mask = torch.randn(2, 4, 3, 16, 16), torch.ones(2, 4, dtype=torch.bool)
    assert_close(product.encode_videos(pixels, mask).video_BD, plain.encode_videos(pixels, mask).video_BD)
