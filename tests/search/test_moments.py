"""The run of frames that stands out, and the baseline it stands out from."""

from dataclasses import fields
from itertools import combinations

import numpy as np
import pytest
import torch
from search_world import T, text_tokens, times, video_tokens

from hcmi.search import find_moment, measure_baseline
from hcmi.search.moments import MIN_BASELINE_VIDEOS, best_run, frame_relevance
from hcmi.types import TextTokens, VideoTokens


def test_moment_is_the_run_that_stands_out_when_worked_by_hand():
    times_T = np.array([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    assert best_run(np.array([0, 0, 1, 1, 0, 0.0]), times_T, 0, 6) == (2.0, 4.0)
    assert best_run(np.array([1, 0, 0, 0, 0, 0.0]), times_T, 0, 6) == (0.0, 1.0)
    assert best_run(np.array([0, 0, 0, 0, 0.9, 1.0]), times_T, 0, 6) == (4.0, 6.0)
    assert best_run(np.array([0, 1, 0.4, 1, 0, 0.0]), times_T, 0, 6) == (1.0, 4.0)
    assert best_run(np.full(6, 0.3), times_T, 0, 6) == (0, 6)
    assert best_run(np.array([0.2]), np.array([3.0]), 1, 6) == (1, 6)
    assert best_run(np.array([3, 3, 5, 5, 3, 3.0]), times_T, 0, 6, whole_above=2) == (0, 6)
    assert best_run(np.array([1, 1, 5, 5, 1, 1.0]), times_T, 0, 6, whole_above=2) == (2, 4)


def test_moment_is_the_true_run_when_relevance_has_no_errors():
    times_T = np.arange(9) + 0.5
    for first, last in combinations(range(10), 2):
        if last - first < 9:
            relevance_T = np.where((times_T > first) & (times_T < last), 0.7, 0.2)
            assert best_run(relevance_T, times_T, 0, 9) == (first, last)


def test_moment_is_the_longer_run_when_both_stand_out_alike():
    times_T = np.arange(8) + 0.5
    one_peak_and_a_plateau_T = np.array([0, 1.55, 0, 0, 1, 1, 1, 0])    # least squares would take the peak
    assert best_run(one_peak_and_a_plateau_T, times_T, 0, 8) == (4.0, 7.0)


def test_moment_has_a_length_when_a_short_file_repeats_frames():
    assert best_run(np.array([9, 0, 0, 0, 0, 1.0]), np.zeros(6), 0, 0.1) == (0, 0.1)
    times_T = np.array([0.0, 0, 0, 1, 1, 1])
    assert best_run(np.array([9, 0, 0, 0, 0, 0.0]), times_T, 0, 2) == (0.0, 0.5)
    assert best_run(np.array([0, 0, 0, 0, 9, 0.0]), times_T, 0, 2) == (0.5, 1.0)


def test_moment_leaves_padding_frames_out():
    tokens = video_tokens(1, np.random.default_rng(3))
    text = text_tokens(1, np.random.default_rng(4))
    frame_weights_BT = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0, 0]])
    frames_BTD = tokens.frames_BTD.clone()
    frames_BTD[0, 4:] = text.words_BWD[0, 0]        # padding that matches best
    frames_BTD[0, 2] = text.words_BWD[0].mean(0) / text.words_BWD[0].mean(0).norm()
    cut = VideoTokens(tokens.video_BD, frames_BTD, tokens.clips_BCD, frame_weights_BT, tokens.clip_weights_BC)
    start_s, end_s = find_moment(text, cut, times(1)[0], 0, 4)
    assert start_s <= 2.5 <= end_s <= 4


def test_baseline_is_the_mean_and_spread_of_relevance_over_other_videos_when_worked_by_loops():
    generator = np.random.default_rng(5)
    text, videos = text_tokens(1, generator), video_tokens(72, generator)
    videos.frame_weights_BT[:40, 4:] = 0        # padding: 32 videos are left there, and one at the last position
    videos.frame_weights_BT[:71, 5:] = 0
    found = measure_baseline(text, videos)
    relevance_VT = np.stack([frame_relevance(text, videos[row:row + 1]) for row in range(72)])
    every = np.concatenate([relevance_VT[:, :4].ravel(), relevance_VT[40:, 4], relevance_VT[71:, 5]])
    for at in range(T):
        valid = every if at == 5 else relevance_VT[40:, at] if at == 4 else relevance_VT[:, at]
        assert found.mean_T[at] == pytest.approx(valid.mean(), abs=1e-5)
        assert found.std_T[at] == pytest.approx(valid.std(), abs=1e-5)
    expected_T = (relevance_VT[0] - found.mean_T) / found.std_T
    np.testing.assert_allclose(frame_relevance(text, videos[:1], found), expected_T, rtol=1e-5)


def test_there_is_no_baseline_when_videos_are_few():
    generator = np.random.default_rng(5)
    assert measure_baseline(text_tokens(1, generator), video_tokens(MIN_BASELINE_VIDEOS - 1, generator)) is None


def test_frames_are_compared_with_the_sentence_when_words_do_not_count():
    generator = np.random.default_rng(6)
    text, videos = text_tokens(1, generator), video_tokens(40, generator)
    frames_TD = torch.nn.functional.normalize(torch.randn(T, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    frames_TD[2] = text.sentence_BD[0]
    videos.frames_BTD[0] = frames_TD
    relevance_T = frame_relevance(text, videos[:1], by_words=False)
    np.testing.assert_allclose(relevance_T, [float(frame @ text.sentence_BD[0]) for frame in frames_TD], atol=1e-6)
    weighted = TextTokens(text.sentence_BD * 0.3, *(getattr(text, field.name) for field in fields(text)[1:]))
    np.testing.assert_allclose(frame_relevance(weighted, videos[:1], by_words=False), relevance_T, atol=1e-6)
    assert find_moment(text, videos[:1], times(1)[0], 0, 6, by_words=False) == (2.0, 3.0)
    found = measure_baseline(text, videos, by_words=False)
    own_VT = np.stack([frame_relevance(text, videos[row:row + 1], by_words=False) for row in range(40)])
    np.testing.assert_allclose(found.mean_T, own_VT.mean(0), atol=1e-5)
