"""The nearest rows of a segment, with filters and with HNSW."""

import numpy as np
from index_world import fill, found_ids, names
from search_world import D, clips, times, video_tokens

import hcmi.index.segment
from hcmi.index import Filter, SearchIndex, add_videos


def test_hnsw_agrees_with_the_flat_scan_when_the_segment_is_large(folder, monkeypatch):
    monkeypatch.setattr(hcmi.index.segment, "HNSW_ROWS", 1000)
    vectors = fill(folder, names(3000)).video_BD.numpy()
    index = SearchIndex.open(folder)
    assert index.catalog["segments"][0]["kind"] == "hnsw"
    hits = 0
    for query_D in np.random.default_rng(9).normal(size=(20, D)).astype(np.float32):
        exact = {f"v{row:04d}" for row in np.argsort(-(vectors @ query_D))[:10]}
        hits += len(exact & set(found_ids(index, query_D, 100)))
    assert hits >= 198


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
    monkeypatch.setattr(hcmi.index.segment, "HNSW_ROWS", 500)
    made = clips(names(1000))
    rare = {f"v{number:04d}" for number in (1, 500, 998)}
    made = [type(clip)(**{**vars(clip), "tags": {"rare": str(clip.video_id in rare)}}) for clip in made]
    tokens = video_tokens(1000, np.random.default_rng(0))
    add_videos(folder, made, [(tokens, times(1000))])
    index = SearchIndex.open(folder)
    assert set(found_ids(index, tokens.video_BD[7].numpy(), 10, Filter((("rare", "True"),)))) == rare
