"""Shards and a checkpoint that the tests of several ways to train share; each module has its own."""

from pathlib import Path

import pytest
from model_world import SIZE, make_shards, save_small_clip


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("few"), num_train=6)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_small_clip(tmp_path_factory.mktemp("clip"), image_size=SIZE)
