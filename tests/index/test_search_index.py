"""The index compared with exhaustive search, while it is changed and when it is broken."""

import json
import os
import threading

import numpy as np
import pytest
from index_world import fill, found_ids, names
from search_world import C, D, T, times

from hcmi.errors import SearchIndexError
from hcmi.index import SearchIndex, remove_videos


def test_candidates_equal_exhaustive_search_when_spread_over_segments(folder):
    parts = [fill(folder, names(40, prefix), seed) for seed, prefix in enumerate("abc")]
    vectors = np.concatenate([part.video_BD.numpy() for part in parts])
    ids = names(40, "a") + names(40, "b") + names(40, "c")
    index = SearchIndex.open(folder)
    assert len(index) == 120
    for query_D in np.random.default_rng(9).normal(size=(5, D)).astype(np.float32):
        expected = [ids[row] for row in np.argsort(-(vectors @ query_D))[:10]]
        assert found_ids(index, query_D, 10) == expected


def test_tokens_come_back_in_the_order_asked_when_rows_are_mixed_across_segments(folder):
    parts = [fill(folder, names(5, prefix), seed) for seed, prefix in enumerate("ab")]
    index = SearchIndex.open(folder)
    got = index.tokens(np.array([7, 1, 9, 0]))
    want = [parts[1], parts[0], parts[1], parts[0]]
    for at, (part, row) in enumerate(zip(want, (2, 1, 4, 0), strict=True)):
        np.testing.assert_allclose(got.frames_BTD[at], part.frames_BTD[row], atol=2e-3)
    assert got.frames_BTD.shape == (4, T, D)
    assert got.clips_BCD.shape == (4, C, D)
    assert [clip.video_id for clip in index.clips(np.array([7, 1, 9, 0]))] == [
        "b0002", "a0001", "b0004", "a0000"]
    np.testing.assert_array_equal(index.times(np.array([7, 1])), times(2))


def test_reader_keeps_its_generation_until_it_asks_for_the_latest(folder):
    fill(folder, names(3))
    old = SearchIndex.open(folder)
    fill(folder, names(3, "w"), seed=1)
    assert len(old) == 3
    new = old.latest()
    assert len(new) == 6
    assert new.segments[0] is old.segments[0]
    assert new.latest() is new


def test_files_are_counted_once_when_rows_are_parts_of_them(folder):
    assert SearchIndex.open(folder).num_files() == 0
    fill(folder, names(5))
    fill(folder, names(4, "w"), seed=1, path="videos/film.mp4")
    index = SearchIndex.open(folder)
    assert (len(index), index.num_files()) == (9, 6)
    remove_videos(folder, ["v0001", "w0002"])
    assert (len(index.latest()), index.latest().num_files()) == (7, 5)


def test_search_goes_on_when_a_writer_adds_and_merges(folder):
    tokens = fill(folder, names(50))
    query_D = tokens.video_BD[0].numpy()
    problems, stop = [], threading.Event()

    def search():
        index = SearchIndex.open(folder)
        while not stop.is_set():
            index = index.latest()
            if found_ids(index, query_D, 1) != ["v0000"]:
                problems.append(index.generation)

    reader = threading.Thread(target=search)
    reader.start()
    for number in range(25):
        fill(folder, [f"w{number}"], seed=number + 1)
    stop.set()
    reader.join()
    assert problems == []
    assert len(SearchIndex.open(folder)) == 75


def test_open_refuses_when_there_is_no_index(tmp_path):
    with pytest.raises(SearchIndexError, match=r"need a search index, got no index.json there. Run `hcmi export`"):
        SearchIndex.open(tmp_path / "nothing")


@pytest.mark.parametrize("victim", ["embeddings/frames.npy", "videos.parquet", "vectors.faiss"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_open_refuses_when_a_file_is_half_copied(folder, victim, damage):
    fill(folder, names(20))
    path = folder / "segments/000001" / victim
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SearchIndexError, match=rf"{victim}: need \d+ bytes as index.json says, got (no file|\d+ byt)"):
        SearchIndex.open(folder)


@pytest.mark.parametrize("content", ["", '{"format": 1', "[]", "\0\0", '{"format": 1}',
                                     '{"format": 1, "generation": 1, "model": {"fingerprint": "a"}, "segments": [{}]}'])
def test_open_refuses_when_index_json_is_broken(folder, content):
    (folder / "index.json").write_text(content)
    with pytest.raises(SearchIndexError, match=r"index.json: need a complete index.json, got a broken one"):
        SearchIndex.open(folder)


def test_open_refuses_another_format(folder):
    catalog = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**catalog, "format": 99}))
    with pytest.raises(SearchIndexError, match="need index format 1, got 99"):
        SearchIndex.open(folder)


def test_index_of_another_model_is_refused(folder):
    index = SearchIndex.open(folder)
    index.check_model("f" * 64)
    with pytest.raises(SearchIndexError, match=r"made by this model \(aaaaaaaaaaaa\), got one by ffffffffffff"):
        index.check_model("a" * 64)
