"""Two-stage search against scoring everything, bad queries, and the moments it names."""

import numpy as np
import pytest
import torch
from search_world import T, clips, text_tokens, times, tiny_model, video_tokens

import hcmi
from hcmi.errors import ConfigError, DataError, SearchIndexError
from hcmi.index import add_videos, create_index, model_card, remove_videos
from hcmi.model import encode_texts
from hcmi.search import Retriever, moment, part_similarities
from hcmi.search.explain import best_moment
from hcmi.types import TextTokens, VideoTokens

QUERY = "a red ring slides left"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def world(model, tmp_path):
    """A retriever over 60 made-up videos, and their tokens."""
    tokens = video_tokens(60, np.random.default_rng(0))
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips([f"v{n}" for n in range(60)]), [(tokens, times(60))])
    return Retriever(model, tmp_path / "index"), tokens


def exact_ranking(model, texts: TextTokens, videos: VideoTokens) -> list[str]:
    scores_V = model.combine(model.similarities(texts, videos))[0]
    return [f"v{row}" for row in scores_V.argsort(descending=True).tolist()]


def test_search_ranks_like_scoring_every_video_when_all_are_candidates(model, world):
    retriever, tokens = world
    hits = retriever.search(QUERY, top=60)
    assert [hit.video_id for hit in hits] == exact_ranking(model, encode_texts(model, [QUERY]), tokens)
    assert [hit.rank for hit in hits] == list(range(1, 61))
    assert hits[0].path == f"videos/{hits[0].video_id}.mp4"


def test_score_is_the_weighted_sum_of_the_levels(model, world):
    hit = world[0].search(QUERY, top=1)[0]
    assert set(hit.levels) == {"frame_word", "clip_phrase", "video_sentence"}
    assert hit.score == pytest.approx(sum(model.level_weights[name] * value for name, value in hit.levels.items()))


def test_second_stage_reorders_only_the_candidates_when_they_are_few(model, world):
    retriever, tokens = world
    retriever.candidates = 5
    text = encode_texts(model, [QUERY])
    nearest = {f"v{row}" for row in (tokens.video_BD @ text.sentence_BD[0]).argsort(descending=True)[:5].tolist()}
    assert [hit.video_id for hit in retriever.search(QUERY, top=2)] == [
        name for name in exact_ranking(model, text, tokens) if name in nearest][:2]


def by_text_alone(tokens_ND, weights_N, others_MD, others_M) -> float:
    return sum(float(weight) * max(float(token @ other) for other, valid in zip(others_MD, others_M, strict=True)
                                   if valid > 0) for token, weight in zip(tokens_ND, weights_N, strict=True))


def test_a_part_is_scored_by_the_words_alone_when_worked_by_loops(model, world):
    retriever, videos = world
    text = encode_texts(model, [QUERY])
    hits = retriever.search(QUERY, top=60, part=True)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.video_id for hit in hits] != exact_ranking(model, text, videos)
    for hit in hits[::20]:
        row = int(hit.video_id[1:])
        assert hit.levels == pytest.approx({    # not video-sentence: that tells all that a video shows
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


@pytest.mark.parametrize("head", ["mean_pool", "wti", "xclip"])
def test_search_works_for_other_heads(head, tmp_path):
    model = tiny_model(head=head)
    with torch.inference_mode():
        tokens = model.encode_videos(torch.rand(4, T, 3, 16, 16), torch.ones(4, T, dtype=torch.bool))
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips(["v0", "v1", "v2", "v3"]), [(tokens, times(4))])
    hits = Retriever(model, tmp_path / "index").search(QUERY)
    assert [hit.video_id for hit in hits] == exact_ranking(model, encode_texts(model, [QUERY]), tokens)
    assert set(hits[0].levels) == set(model.level_weights)
    if head == "wti":
        assert set(Retriever(model, tmp_path / "index").search(QUERY, part=True)[0].levels) == {"frame_word"}
    else:
        with pytest.raises(ConfigError, match=f"--part: need a model with head hcmi or wti .*, got {head} with "):
            Retriever(model, tmp_path / "index").search(QUERY, part=True)


def test_a_part_is_refused_when_only_whole_videos_are_compared(model, world, monkeypatch):
    retriever, _ = world
    monkeypatch.setattr(model.config, "level_weights", {"frame_word": 0.0, "clip_phrase": 0.0, "video_sentence": 1.0})
    assert not retriever.tells_parts
    with pytest.raises(ConfigError, match="weight on frame_word or clip_phrase, got hcmi with "):
        retriever.search(QUERY, part=True)


def test_filters_and_removals_are_respected(world):
    retriever, _ = world
    assert {int(hit.video_id[1:]) % 2 for hit in retriever.search(QUERY, tags={"place": "wood"})} == {1}
    assert retriever.search(QUERY, min_seconds=7) == []
    best = retriever.search(QUERY, top=1)[0].video_id
    remove_videos(retriever.index.folder, [best])
    assert best not in [hit.video_id for hit in retriever.search(QUERY, top=60)]


def test_similar_finds_the_near_copy_first_and_never_itself(world):
    retriever, tokens = world
    near = VideoTokens(*(getattr(tokens, name)[7:8] for name in tokens.__dataclass_fields__))
    add_videos(retriever.index.folder, clips(["copy"]), [(near, times(1))])
    hits = retriever.similar("v7", top=3)
    assert hits[0].video_id == "copy"
    assert hits[0].score == pytest.approx(3, abs=5e-3)
    assert "v7" not in [hit.video_id for hit in hits]
    assert [hit.rank for hit in hits] == [1, 2, 3]
    with pytest.raises(DataError, match="need the video_id of an indexed video, got an unknown one"):
        retriever.similar("nobody")


def test_captions_are_ranked_for_a_video(model, world):
    retriever, tokens = world
    texts = ["a red ring grows", "a blue square slides", "green"]
    scores_Q = model.combine(model.similarities(encode_texts(model, texts), tokens[3:4]))[:, 0]
    got = retriever.captions_of("v3", texts, top=2)
    assert [text for text, _ in got] == [texts[at] for at in scores_Q.argsort(descending=True)[:2].tolist()]
    assert len(retriever.captions_of("v3", top=100)) == 60


@pytest.mark.parametrize(("query", "message"), [
    ("", "query: need some words, got none"),
    (" \n\t ", "query: need some words, got none"),
    ("x" * 100_000, "need at most 2000 characters, got 100000"),
    ("\x00\x01PNG\r\n", "need readable text in UTF-8, got control characters"),
    ("caf\udce9", "need readable text in UTF-8"),
    ("红色的圆环向左滑动", "need words of a language the model knows"),
    ("собака прыгает", "need words of a language the model knows"),
    ("xyzzy, please", "query 'xyzzy, please': need a word that a training caption has, got none"),
])
def test_search_refuses_a_query_nobody_could_answer(world, query, message):
    with pytest.raises(ConfigError, match=message) as caught:
        world[0].search(query)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("query", ["a", "RED ring!", "ring " * 300, "a réd rïng", "xyzzy ring"])
def test_search_answers_when_the_query_is_only_odd(world, query):
    assert len(world[0].search(query)) == 10


def test_words_no_training_caption_has_change_nothing_and_are_named(world):
    retriever, _ = world
    odd = "please, " + QUERY.replace("slides", "xyzzy slides")
    assert retriever.search(odd) == retriever.search(QUERY)
    assert retriever.query_notes(odd) == ["left out, since no training caption has them: please, xyzzy."]
    assert retriever.query_notes(QUERY) == []
    best = retriever.search(QUERY)[0]
    assert retriever.explain(odd, best).words == retriever.explain(QUERY, best).words == tuple(QUERY.split())


@pytest.mark.parametrize("query", [
    'a "red ring" slides left', "a red-ring slides,left", "(a red ring) slides left", "a\tred\tring slides left",
    "a\u00a0red ring slides left", "\ufeffa \u201cred ring\u201d slides\u2014left", "a_red_ring sli\u00addes left?!"])
def test_a_query_finds_the_same_when_its_words_are_quoted_or_joined(world, query):
    retriever, _ = world
    assert retriever.search(query) == retriever.search(QUERY)
    assert retriever.query_notes(query) == []
    best = retriever.search(QUERY)[0]
    words = [word.replace("\u00ad", "") for word in retriever.explain(query, best).words]
    assert words == QUERY.split()


def test_a_query_in_the_language_of_the_captions_is_taken_when_it_is_full_of_punctuation(tmp_path):
    model = tiny_model(captions=["красное кольцо", "синее кольцо"] * 3)
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips(["v0"]), [(video_tokens(1, np.random.default_rng(0)), times(1))])
    retriever = Retriever(model, tmp_path / "index")
    assert retriever.search("«красное», — «кольцо» …!!") == retriever.search("красное кольцо")


@pytest.mark.parametrize("query", ["\u200b", "\ufeff \u00ad"])
def test_search_refuses_a_query_of_invisible_characters_alone(world, query):
    with pytest.raises(ConfigError, match="need a word that a training caption has, got none"):
        world[0].search(query)


@pytest.mark.parametrize("top", [0, -1, 1_000_000])
def test_search_refuses_top_out_of_range(world, top):
    with pytest.raises(ConfigError, match=rf"--top: need 1 to 1000, got {top}"):
        world[0].search(QUERY, top=top)


def test_retriever_refuses_an_index_of_another_model(world):
    with pytest.raises(SearchIndexError, match="need an index made by this model"):
        Retriever(tiny_model(seed=1), world[0].index.folder)


def test_empty_index_answers_nothing(model, tmp_path):
    create_index(tmp_path / "index", model_card(model))
    assert Retriever(model, tmp_path / "index").search(QUERY) == []


def test_retriever_is_found_at_the_top_of_the_package():
    assert hcmi.Retriever is Retriever
    with pytest.raises(AttributeError, match="nothing"):
        _ = hcmi.nothing


def test_moment_is_the_run_that_stands_out_when_worked_by_hand():
    times_T = np.array([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    assert best_moment(np.array([0, 0, 1, 1, 0, 0.0]), times_T, 0, 6) == (2.0, 4.0)
    assert best_moment(np.array([1, 0, 0, 0, 0, 0.0]), times_T, 0, 6) == (0.0, 1.0)
    assert best_moment(np.array([0, 0, 0, 0, 0.9, 1.0]), times_T, 0, 6) == (4.0, 6.0)
    assert best_moment(np.array([0, 1, 0.4, 1, 0, 0.0]), times_T, 0, 6) == (1.0, 4.0)
    assert best_moment(np.full(6, 0.3), times_T, 0, 6) == (0, 6)
    assert best_moment(np.array([0.2]), np.array([3.0]), 1, 6) == (1, 6)
    assert best_moment(np.array([3, 3, 5, 5, 3, 3.0]), times_T, 0, 6, whole_above=2) == (0, 6)
    assert best_moment(np.array([1, 1, 5, 5, 1, 1.0]), times_T, 0, 6, whole_above=2) == (2, 4)


def test_moment_leaves_padding_frames_out():
    tokens = video_tokens(1, np.random.default_rng(3))
    text = text_tokens(1, np.random.default_rng(4))
    frame_weights_BT = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0, 0]])
    frames_BTD = tokens.frames_BTD.clone()
    frames_BTD[0, 4:] = text.words_BWD[0, 0]        # padding that matches best
    frames_BTD[0, 2] = text.words_BWD[0].mean(0) / text.words_BWD[0].mean(0).norm()
    cut = VideoTokens(tokens.video_BD, frames_BTD, tokens.clips_BCD, frame_weights_BT, tokens.clip_weights_BC)
    start_s, end_s = moment(text, cut, times(1)[0], 0, 4)
    assert start_s <= 2.5 <= end_s <= 4
