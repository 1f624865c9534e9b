import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from damaged_files import damage_column
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmi.dataset import read_manifest, write_manifest, write_skipped
from hcmi.errors import DataError
from hcmi.files import project_path
from hcmi.types import CLIP_SCHEMA, Clip, Skip

CLIP = Clip("a", "videos/a b.mp4", "train", ("a dog", "ein Hund — 犬"), 0.5, 2.0, 1.5, "f" * 64, {"place": "beach"})
SKIPPED = Skip("a", "a.mp4", "dataset", "missing", "é")


def test_manifest_gives_back_what_was_written_when_read(tmp_path):
    clips = [CLIP, replace(CLIP, video_id="b", split="test", captions=(), tags={})]
    assert write_manifest(clips, tmp_path / "m.parquet") == 2
    assert read_manifest(tmp_path / "m.parquet") == clips


@settings(max_examples=25, deadline=None)
@given(st.lists(st.builds(Clip, st.text("abc_-1", min_size=1), st.text(), st.sampled_from(["train", "val", "test"]),
                          st.lists(st.text()).map(tuple), *[st.floats(0, 1e6)] * 3, st.text(),
                          st.dictionaries(st.text(), st.text())), unique_by=lambda clip: clip.video_id))
def test_manifest_keeps_every_value_when_values_are_odd(tmp_path_factory, clips):
    clips = sorted(clips, key=lambda clip: clip.video_id)
    path = tmp_path_factory.mktemp("manifest") / "m.parquet"
    write_manifest(clips, path)
    assert read_manifest(path) == clips


@pytest.mark.parametrize(("ids", "message"), [(("a", "a"), "got 'a' twice"), (("b", "a"), "got 'a' after 'b'")])
def test_manifest_is_refused_and_not_written_when_ids_are_wrong(tmp_path, ids, message):
    with pytest.raises(DataError, match=f"need every video_id once and in order, {message}"):
        write_manifest([replace(CLIP, video_id=video_id) for video_id in ids], tmp_path / "m.parquet")
    assert list(tmp_path.iterdir()) == []


def test_manifest_bytes_are_equal_when_clips_are_equal(tmp_path):
    for name in ("a", "b"):
        write_manifest([CLIP], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_manifest_is_whole_when_it_is_written_in_several_groups(tmp_path):
    assert write_manifest((replace(CLIP, video_id=f"{i:06d}") for i in range(25_000)), tmp_path / "m.parquet") == 25_000
    assert [clip.video_id for clip in read_manifest(tmp_path / "m.parquet")] == [f"{i:06d}" for i in range(25_000)]


def test_reading_says_what_to_do_when_the_bytes_of_a_column_are_damaged(tmp_path):
    path = tmp_path / "m.parquet"
    write_manifest([replace(CLIP, video_id=f"{i:06d}", sha256=f"{i:064d}") for i in range(1000)], path)
    damage_column(path, CLIP_SCHEMA.names.index("path"))
    with pytest.raises(DataError, match=r"need a manifest in Parquet, got.* Run `hcmi dataset` again"):
        read_manifest(path)


def test_reading_says_what_to_do_when_there_is_no_manifest(tmp_path):
    with pytest.raises(DataError, match=r"need a manifest, found none. Run `hcmi dataset` first"):
        read_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="need a manifest in Parquet, got"):
        read_manifest(tmp_path / "m.parquet")


def test_reading_names_the_column_when_one_is_missing(tmp_path):
    import pyarrow as pa

    columns = {name: pa.array([], CLIP_SCHEMA.field(name).type) for name in CLIP_SCHEMA.names if name != "sha256"}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="got none called sha256"):
        read_manifest(tmp_path / "m.parquet")


def test_skipped_lines_are_json_with_fixed_keys_when_written(tmp_path):
    write_skipped([SKIPPED, SKIPPED], tmp_path / "skipped.jsonl")
    lines = (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == ['{"video_id": "a", "path": "a.mp4", "stage": "dataset", "reason": "missing", "detail": "é"}'] * 2
    assert Skip(**json.loads(lines[0])) == SKIPPED


def test_path_is_relative_when_it_lies_inside_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_path(tmp_path / "data" / "a.mp4") == "data/a.mp4"
    assert project_path("data/../b.mp4") == "b.mp4"
    assert project_path(tmp_path.parent / "c.mp4") == (tmp_path.parent / "c.mp4").as_posix()
