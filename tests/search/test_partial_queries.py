"""Queries for a part of a video."""

import numpy as np
import pytest
import torch
from search_world import T, text_tokens, video_tokens

from hcmi.errors import ConfigError
from hcmi.model import encode_texts
from hcmi.search import check_part, part_similarities
from hcmi.types import VideoTokens

QUERY = "a red ring slides left"


def by_text_alone(tokens_ND, weights_N, others_MD, others_M) -> float:
    return sum(float(weight) * max(float(token @ other) for other, valid in zip(others_MD, others_M, strict=True)
                                   if valid > 0) for token, weight in zip(tokens_ND, weights_N, strict=True))


def test_a_part_is_scored_by_the_words_alone_when_worked_by_loops(model, world):
    retriever, videos = world
    text = encode_texts(model, [QUERY])
    hits = retriever.search(QUERY, top=60, part=True)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.video_id for hit in hits] != [hit.video_id for hit in retriever.search(QUERY, top=60)]
    for hit in hits[::20]:
        row = int(hit.video_id[1:])
        assert hit.levels == pytest.approx({    # not video-sentence, which stands for all that a video shows
            "frame_word": by_text_alone(text.words_BWD[0], text.word_weights_BW[0], videos.frames_BTD[row],
                                        videos.frame_weights_BT[row]),
            "clip_phrase": by_text_alone(text.phrases_BPD[0], text.phrase_weights_BP[0], videos.clips_BCD[row],
                                         videos.clip_weights_BC[row])}, abs=2e-3)   # stored as float16
        assert hit.score == pytest.approx(sum(model.level_weights[name] * value for name, value in hit.levels.items()))


def test_more_frames_never_count_against_a_part_and_padding_never_for_it():
    generator = np.random.default_rng(1)
    text, video = text_tokens(2, generator), video_tokens(3, generator)
    part = part_similarities(text, shortened(video, T - 2), ["frame_word"])["frame_word"]
    whole = part_similarities(text, video, ["frame_word"])["frame_word"]
    assert (whole >= part).all()
    assert (whole > part).any()
    padded = VideoTokens(**{**vars(video), "frame_weights_BT": video.frame_weights_BT.clone()})
    padded.frame_weights_BT[:, T - 2:] = 0
    torch.testing.assert_close(part_similarities(text, padded, ["frame_word"])["frame_word"], part)


def shortened(video: VideoTokens, frames: int) -> VideoTokens:
    return VideoTokens(video.video_BD, video.frames_BTD[:, :frames], video.clips_BCD,
                       video.frame_weights_BT[:, :frames], video.clip_weights_BC)


def test_a_part_is_refused_when_only_whole_videos_are_compared(model, world, monkeypatch):
    retriever, _ = world
    monkeypatch.setattr(model.config, "level_weights", {"frame_word": 0.0, "clip_phrase": 0.0, "video_sentence": 1.0})
    assert not retriever.supports_partial_queries
    with pytest.raises(ConfigError, match="weight on frame_word or clip_phrase, got hcmi with "):
        retriever.search(QUERY, part=True)


def test_the_message_names_the_flag_that_the_user_typed(model, monkeypatch):
    monkeypatch.setattr(model.config, "level_weights", {"frame_word": 0.0, "clip_phrase": 0.0, "video_sentence": 1.0})
    with pytest.raises(ConfigError, match=r"^--part: need a model with head hcmi or wti"):
        check_part(model, "--part")
