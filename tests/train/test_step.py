"""A step in micro-batches has the loss and the gradients of the whole batch, and keeps less for the backward pass."""

import math
from dataclasses import replace

import pytest
import torch
from model_world import section, tiny_model, train_config
from step_world import PeakBytes, assert_same_gradients, gradients, random_batch, wild_model

from hcmi.errors import MachineError
from hcmi.model import HcmiModel
from hcmi.model.heads import HEADS
from hcmi.train import step
from hcmi.train.micro_batch import largest_that_fits


@pytest.mark.parametrize("micro_batch", [1, 7, 32])
@pytest.mark.parametrize(("head", "denoise"), [(head, "off") for head in HEADS] + [("hcmi", "positive"),
                                                                                  ("hcmi", "mask")])
def test_gradients_are_those_of_the_plain_step_when_computed_in_micro_batches(head, denoise, micro_batch):
    model, batch = wild_model(head), random_batch(32)
    assert_same_gradients(gradients(model, batch, denoise, micro_batch=micro_batch), gradients(model, batch, denoise))


def test_gradients_in_bfloat16_are_no_worse_in_micro_batches():
    """Were they summed over micro-batches in bfloat16, they would be."""
    model, batch = wild_model("hcmi"), random_batch(32)
    exact = gradients(model, batch)
    plain, parts = (gradients(model, batch, precision="bfloat16", micro_batch=size) for size in (0, 1))
    errors = [math.sqrt(sum(float((found[name] - exact[name]).square().sum()) for name in exact))
              for found in (plain, parts)]
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("planted", ["order", "lost part", "no gradient through videos", "shifted features"])
def test_planted_fault_is_found_when_micro_batches_are_compared(monkeypatch, planted):
    model, batch = wild_model("hcmi"), random_batch(32)
    expected = gradients(model, batch, "positive")
    embed, score = step._embed, step.bucketed_similarities

    def faulty_embed(*args):
        videos, features_BTD, mask_BT = embed(*args)
        if planted == "shifted features":
            return videos, features_BTD.roll(1, 0), mask_BT
        if planted == "no gradient through videos":
            return replace(videos, frames_BTD=videos.frames_BTD.detach()), features_BTD, mask_BT
        return videos, features_BTD, mask_BT

    def faulty_score(*args):
        levels, sentence_QD = score(*args)
        if planted == "order":
            return {level: sims_QV.roll(1, 0) for level, sims_QV in levels.items()}, sentence_QD
        if planted == "lost part":
            return {level: torch.cat([sims_QV[:7].detach(), sims_QV[7:]]) for level, sims_QV in levels.items()
                    }, sentence_QD
        return levels, sentence_QD

    monkeypatch.setattr(step, "_embed", faulty_embed)
    monkeypatch.setattr(step, "bucketed_similarities", faulty_score)
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients(model, batch, "positive", micro_batch=7), expected)


# memory

def peak_bytes(model: HcmiModel, micro_batch: int = 0) -> int:
    """Of a step's loss and gradients, beside the gradients themselves."""
    batch = random_batch(32)
    gradients(model, batch, micro_batch=micro_batch)        # what is made once
    with PeakBytes() as peak:
        total, _ = step.batch_loss(model, batch, train_config(), "off", "float32", None, micro_batch)
        total.backward()
    return peak.most


@pytest.mark.parametrize("head", HEADS)
def test_less_is_kept_when_a_step_is_computed_in_micro_batches(head):
    """32 clips one by one; what remains is mostly the loss's own."""
    plain, parts = (peak_bytes(wild_model(head), size) for size in (0, 2))
    assert parts < 0.5 * plain


SHAPES = {"shipped": {"stem": "conv", "vision_layers": 1, "text_layers": 2}, "deep": {"stem": "patch",
                                                                                     "vision_layers": 6}}


@pytest.mark.parametrize("shape", SHAPES)
def test_activation_checkpointing_keeps_less_and_changes_nothing(shape):
    def model() -> HcmiModel:
        scratch = {**section().scratch.model_dump(), **SHAPES[shape]}
        return tiny_model("mean_pool", wild=True, scratch=scratch).train()

    plain, checkpointed = model(), model()
    checkpointed.checkpoint_activations()
    batch = random_batch(32)
    assert_same_gradients(gradients(checkpointed, batch), gradients(plain, batch))
    assert peak_bytes(checkpointed) < 0.8 * peak_bytes(plain)
    assert_same_gradients(gradients(checkpointed, batch, micro_batch=7), gradients(plain, batch))


# which size is taken

def test_largest_that_fits_halves_until_it_fits():
    def limit(most: int) -> tuple[int, list[int]]:
        tried = []
        return largest_that_fits(100, lambda size: tried.append(size) or 0 < size <= most), tried

    assert largest_that_fits(100, lambda size: True) == 0
    assert limit(60) == (50, [0, 50])
    assert limit(12) == (7, [0, 50, 25, 13, 7])
    assert limit(1) == (1, [0, 50, 25, 13, 7, 4, 2, 1])
    with pytest.raises(MachineError, match=r"train\.micro_batch: need the GPU memory for one clip at a time"):
        limit(0)
