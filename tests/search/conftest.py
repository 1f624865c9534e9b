"""A retriever over made-up videos."""

import numpy as np
import pytest
from search_world import clips, searchable_model, times, video_tokens

from hcmi.index import add_videos, create_index, model_card
from hcmi.search import Retriever


@pytest.fixture(scope="session")
def model():
    return searchable_model()


@pytest.fixture
def world(model, tmp_path):
    """A retriever over 60 made-up videos, and their tokens."""
    tokens = video_tokens(60, np.random.default_rng(0))
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips([f"v{n}" for n in range(60)]), [(tokens, times(60))])
    return Retriever(model, tmp_path / "index"), tokens
