"""Search in Milvus Lite, which runs in this process, compared with search in a folder."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from search_world import D, clips, searchable_model, times, video_tokens
from serve_world import served

pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")

from hcmi.cli import main
from hcmi.errors import SearchIndexError
from hcmi.index import Filter, MilvusIndex, SearchIndex, add_videos, create_index, is_milvus, model_card, push_export
from hcmi.index.milvus import MODEL, VIDEOS, push
from hcmi.search import Retriever

QUERY = "a red ring slides left"


@pytest.fixture(scope="module")
def model():
    return searchable_model()


@pytest.fixture(scope="module")
def world(model, tmp_path_factory):
    """Folder with export/index of 60 videos and the same ones in videos.db."""
    root = tmp_path_factory.mktemp("world")
    create_index(root / "export/index", model_card(model))
    made = clips([f"v{n}" for n in range(60)])
    odd = 'a "quoted" \\ cliff'
    made[7] = type(made[7])(**{**vars(made[7]), "tags": {"pl\"ace": odd}, "end_s": 9.0, "duration_s": 9.0})
    add_videos(root / "export/index", made, [(video_tokens(60, np.random.default_rng(0)), times(60))])
    assert push_export(root / "export", str(root / "videos.db")) == {"uri": str(root / "videos.db"), "videos": 60}
    return root


@pytest.fixture(scope="module")
def pair(model, world):
    return Retriever(model, world / "export/index"), Retriever(model, str(world / "videos.db"))


def test_milvus_gives_the_same_answers_as_the_folder(pair):
    here, there = (retriever.search(QUERY, top=20) for retriever in pair)
    assert [vars(hit).keys() for hit in here] == [vars(hit).keys() for hit in there]
    for a, b in zip(here, there, strict=True):
        assert (a.rank, a.video_id, a.path) == (b.rank, b.video_id, b.path)
        assert a.score == pytest.approx(b.score, abs=1e-6)
        assert a.levels == pytest.approx(b.levels, abs=1e-6)
        assert (a.start_s, a.end_s) == (b.start_s, b.end_s)


def test_milvus_knows_the_tags_like_the_folder(pair):
    asked = ("place", 'pl"ace', "planet")
    for retriever in pair:
        assert [retriever.index.has_tag(name) for name in asked] == [True, True, False]


def test_milvus_filters_like_the_folder_when_tags_need_quoting(pair):
    for where in ({"tags": {"place": "sea"}}, {"tags": {'pl"ace': 'a "quoted" \\ cliff'}}, {"min_seconds": 8},
                  {"max_seconds": 6, "tags": {"place": "wood"}}, {"tags": {"place": "sky"}}):
        here, there = ([hit.video_id for hit in retriever.search(QUERY, top=60, **where)] for retriever in pair)
        assert here == there


def test_milvus_leaves_files_out_by_their_names_as_they_are(model, tmp_path):
    odd = ["a 'quoted\" b.mp4", "caf\udce9.mp4", r"back\xe9.mp4", "ümlaut.mp4"]
    create_index(tmp_path / "index", model_card(model))
    made = [replace(clip, path=path) for clip, path in zip(clips([f"v{n}" for n in range(5)]), [*odd, "plain.mp4"],
                                                           strict=True)]
    add_videos(tmp_path / "index", made, [(video_tokens(5, np.random.default_rng(1)), times(5))])
    push(SearchIndex.open(tmp_path / "index"), str(tmp_path / "odd.db"))
    index, query_D = MilvusIndex(str(tmp_path / "odd.db")), np.ones(D, np.float32)
    assert index.paths(index.candidates(query_D, 9, without=odd)) == ["plain.mp4"]
    assert sorted(index.paths(index.candidates(query_D, 9, without=["plain.mp4"]))) == sorted(odd)
    assert len(index.candidates(query_D, 9, Filter((("place", "sea"),)), without=odd[:2])) == 2


def test_milvus_answers_the_other_calls_like_the_folder(pair):
    here, there = pair
    assert [hit.video_id for hit in here.similar("v3", 5)] == [hit.video_id for hit in there.similar("v3", 5)]
    assert [text for text, _ in here.rank_captions("v3")] == [text for text, _ in there.rank_captions("v3")]
    hit = there.search(QUERY, top=1)[0]
    np.testing.assert_allclose(here.explain(QUERY, hit).frame_word_TW, there.explain(QUERY, hit).frame_word_TW,
                               atol=1e-6)


def test_pushing_again_changes_nothing(world):
    push_export(world / "export", str(world / "videos.db"))
    assert len(MilvusIndex(str(world / "videos.db"))) == 60


def test_int8_tokens_are_unchanged(model, tmp_path):
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips(["a", "b"]), [(video_tokens(2, np.random.default_rng(1)), times(2))], "int8")
    index = SearchIndex.open(tmp_path / "index")
    push(index, str(tmp_path / "small.db"))
    there = MilvusIndex(str(tmp_path / "small.db"))
    got, want = (where.tokens(where.rows_of("video_id", ["b"])) for where in (there, index))
    np.testing.assert_array_equal(got.frames_BTD, want.frames_BTD)


def test_milvus_refuses_another_model(world, tmp_path):
    with pytest.raises(SearchIndexError, match="need an index made by this model"):
        Retriever(searchable_model(seed=1), str(world / "videos.db"))
    create_index(tmp_path / "index", model_card(searchable_model(seed=1)))
    with pytest.raises(SearchIndexError, match="need an index made by this model"):
        push(SearchIndex.open(tmp_path / "index"), str(world / "videos.db"))


def test_an_open_retriever_refuses_a_collection_that_another_model_replaced(model, world, tmp_path):
    uri = str(tmp_path / "videos.db")
    push_export(world / "export", uri)
    retriever = Retriever(model, uri)
    assert len(retriever.search(QUERY)) == 10
    for name in (VIDEOS, MODEL):
        retriever.index.client.drop_collection(name)
    create_index(tmp_path / "index", model_card(searchable_model(seed=1)))
    add_videos(tmp_path / "index", clips(["a", "b"]), [(video_tokens(2, np.random.default_rng(1)), times(2))])
    push(SearchIndex.open(tmp_path / "index"), uri)
    with pytest.raises(SearchIndexError, match="need an index made by this model"):
        retriever.search(QUERY)
    assert len(Retriever(searchable_model(seed=1), uri).search(QUERY)) == 2


def test_threads_get_their_own_answers_from_milvus(pair):
    _, there = pair
    alone = {place: there.search(QUERY, tags={"place": place}) for place in ("sea", "wood")}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: (place, there.search(QUERY, tags={"place": place})), [*alone] * 10))
    assert [answer for place, answer in found if answer != alone[place]] == []


def test_the_page_answers_from_milvus_when_the_model_folder_is_deleted(model, world, tmp_path):
    model.save_pretrained(tmp_path / "model")
    retriever = Retriever(tmp_path / "model", str(world / "videos.db"))
    with served(retriever) as address, httpx.Client(base_url=address, timeout=60) as client:
        before = client.get("/api/search", params={"q": QUERY}).json()["hits"]
        shutil.rmtree(tmp_path / "model")
        assert client.get("/api/search", params={"q": QUERY}).json()["hits"] == before != []
        assert client.get("/api/about").json()["videos"] == 60


def test_milvus_says_what_is_missing(tmp_path):
    with pytest.raises(SearchIndexError, match=r"need a Milvus Lite file, got none. Run `hcmi export --push"):
        MilvusIndex(str(tmp_path / "none.db"))
    with pytest.raises(SearchIndexError, match=r"need a file ending in .db or an http address"):
        push_export(tmp_path, "somewhere")


def test_server_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr("hcmi.index.milvus.TIMEOUT_S", 1.0)
    result = CliRunner().invoke(main, ["export", "--push", "http://127.0.0.1:9", "--out", "nowhere"])
    assert result.exit_code == 1
    assert "nowhere/index: need a search index" in result.stderr
    with pytest.raises(SearchIndexError, match=r"need Milvus to answer, got: .*Start it, or correct") as caught:
        MilvusIndex("http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_milvus_uri_is_recognised():
    assert is_milvus("videos.db")
    assert is_milvus("http://localhost:19530")
    assert not is_milvus("export/index")


def test_search_says_so_in_one_line_when_another_process_has_the_file_open(world, model, tmp_path):
    """As `hcmi serve` does; here this process has it open."""
    MilvusIndex(str(world / "videos.db"))
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "hcmi.cli", "search", QUERY, "--model", "model", "--index",
               str(world / "videos.db")]
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"hcmi: {world}/videos.db: need a Milvus Lite file that no other process has open")
