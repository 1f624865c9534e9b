"""The nearest rows of a segment, with filters and with HNSW."""

from dataclasses import replace

import numpy as np
from index_world import fill, found_ids, names
from search_world import D, clips, files_of_windows, times, video_tokens

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


def test_files_that_are_left_out_hide_no_others_when_they_are_nearest_and_the_segment_is_large(folder, monkeypatch):
    """HNSW visits the vectors near the query, and would meet those of the film alone."""
    monkeypatch.setattr(hcmi.index.segment, "HNSW_ROWS", 1000)
    made, tokens, near_D = files_of_windows((200, 20_000), np.random.default_rng(0))
    others = clips(names(20_000))
    made = [*made[:200], *(replace(clip, path=other.path) for clip, other in zip(made[200:], others, strict=True))]
    add_videos(folder, made, [(tokens, times(len(made)))])
    index = SearchIndex.open(folder)
    assert index.catalog["segments"][0]["kind"] == "hnsw"
    cosines = index.segments[0].store.vectors(slice(None)) @ near_D
    for without in (["f0.mp4"], ["f0.mp4", *(f"videos/v{number:04d}.mp4" for number in range(9000))]):
        gone = [clip.path in set(without) for clip in made]
        exact = np.argsort(-np.where(gone, -9, cosines))
        for count in (10, 100, 3000):
            found = index.candidates(near_D, count, without=without)
            assert not np.array(gone)[found].any()
            assert len(found) == count
            assert len(set(found) & set(exact[:count])) >= 0.97 * count


def test_files_are_left_out_by_their_names_as_they_are_in_every_segment(folder):
    odd = ["a 'quoted\" b.mp4", "caf\udce9.mp4", r"back\xe9.mp4", "ümlaut.mp4"]
    for at, path in enumerate([*odd, "plain.mp4"]):
        fill(folder, [f"v{at}"], seed=at, path=path)
    fill(folder, ["v9"], seed=9, path="plain.mp4")
    index = SearchIndex.open(folder)
    query_D = np.ones(D, np.float32)
    assert sorted(index.paths(index.candidates(query_D, 9, without=odd))) == ["plain.mp4", "plain.mp4"]
    assert sorted(index.paths(index.candidates(query_D, 9, without=["plain.mp4"]))) == sorted(odd)
    assert len(index.candidates(query_D, 9, without=["another.mp4"])) == 6
    assert len(index.candidates(query_D, 9, Filter((("place", "sea"),)), without=odd)) == 2


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
