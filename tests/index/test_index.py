"""The index against exhaustive search, while it is changed, broken and killed."""

import json
import os
import threading

import numpy as np
import pytest
from search_world import C, D, T, changes_until_killed, clips, times, video_tokens

import hcmi.index.search_index
import hcmi.index.writer
from hcmi.errors import SearchIndexError
from hcmi.index import Filter, SearchIndex, TokenStore, add_videos, create_index, remove_videos, round_trip
from hcmi.index.writer import merge_small

MODEL = {"fingerprint": "f" * 64, "levels": ["video_sentence"]}


def fill(folder, names, seed=0, precision="float16", **changes):
    tokens = video_tokens(len(names), np.random.default_rng(seed))
    add_videos(folder, clips(names, **changes), [(tokens, times(len(names)))], precision)
    return tokens


def names(count, prefix="v"):
    return [f"{prefix}{number:04d}" for number in range(count)]


def found_ids(index, query_D, count, where=None):
    return [clip.video_id for clip in index.clips(index.candidates(query_D, count, where))]


@pytest.fixture
def folder(tmp_path):
    create_index(tmp_path / "index", MODEL)
    return tmp_path / "index"


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


def test_hnsw_agrees_with_the_flat_scan_when_the_segment_is_large(folder, monkeypatch):
    monkeypatch.setattr(hcmi.index.search_index, "HNSW_ROWS", 1000)
    vectors = fill(folder, names(3000)).video_BD.numpy()
    index = SearchIndex.open(folder)
    assert index.catalog["segments"][0]["kind"] == "hnsw"
    hits = 0
    for query_D in np.random.default_rng(9).normal(size=(20, D)).astype(np.float32):
        exact = {f"v{row:04d}" for row in np.argsort(-(vectors @ query_D))[:10]}
        hits += len(exact & set(found_ids(index, query_D, 100)))
    assert hits >= 198


def test_removed_videos_are_gone_and_adding_again_changes_nothing(folder):
    tokens = fill(folder, names(20))
    query_D = tokens.video_BD[3].numpy()
    assert found_ids(SearchIndex.open(folder), query_D, 1) == ["v0003"]
    assert remove_videos(folder, ["v0003", "v0004", "unknown"]) == 2
    index = SearchIndex.open(folder)
    assert len(index) == 18
    assert "v0003" not in found_ids(index, query_D, 20)
    fill(folder, names(20))
    fill(folder, names(20))
    index = SearchIndex.open(folder)
    assert len(index) == 20
    assert sorted(found_ids(index, query_D, 50)) == names(20)


def test_renamed_file_replaces_its_old_row_when_the_bytes_are_equal(folder):
    fill(folder, names(4))
    tokens = video_tokens(1, np.random.default_rng(5))
    moved = clips(["v0002"], video_id="new_name", path="elsewhere/new_name.mp4")
    assert add_videos(folder, moved, [(tokens, times(1))]) == {"added": 1, "replaced": 1}
    index = SearchIndex.open(folder)
    assert sorted(found_ids(index, tokens.video_BD[0].numpy(), 9)) == ["new_name", "v0000", "v0001", "v0003"]


def test_filter_keeps_only_equal_tags_and_lengths(folder):
    tokens = fill(folder, names(10))
    query_D = tokens.video_BD[0].numpy()
    index = SearchIndex.open(folder)
    sea = found_ids(index, query_D, 10, Filter((("place", "sea"),)))
    assert sorted(sea) == names(10)[::2]
    assert found_ids(index, query_D, 10, Filter((("place", "sky"),))) == []
    assert found_ids(index, query_D, 10, Filter((("colour", "red"),))) == []
    assert len(found_ids(index, query_D, 10, Filter(min_seconds=6, max_seconds=6))) == 10
    assert found_ids(index, query_D, 10, Filter(min_seconds=6.1)) == []


def test_rare_filter_is_scanned_exactly_when_hnsw_would_miss(folder, monkeypatch):
    monkeypatch.setattr(hcmi.index.search_index, "HNSW_ROWS", 500)
    made = clips(names(1000))
    rare = {f"v{number:04d}" for number in (1, 500, 998)}
    made = [type(clip)(**{**vars(clip), "tags": {"rare": str(clip.video_id in rare)}}) for clip in made]
    tokens = video_tokens(1000, np.random.default_rng(0))
    add_videos(folder, made, [(tokens, times(1000))])
    index = SearchIndex.open(folder)
    assert set(found_ids(index, tokens.video_BD[7].numpy(), 10, Filter((("rare", "True"),)))) == rare


def test_small_segments_are_merged_when_there_are_many(folder):
    for number in range(hcmi.index.writer.MAX_SEGMENTS + 3):
        fill(folder, [f"v{number}"], seed=number)
    index = SearchIndex.open(folder)
    assert len(index.segments) <= hcmi.index.writer.MAX_SEGMENTS
    assert len(index) == hcmi.index.writer.MAX_SEGMENTS + 3
    query_D = video_tokens(1, np.random.default_rng(2)).video_BD[0].numpy()
    assert found_ids(index, query_D, 1) == ["v2"]


def test_merging_changes_no_answer_when_rows_were_removed(folder):
    for seed, prefix in enumerate("abc"):
        fill(folder, names(30, prefix), seed)
    remove_videos(folder, ["a0003", "b0007"])
    query_D = np.random.default_rng(1).normal(size=D).astype(np.float32)
    before = found_ids(SearchIndex.open(folder), query_D, 40)
    merge_small(folder)
    index = SearchIndex.open(folder)
    assert len(index.segments) == 1
    assert index.segments[0].rows == 88
    assert found_ids(index, query_D, 40) == before


def test_int8_keeps_the_ranking_when_vectors_are_of_length_one(folder):
    tokens = video_tokens(50, np.random.default_rng(0), dim=128)
    add_videos(folder, clips(names(50)), [(tokens, times(50))], "int8")
    stored = TokenStore(folder / "segments/000001/embeddings")
    assert stored.precision == "int8"
    np.testing.assert_allclose(np.linalg.norm(stored.vectors(slice(None)), axis=1), 1, atol=1e-6)
    cosine = (stored.vectors(slice(None)) * tokens.video_BD.numpy()).sum(1)
    assert cosine.min() > 0.9999
    np.testing.assert_array_equal(stored.tokens(slice(None)).frames_BTD, round_trip(tokens, "int8").frames_BTD)


def test_reader_keeps_its_generation_until_it_asks_for_the_latest(folder):
    fill(folder, names(3))
    old = SearchIndex.open(folder)
    fill(folder, names(3, "w"), seed=1)
    assert len(old) == 3
    new = old.latest()
    assert len(new) == 6
    assert new.segments[0] is old.segments[0]
    assert new.latest() is new


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


SETUP = """
from test_index import SearchIndex, fill, remove_videos
folder = {folder!r}

def last(folder):
    index = SearchIndex.open(folder)
    return index.clips(index.live_rows()[-1:])[0].video_id

fill(folder, ["first"])
"""


@pytest.mark.parametrize(("change", "step", "rows"), [
    ('fill(folder, [f"k{number}_{at}"], seed=at)', 1, 20), ("remove_videos(folder, [last(folder)])", -1, 3000)],
    ids=["add", "remove"])
def test_index_is_old_or_new_when_the_writer_is_killed(folder, change, step, rows):
    """Each of many additions or removals is done or not begun, whenever the writer is killed."""
    tokens = fill(folder, names(rows))
    kept = rows + 1
    generator = np.random.default_rng(0)
    kills = zip(generator.integers(1, 5, 12).tolist(), generator.uniform(0, 1, 12).tolist(), strict=True)
    for done in changes_until_killed(SETUP.format(folder=str(folder)), change, kills):
        kept += done * step
        index = SearchIndex.open(folder)
        assert len(index) in (kept, kept + step)        # the second: killed between the change and its report
        kept = len(index)
        assert found_ids(index, tokens.video_BD[5].numpy(), 1) == ["v0005"]
        assert len(index.tokens(index.live_rows())) == len(index)
    fill(folder, ["after"], seed=99)
    query_D = video_tokens(1, np.random.default_rng(99)).video_BD[0].numpy()
    assert found_ids(SearchIndex.open(folder), query_D, 1) == ["after"]


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


@pytest.mark.parametrize("content", ["", '{"format": 1', "[]", "\0\0", '{"format": 1}'])
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
