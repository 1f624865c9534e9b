"""An explanation holds what the score is made of."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from model_world import shake
from PIL import Image
from search_world import T, clips, searchable_model, times, video_tokens

from hcmi.index import add_videos, create_index, model_card
from hcmi.model import encode_texts
from hcmi.search import Retriever, explain, explanation_plot
from hcmi.search.explain import PhraseMatch, explain_hit
from hcmi.types import Hit, VideoTokens

QUERY = "a red ring slides left"


def padded_video(frames: int = T - 2) -> VideoTokens:
    video = video_tokens(1, np.random.default_rng(1))
    video.frame_weights_BT[0] = torch.tensor([1 / frames] * frames + [0.0] * (T - frames))
    return video


def score_by_loops(text, video, weights: dict[str, float]) -> float:
    """The weighted sum of the levels, each of the fine ones from its two sides (`Hcmi`)."""
    told_share = float(text.sentence_BD[0].norm()) / 4

    def mixed(tokens_ND, weights_N, others_MD, weights_M) -> float:
        ours = [(token, float(weight)) for token, weight in zip(tokens_ND, weights_N, strict=True) if weight > 0]
        others = [(token, float(weight)) for token, weight in zip(others_MD, weights_M, strict=True) if weight > 0]
        shown = sum(weight * max(float(token @ other) for other, _ in others) for token, weight in ours)
        told = sum(weight * max(float(token @ other) for token, _ in ours) for other, weight in others)
        return (1 - told_share) * shown + told_share * told

    return (weights["frame_word"] * mixed(text.words_BWD[0], text.word_weights_BW[0], video.frames_BTD[0],
                                          video.frame_weights_BT[0])
            + weights["clip_phrase"] * mixed(text.phrases_BPD[0], text.phrase_weights_BP[0], video.clips_BCD[0],
                                             video.clip_weights_BC[0])
            + weights["video_sentence"] * float(text.sentence_BD[0] @ video.video_BD[0]))


def explained(model, video, query: str = QUERY):
    return explain_hit(query, Hit(1, "v", "v.mp4", 0.0, 0.0, 1.0, {}), encode_texts(model, [query]), video, times(1)[0],
                       model)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (0.0, 3.0, 0.0)])
def test_shares_add_up_to_the_score_when_worked_by_loops(weights):
    model, video = shake(searchable_model()), padded_video()
    model.config.level_weights = dict(zip(model.head.levels, weights, strict=True))
    text, why = encode_texts(model, [QUERY]), explained(model, video)
    assert float(why.word_weights_W.std()) > 0.005
    whole = weights[2] * float(text.sentence_BD[0] @ video.video_BD[0])
    shares = why.word_shares_W.sum() + why.marks_share + sum(match.share for match in why.phrases)
    assert shares + whole == pytest.approx(score_by_loops(text, video, model.level_weights), abs=1e-5)


def test_shares_are_weight_times_cosine_when_the_query_tells_no_whole_video():
    model, video = shake(searchable_model()), padded_video()
    with torch.no_grad():
        model.head.coverage.weight.zero_()
        model.head.coverage.bias.fill_(-100.0)
    why = explained(model, video)
    np.testing.assert_allclose(why.word_shares_W, why.word_weights_W * why.word_cosines_W, rtol=1e-5)
    for match in why.phrases:
        assert match.share == pytest.approx(match.weight * match.cosine)


def test_a_word_counts_in_the_frame_that_shows_it_and_never_in_padding():
    model, video = searchable_model(), padded_video()
    ring_D = encode_texts(model, [QUERY]).words_BWD[0, 3]       # after the start mark, "a" and "red"
    video.frames_BTD[0, 2] = video.frames_BTD[0, T - 1] = ring_D
    why = explained(model, video)
    ring = why.words.index("ring")
    assert why.times_s.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert why.word_frames_W[ring] == 2
    assert why.word_cosines_W[ring] == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(why.word_frames_W, why.frame_word_TW.argmax(0))
    np.testing.assert_allclose(why.word_cosines_W, why.frame_word_TW.max(0), rtol=1e-5)


def test_a_word_of_two_tokens_has_their_weights_and_their_mean_when_worked_by_loops(monkeypatch):
    model, video = shake(searchable_model()), padded_video()
    alone = explained(model, video)
    monkeypatch.setattr(explain, "query_words", lambda *_: [("a", [1]), ("red ring", [2, 3]), ("slides", [4])])
    why = explained(model, video)
    red, ring = (float(weight) for weight in alone.word_weights_W[1:3])
    assert why.word_weights_W[1] == pytest.approx(red + ring)
    assert why.word_shares_W[1] == pytest.approx(alone.word_shares_W[1:3].sum())
    for at in range(len(why.times_s)):
        one, other = alone.frame_word_TW[at, 1:3]
        assert why.frame_word_TW[at, 1] == pytest.approx((red * one + ring * other) / (red + ring))
    left = alone.word_shares_W[4]       # a token that is in no word counts with the marks
    assert why.marks_share == pytest.approx(alone.marks_share + left, abs=1e-6)


@pytest.mark.parametrize("head", ["wti", "xclip"])
def test_there_are_no_shares_when_the_head_is_no_sum_over_words(head):
    why = explained(searchable_model(head=head), padded_video())
    assert why.word_shares_W.size == why.marks_share == 0
    assert len(why.word_frames_W) == len(why.word_cosines_W) == 5


@pytest.mark.parametrize("head", ["hcmi", "mean_pool"])
def test_the_query_is_the_only_word_when_the_sentence_alone_counts(head):
    model, video = searchable_model(head=head), padded_video()
    model.config.level_weights = {level: float(level == "video_sentence") for level in model.head.levels}
    sentence_D = encode_texts(model, [QUERY]).sentence_BD[0]
    video.frames_BTD[0, 2] = video.frames_BTD[0, T - 1] = sentence_D / sentence_D.norm()
    why = explained(model, video)
    assert (why.words, why.word_weights_W.tolist(), why.word_frames_W.tolist()) == ((QUERY,), [1.0], [2])
    assert why.word_shares_W.size == why.marks_share == len(why.phrases) == 0
    assert why.word_cosines_W[0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(why.frame_word_TW[:, 0], why.relevance_T)
    assert len(why.relevance_T) == T - 2


def test_phrases_are_named_by_words_that_tell_something():
    model, video = searchable_model(), padded_video()
    query = "a red ring, then a blue square"
    text = encode_texts(model, [query])
    hit = Hit(1, "v", "v.mp4", 0.0, 0.0, 1.0, {})
    why = explain_hit(query, hit, text, video, times(1)[0], model)
    named = {word for match in why.phrases for word in match.words}
    assert why.phrases
    assert named <= {"red", "ring", "blue", "square"}
    why = explain_hit("a then", hit, encode_texts(model, ["a then"]), video, times(1)[0], model)
    assert {word for match in why.phrases for word in match.words} <= {"a", "then"}


def test_picture_of_noise_is_pale_and_its_bars_are_short():
    """The scales of colours and of relevance are the same for every answer."""
    why = explained(searchable_model(), padded_video())
    for factor in (0.01, 1.0):
        axes = Figure().subplots(2)
        weak = replace(why, frame_word_TW=why.frame_word_TW * factor, relevance_T=0.05 * factor * np.ones(T - 2))
        explanation_plot._heat(axes[0], weak)
        assert axes[0].images[0].get_clim() == (0.0, 1.0)
        explanation_plot._curve(axes[1], weak, np.zeros(T - 2, bool))
        low, high = axes[1].get_ylim()
        assert low < 0
        assert high >= 0.2
        assert {bar.get_y() for bar in axes[1].patches} == {0.0}


def test_record_is_ready_for_json_and_has_no_weights_of_frames():
    why = explained(searchable_model(), padded_video())
    record = json.loads(json.dumps(why.record()))
    assert set(record) == {"query", "hit", "level_weights", "words", "word_weights", "word_frames", "word_cosines",
                           "word_shares", "marks_share", "times_s", "frame_word", "relevance", "baseline", "phrases"}
    assert record["word_frames"] == why.word_frames_W.tolist()
    assert set(record["phrases"][0]) == {"words", "weight", "clip", "time_s", "cosine", "share"}


@pytest.mark.parametrize(("videos", "label"), [(59, "the query, against\nother videos"), (9, "the query")])
def test_picture_names_the_relevance_by_what_it_is(model, tmp_path, videos, label):
    """With few videos nothing is known of the others, and the relevance is a cosine."""
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips([f"v{n}" for n in range(videos)]),
               [(video_tokens(videos, np.random.default_rng(0)), times(videos))])
    retriever = Retriever(model, tmp_path / "index")
    why = retriever.explain(QUERY, retriever.search(QUERY)[0])
    assert why.record()["baseline"] == (videos >= 32)
    axes = Figure().subplots()
    explanation_plot._curve(axes, why, np.zeros(len(why.times_s), bool))
    assert axes.get_ylabel() == label


def sentence_alone(query: str, level: float):
    """Why a checkpoint's answer with this score was found."""
    model = searchable_model(head="mean_pool")
    why = explained(model, padded_video(), query)
    return replace(why, hit=replace(why.hit, levels={"video_sentence": level}))


def test_picture_has_a_short_bar_left_of_zero_when_the_level_is_negative():
    axes = Figure().subplots()
    explanation_plot._levels(axes, sentence_alone(QUERY, -0.06))
    bars, = axes.child_axes
    bar, = bars.patches
    left, right = bars.get_xlim()
    assert bar.get_width() == pytest.approx(-0.06)
    assert abs(bar.get_width()) < 0.3 * (right - left)


def test_picture_calls_a_whole_query_so_and_times_are_those_of_a_player():
    axes = Figure().subplots(2)
    why = sentence_alone("a red ring slides left, then a blue square grows", 0.3)
    explanation_plot._heat(axes[0], why)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["the query"]
    phrase = PhraseMatch(("red", "ring"), 0.5, 1, 1284.0, 0.4, 0.2)
    explanation_plot._levels(axes[1], replace(why, phrases=(phrase,)))
    assert "clip 2, at 21:24.0" in [text.get_text() for text in axes[1].texts]


def test_picture_shows_a_word_to_its_first_letter_when_it_is_wide(tmp_path):
    """The column left of the label is blank: nothing runs out of the picture."""
    why = explained(searchable_model(), padded_video())
    why = replace(why, words=("W" * explanation_plot.LABEL, *why.words[1:]),
                  hit=replace(why.hit, levels=dict.fromkeys(why.level_weights, 0.5)))
    explanation_plot.draw_explanation(why, tmp_path / "why.png", np.zeros((T - 2, 8, 8, 3), np.uint8))
    with Image.open(tmp_path / "why.png") as picture:
        assert np.asarray(picture.convert("L"))[:, :8].min() == 255


def test_letters_without_a_font_give_one_note_a_picture(tmp_path):
    why = explained(searchable_model(), padded_video())
    why = replace(why, query="红色 圈", hit=replace(why.hit, levels=dict.fromkeys(why.level_weights, 0.5)))
    with pytest.warns(UserWarning, match="letter") as found:
        explanation_plot.draw_explanation(why, tmp_path / "why.png", np.zeros((T - 2, 8, 8, 3), np.uint8))
    assert [str(one.message) for one in found] == [
        "why.png: boxes stand for 3 different letters, because the font of pictures lacks them."]


def test_dollars_in_query_and_name_are_no_mathematics(tmp_path):
    model, video = searchable_model(), padded_video()
    query = "a red circle of $5_$ or a {$x$"
    why = explain_hit(query, Hit(1, "v", "-dash $x_$ .mp4", 0.0, 0.0, 1.0, {}), encode_texts(model, [query]), video,
                      times(1)[0], model)
    figure = Figure()
    explanation_plot._title(figure, why, 0.1, 9.0, 6.0)
    figure.savefig(tmp_path / "why.png")
    words = [text.get_text() for text in figure.texts]
    assert f"“{query}”" in words
