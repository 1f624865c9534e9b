"""What is kept of a token when it is stored."""

import numpy as np
from index_world import names
from search_world import clips, times, video_tokens

from hcmi.index import TokenStore, add_videos, round_trip


def test_int8_keeps_the_ranking_when_vectors_are_of_length_one(folder):
    tokens = video_tokens(50, np.random.default_rng(0), dim=128)
    add_videos(folder, clips(names(50)), [(tokens, times(50))], "int8")
    stored = TokenStore(folder / "segments/000001/embeddings")
    assert stored.precision == "int8"
    np.testing.assert_allclose(np.linalg.norm(stored.vectors(slice(None)), axis=1), 1, atol=1e-6)
    cosine = (stored.vectors(slice(None)) * tokens.video_BD.numpy()).sum(1)
    assert cosine.min() > 0.9999
    np.testing.assert_array_equal(stored.tokens(slice(None)).frames_BTD, round_trip(tokens, "int8").frames_BTD)
