"""Scoring whole splits: the tiled way and each head's own give the same numbers."""

import numpy as np
import pytest
import torch
from search_world import text_tokens, tiny_model, video_tokens

from hcmi.config import HEADS
from hcmi.encode import score


@pytest.mark.parametrize("head", HEADS)
def test_score_agrees_with_the_head_when_it_works_in_tiles(head):
    model, generator = tiny_model(head=head), np.random.default_rng(0)
    videos, texts = video_tokens(20, generator), text_tokens(15, generator)
    with torch.no_grad():
        expected = model.similarities(texts, videos)
    found = score(model, texts, videos, tile=4)
    assert list(found) == list(expected)
    for level, sims_QV in found.items():
        assert sims_QV.dtype == torch.float32
        assert (sims_QV - expected[level]).abs().max() < 1e-5
