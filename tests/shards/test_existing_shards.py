"""What the stage takes from shards that an earlier run wrote, and what it says when they are damaged."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from damaged_files import damage_column
from stage_world import contents, make_clip, stage

from hcmi.errors import DataError
from hcmi.shards.shard_index import INDEX


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [make_clip(folder, number) for number in range(12)]


def test_shards_are_made_again_when_they_were_damaged(tmp_path, clips):
    stage(tmp_path, clips[:12])
    whole = contents(tmp_path / "shards")
    victim = next((tmp_path / "shards").glob("*.tar"))
    victim.write_bytes(victim.read_bytes()[:-512])
    summary = stage(tmp_path, clips[:12])
    assert 0 < summary["decoded"] < 12
    assert contents(tmp_path / "shards") == whole
    (tmp_path / "shards/index.parquet").write_bytes(b"junk")
    assert stage(tmp_path, clips[:12])["decoded"] == 12
    assert contents(tmp_path / "shards") == whole


def test_refuses_in_one_line_when_the_json_of_a_shard_of_the_right_length_is_damaged(tmp_path, clips):
    stage(tmp_path, clips[:3])
    row = pq.read_table(tmp_path / "shards/index.parquet").to_pylist()[0]
    shard = tmp_path / "shards" / row["shard"]
    content = shard.read_bytes()
    shard.write_bytes(content[:row["json_offset"]] + bytes(row["json_size"])
                      + content[row["json_offset"] + row["json_size"]:])
    before = contents(tmp_path / "shards")
    with pytest.raises(DataError, match=f"need the JSON of clip {row['video_id']} as it was written, got damaged"):
        stage(tmp_path, [replace(clip, captions=("new",)) for clip in clips[:3]])
    assert contents(tmp_path / "shards") == before


def test_refuses_in_one_line_when_the_places_of_the_frames_are_damaged(tmp_path, clips):
    stage(tmp_path, clips[:12])
    index = tmp_path / "shards/index.parquet"
    damage_column(index, INDEX.get_field_index("frame_offsets"))
    with pytest.raises(DataError, match=r"need the index as it was written, got.* Remove the folder and run"):
        stage(tmp_path, clips[:12])
