"""What is kept of a token when it is stored."""

from dataclasses import replace

import numpy as np
import torch
from index_world import names
from search_world import clips, text_tokens, times, video_tokens
from torch.testing import assert_close

from hcmi.index import TokenStore, add_videos, read_texts, round_trip, write_texts


def test_int8_keeps_the_ranking_when_vectors_are_of_length_one(folder):
    tokens = video_tokens(50, np.random.default_rng(0), dim=128)
    add_videos(folder, clips(names(50)), [(tokens, times(50))], "int8")
    stored = TokenStore(folder / "segments/000001/embeddings")
    assert stored.precision == "int8"
    np.testing.assert_allclose(np.linalg.norm(stored.vectors(slice(None)), axis=1), 1, atol=1e-6)
    cosine = (stored.vectors(slice(None)) * tokens.video_BD.numpy()).sum(1)
    assert cosine.min() > 0.9999
    np.testing.assert_array_equal(stored.tokens(slice(None)).frames_BTD, round_trip(tokens, "int8").frames_BTD)


def test_texts_keep_the_lengths_of_their_sentences(tmp_path):
    """The lengths weigh the level of whole videos, so scores need them."""
    texts = text_tokens(4, np.random.default_rng(0))
    lengths_B = torch.tensor([0.01, 0.5, 1.0, 1.9])
    texts = replace(texts, sentence_BD=lengths_B[:, None] * texts.sentence_BD)
    write_texts(tmp_path, texts)
    found = read_texts(tmp_path)
    assert_close(found.sentence_BD.norm(dim=1), lengths_B, atol=0, rtol=1e-3)
    for name, values in vars(texts).items():
        assert_close(getattr(found, name), values, atol=1e-3, rtol=0)
    assert_close(found.words_BWD.norm(dim=-1), torch.ones(texts.words_BWD.shape[:2]))
