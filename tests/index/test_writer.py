"""Videos added, replaced, removed and merged, by writers that may be killed."""

import numpy as np
import pytest
from index_world import fill, found_ids, names
from search_world import D, changes_until_killed, clips, times, video_tokens

import hcmi.index.writer
from hcmi.index import SearchIndex, add_videos, remove_videos
from hcmi.index.writer import merge_small


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


SETUP = """
from index_world import fill
from hcmi.index import SearchIndex, remove_videos
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


def test_added_videos_are_found_after_a_merge_when_the_index_has_int8(folder):
    """Vectors of float16 that are cast to int8 would become zeros."""
    tokens = fill(folder, names(3), precision="int8")
    assert SearchIndex.open(folder).segments[0].store.precision == "int8"
    other = fill(folder, ["other"], seed=7)
    assert [segment.store.precision for segment in SearchIndex.open(folder).segments] == ["int8", "int8"]
    third = fill(folder, ["third"], seed=8, precision="float16")
    merge_small(folder)
    for name, query_D in (("v0001", tokens.video_BD[1]), ("other", other.video_BD[0]), ("third", third.video_BD[0])):
        index = SearchIndex.open(folder)
        assert found_ids(index, query_D.numpy(), 1) == [name]
        assert index.tokens(index.rows_of("video_id", [name])).frames_BTD.norm(dim=-1).min() > 0.99
