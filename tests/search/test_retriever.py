"""Two-stage search compared with scoring every video."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_world import mask_of, shake
from search_world import T, clips, files_of_windows, same_tokens, searchable_model, times, unit, video_tokens

import hcmi
import hcmi.search.retriever
from hcmi.errors import DataError, SearchIndexError
from hcmi.index import Filter, SearchIndex, add_videos, create_index, model_card, remove_videos
from hcmi.index.milvus import push
from hcmi.model import encode_texts
from hcmi.search import Retriever
from hcmi.types import TextTokens, VideoTokens

QUERY = "a red ring slides left"


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


@pytest.mark.parametrize("head", ["mean_pool", "seq_transf", "wti", "xclip"])
def test_search_scores_as_the_head_does_when_it_is_a_peer_and_clips_are_padded(head, tmp_path):
    model = shake(searchable_model(head=head))
    with torch.inference_mode():
        tokens = model.encode_videos(torch.rand(4, T, 3, 16, 16), mask_of([T, 1, 3, T - 1], T))
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips(["v0", "v1", "v2", "v3"]), [(tokens, times(4))])
    hits = Retriever(model, tmp_path / "index").search(QUERY)
    text = encode_texts(model, [QUERY])
    with torch.inference_mode():
        assert [hit.video_id for hit in hits] == exact_ranking(model, text, tokens)
        levels = model.similarities(text, tokens)
    for hit in hits:        # the index stores tokens as float16
        row = int(hit.video_id[1:])
        assert hit.levels == pytest.approx({name: float(sims[0, row]) for name, sims in levels.items()}, abs=5e-3)


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


def test_similar_leaves_the_video_itself_out_in_every_folder(world, tmp_path, monkeypatch):
    retriever, _ = world
    retriever.project = tmp_path / "project"
    monkeypatch.chdir(tmp_path)
    assert "v7" not in [hit.video_id for hit in retriever.similar("v7", top=60)]


def test_windows_of_one_film_hide_no_other_file(model, tmp_path):
    """200 windows of a film are nearer to the query than five short files, of which one is exact."""
    text = encode_texts(model, [QUERY])
    tokens, generator = video_tokens(205, np.random.default_rng(3)), torch.Generator().manual_seed(0)
    query_D = torch.nn.functional.normalize(text.sentence_BD[0], dim=0)
    near = query_D + 0.02 * torch.randn(200, len(query_D), generator=generator)
    tokens.video_BD[:200] = torch.nn.functional.normalize(near, dim=1)
    of_film = [replace(clip, path="film.mp4", sha256="f" * 64, start_s=float(row), end_s=row + 1.0)
               for row, clip in enumerate(clips([f"w{row}" for row in range(200)]))]
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", [*of_film, *clips([f"v{row}" for row in range(5)])], [(tokens, times(205))])
    retriever = Retriever(model, tmp_path / "index", candidates=50)
    found = {hit.path for hit in retriever.search(QUERY, top=10)}
    assert found == {"film.mp4", *(f"videos/v{row}.mp4" for row in range(5))}
    best = torch.argmax(model.combine(model.similarities(text, tokens))[0, 200:]).item()
    assert f"videos/v{best}.mp4" in {hit.path for hit in retriever.search(QUERY, top=2)}
    assert len({hit.path for hit in retriever.similar("w3", top=5)}) == 5


SIZES = (70, 3, 60, 1, 45, 12, 2, 30)       # windows of each file; 25 times the candidates are 50 here


@pytest.fixture
def films(model, tmp_path, monkeypatch):
    """A function: where an index of files of SIZES windows is opened from -> a retriever with few candidates."""
    monkeypatch.setattr(hcmi.search.retriever, "MOST", 50)
    made, tokens, near_D = files_of_windows(SIZES, np.random.default_rng(4))
    create_index(tmp_path / "films", model_card(model))
    add_videos(tmp_path / "films", made, [(tokens, times(len(made)))])

    def opened(backend: str) -> tuple[Retriever, np.ndarray]:
        if backend == "milvus":
            pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
            push(SearchIndex.open(tmp_path / "films"), str(tmp_path / "videos.db"))
        place = tmp_path / {"folder": "films", "milvus": "videos.db"}[backend]
        return Retriever(model, place, candidates=12), near_D

    return opened


def text_of(vectors_QD: torch.Tensor) -> TextTokens:
    """Texts whose words and phrases all have the vector of the sentence."""
    videos = same_tokens(vectors_QD)
    return TextTokens(videos.video_BD, videos.frames_BTD, videos.clips_BCD, videos.frame_weights_BT,
                      videos.clip_weights_BC)


def best_files(retriever: Retriever, text: TextTokens, where: Filter, without: str = "") -> list[tuple[str, float]]:
    """Slow oracle: the best score of each file among all windows of the index, best first."""
    rows, best = retriever.index.some_rows(1000), {}
    assert len(rows) == sum(SIZES)
    with torch.inference_mode():
        scores_V = retriever.model.combine(retriever.model.similarities(text, retriever.index.tokens(rows)))[0]
    for clip, score in zip(retriever.index.clips(rows), scores_V.tolist(), strict=True):
        if clip.path != without and all(clip.tags[name] == value for name, value in where.tags):
            best[clip.path] = max(best.get(clip.path, -9.0), score)
    return sorted(best.items(), key=lambda found: -found[1])


@pytest.mark.parametrize("backend", ["folder", "milvus"])
@pytest.mark.parametrize("where", [Filter(), Filter((("place", "sea"),))])
def test_files_are_those_of_scoring_every_window_when_few_films_fill_the_first_stage(films, backend, where):
    retriever, near_D = films(backend)
    generator = np.random.default_rng(5)
    for vector_D in (near_D, near_D + 0.2 * generator.normal(size=len(near_D)), generator.normal(size=len(near_D))):
        text = text_of(unit(vector_D[None]))
        needed = best_files(retriever, text, where)
        for top in (1, 2, 5, 8, 20):
            hits = retriever.rank(text, top, where)
            assert [hit.path for hit in hits] == [path for path, _ in needed[:top]]
            assert [hit.score for hit in hits] == pytest.approx([score for _, score in needed[:top]], abs=1e-5)


@pytest.mark.parametrize("backend", ["folder", "milvus"])
def test_similar_files_are_those_of_scoring_every_window_when_the_own_film_fills_the_first_stage(films, backend):
    retriever, _ = films(backend)
    for name in ("f0-33", "f2-7", "f3-0"):
        tokens, clip = retriever.video(name)
        needed = best_files(retriever, text_of(tokens.video_BD), Filter(), without=clip.path)
        for top in (1, 3, 7, 20):
            assert [hit.path for hit in retriever.similar(name, top)] == [path for path, _ in needed[:top]]
    sea = retriever.similar("f0-33", 20, tags={"place": "sea"})
    assert {hit.path for hit in sea} == {path for path, _ in best_files(
        retriever, text_of(tokens.video_BD), Filter((("place", "sea"),)), without="f0.mp4")}


def test_first_stage_is_asked_no_more_often_when_it_has_enough_files(world, films, monkeypatch):
    asked = []
    candidates = SearchIndex.candidates
    monkeypatch.setattr(SearchIndex, "candidates", lambda *args, **named: asked.append(args[2]) or candidates(
        *args, **named))
    world[0].candidates = 20
    world[0].search(QUERY, top=10)
    world[0].similar("v3", top=10)
    assert asked == [20, 20]
    retriever, near_D = films("folder")
    asked.clear()
    retriever.rank(text_of(unit(near_D[None])), 1, Filter())
    assert asked == [12]
    # 12 and then 50 of f0; without f0, 3 of f1 and 47 of f2; without these three, f3 as the fourth file
    retriever.rank(text_of(unit(near_D[None])), 4, Filter())
    assert asked == [12, 12, 50, 50, 50]


def test_captions_are_ranked_for_a_video(model, world):
    retriever, tokens = world
    texts = ["a red ring grows", "a blue square slides", "green"]
    scores_Q = model.combine(model.similarities(encode_texts(model, texts), tokens[3:4]))[:, 0]
    got = retriever.rank_captions("v3", texts, top=2)
    assert [text for text, _ in got] == [texts[at] for at in scores_Q.argsort(descending=True)[:2].tolist()]
    assert len(retriever.rank_captions("v3", top=100)) == 60
    with pytest.raises(DataError, match="need a list of captions, got the text 'a red ring'"):
        retriever.rank_captions("v3", "a red ring")


def test_words_no_training_caption_has_change_nothing_and_are_named(world):
    retriever, _ = world
    odd = "please, " + QUERY.replace("slides", "xyzzy slides")
    assert retriever.search(odd) == retriever.search(QUERY)
    assert retriever.query_notes(odd) == ["left out, since no training caption has them: please, xyzzy."]
    assert retriever.query_notes(QUERY) == []
    best = retriever.search(QUERY)[0]
    assert retriever.explain(odd, best).words == retriever.explain(QUERY, best).words == tuple(QUERY.split())


def test_end_of_a_query_is_named_when_the_model_does_not_read_it(world):
    """It reads 16 tokens: start, end and 14 words."""
    retriever, _ = world
    (note,) = retriever.query_notes(" ".join(["ring"] * 13 + ["red", "slides", "left"]))
    assert note == "left out, since the model reads 16 tokens: slides left."
    assert retriever.query_notes("ring " * 14) == []
    assert retriever.query_notes("ring " * 99)[0].endswith("ring ring…")


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


def test_retriever_refuses_an_index_of_another_model(world):
    with pytest.raises(SearchIndexError, match="need an index made by this model"):
        Retriever(searchable_model(seed=1), world[0].index.folder)


def test_empty_index_answers_nothing(model, tmp_path):
    create_index(tmp_path / "index", model_card(model))
    assert Retriever(model, tmp_path / "index").search(QUERY) == []


def test_retriever_is_found_at_the_top_of_the_package():
    assert hcmi.Retriever is Retriever
    with pytest.raises(AttributeError, match="nothing"):
        _ = hcmi.nothing




def test_explanation_adds_up_to_the_score(world):
    retriever, _ = world
    hit = retriever.search(QUERY)[0]
    why = retriever.explain(QUERY, hit)
    shares = why.word_shares_W.sum() + why.marks_share + sum(match.share for match in why.phrases)
    whole = why.level_weights["video_sentence"] * hit.levels["video_sentence"]
    assert shares + whole == pytest.approx(hit.score, abs=1e-4)
