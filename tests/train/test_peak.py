"""Operations of a step, worked by hand, and the share of the peak that a run reports."""

import pytest
import torch
from model_world import tiny_model, train_config

from hcmi.shards import ShardReader
from hcmi.train.peak import clip_operations, matrix_peak, operations


def test_operations_of_a_product_and_its_gradients_when_worked_by_hand():
    left, right = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert operations(lambda: left @ right) == 2 * 3 * 5 * 7
    assert operations(lambda: (left @ right).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_clip_operations_leave_the_model_as_it_was_and_grow_with_what_is_computed(films):
    model, reader, config = tiny_model(wild=True), ShardReader(films, "train"), train_config(captions_per_clip=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    found = clip_operations(model, config, reader, "float32")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        pixels = torch.zeros(1, model.config.num_frames, 3, *reader.frame_shape[:2])
        towers = operations(lambda: model.frame_features(pixels))
    assert 3 * towers < found < 30 * towers     # the head and the texts are large beside this tower
    twice = clip_operations(model, config.model_copy(update={"captions_per_clip": 2}), reader, "float32")
    assert found < twice < 2 * found
    for weight in model.towers.parameters():
        weight.requires_grad_(False)
    assert found / 3 < clip_operations(model, config, reader, "float32") < found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_matrix_peak_is_that_of_a_computer(precision):
    assert 1e8 < matrix_peak(torch.device("cpu"), precision) < 1e14
