"""The text side alone: the same texts and scores as the whole model, and no video tower."""

import numpy as np
import pytest
import torch
from search_world import T, clips, searchable_model, times, video_tokens

from hcmi.errors import ModelError
from hcmi.index import add_videos, create_index, model_card
from hcmi.model import encode_texts, load_text_encoder
from hcmi.search import Retriever

TEXTS = ["a red ring slides left", "a square", "a blue ring grows then a green square slides"]


@pytest.fixture(scope="module", params=["hcmi", "xclip"])
def saved(request, tmp_path_factory):
    """A model and the folder it was saved in."""
    model = searchable_model(head=request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def test_text_encoder_gives_the_whole_models_tokens_and_fingerprint(saved):
    model, folder = saved
    encoder = load_text_encoder(folder)
    want, got = encode_texts(model, TEXTS), encode_texts(encoder, TEXTS)
    for field, values in vars(want).items():
        torch.testing.assert_close(getattr(got, field), values, rtol=0, atol=0)
    videos = video_tokens(5, np.random.default_rng(0))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.combine(encoder.similarities(got, videos)),
                                   model.combine(model.similarities(want, videos)), rtol=0, atol=0)
    assert encoder.fingerprint == model.fingerprint


def test_text_encoder_holds_no_weight_of_the_video_tower(saved):
    model, folder = saved
    names = set(load_text_encoder(folder).state_dict())
    assert names == {name for name in model.state_dict() if not name.startswith("towers.vis")}
    assert len(names) < len(model.state_dict())


def test_text_encoder_refuses_videos(saved):
    with pytest.raises(ModelError, match="need the whole model to encode videos, got its text side"):
        load_text_encoder(saved[1]).encode_videos(torch.rand(1, T, 3, 16, 16), torch.ones(1, T, dtype=torch.bool))


def test_retriever_searches_without_the_video_tower_when_given_a_folder(saved, tmp_path):
    model, folder = saved
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips(["v0", "v1", "v2"]), [(video_tokens(3, np.random.default_rng(1)), times(3))])
    retriever = Retriever(folder, tmp_path / "index")
    assert not any(name.startswith("towers.vis") for name in retriever.model.state_dict())
    assert retriever.search(TEXTS[0]) == Retriever(model, tmp_path / "index").search(TEXTS[0])


def test_load_text_encoder_says_what_is_missing_when_the_folder_is_empty(tmp_path):
    with pytest.raises(ModelError, match=r"need config.json, found none"):
        load_text_encoder(tmp_path)
