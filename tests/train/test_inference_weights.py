"""Level weights at inference: chosen on validation, and equal with a note when validation is too small."""

import warnings

import pytest
from model_world import tiny_model

from hcmi.shards import ShardReader
from hcmi.train import stage
from hcmi.train.stage import inference_weights

LEVELS = ("frame_word", "clip_phrase", "video_sentence")


def test_inference_weights_are_equal_and_say_why_when_validation_has_few_clips(films):
    with pytest.warns(UserWarning, match="split val: need 50 captioned clips to choose level weights, got 3. "
                                         "All levels count the same."):
        weights = inference_weights(tiny_model(), LEVELS[:2], ShardReader(films, "val"))
    assert weights == {"frame_word": 1, "clip_phrase": 1, "video_sentence": 0}


@pytest.mark.parametrize(("trained", "fewest"), [(LEVELS, 3), (LEVELS[:1], 50)])
def test_inference_weights_say_nothing_when_there_was_a_choice_or_only_one_level(films, monkeypatch, trained, fewest):
    monkeypatch.setattr(stage, "FEWEST_CLIPS", fewest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = inference_weights(tiny_model(), trained, ShardReader(films, "val"))
    assert sum(weights.values()) == len(trained)
