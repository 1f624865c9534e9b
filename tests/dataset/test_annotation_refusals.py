"""Annotation files that are missing, short, broken or random: each is refused in one line that names it."""

import json
import os
import shutil

import pytest
from dataset_world import published
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmi.dataset import SOURCES, annotations, read_annotations
from hcmi.dataset.annotations import Source, protocol_of
from hcmi.errors import ConfigError, DataError, HcmiError


def test_reading_is_refused_when_a_file_is_missing_or_short(annotations_dir, tmp_path):
    with pytest.raises(DataError, match=r"captions_msvd.json: need this annotation file, found none. See docs"):
        list(read_annotations(published("msvd", tmp_path)))
    shutil.copytree(annotations_dir / "msvd", tmp_path / "msvd")
    lines = (tmp_path / "msvd" / "test_list.txt").read_text().splitlines()
    (tmp_path / "msvd" / "test_list.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match=r"need 670 test videos for msvd multi, got 669. Download the annotation again"):
        list(read_annotations(published("msvd", tmp_path / "msvd")))


def test_reading_is_refused_when_an_annotation_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "captions_msvd.json")
    with pytest.raises(DataError, match=r"captions_msvd.json: need a regular file, got something else. See docs"):
        list(read_annotations(published("msvd", tmp_path)))


def test_reading_is_refused_when_the_protocol_is_unknown():
    with pytest.raises(ConfigError, match=r"dataset.protocol: need one of default, 9k, 7k, full for msrvtt, got '1kA'"):
        protocol_of(published("msrvtt", "x", "1kA"))
    assert protocol_of(published("activitynet", "x")) == "paragraph"


def test_reading_is_refused_when_a_row_names_another_split(monkeypatch):
    rows = [annotations.CaptionRow("a", "a cat", split="tset", where="list.json entry 0")]
    monkeypatch.setitem(SOURCES, "msvd", Source(lambda folder, protocol: iter(rows), {"multi": {}}))
    with pytest.raises(DataError, match=r"^list.json entry 0: need one of the splits train, val, test, got 'tset'\. d"):
        list(read_annotations(published("msvd", "x")))


BROKEN = {
    "not json": ("captions_msvd.json", "{", r"captions_msvd.json: need JSON, got"),
    "a list": ("captions_msvd.json", "[1]", r"captions_msvd.json: need dict, got \[1\]. docs/datasets.md shows"),
    "no captions": ("captions_msvd.json", "{}", r"captions_msvd.json, a: need list, got null"),
    "numbers": ("captions_msvd.json", '{"a": [3]}', r"captions_msvd.json, a: need str, got 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_reading_says_what_is_wrong_when_a_file_is_broken(tmp_path, case):
    name, content, message = BROKEN[case]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}_list.txt").write_text("a\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_annotations(published("msvd", tmp_path)))


JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text("ab", max_size=2),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["video", "videos", "video_id", "sentences", "timestamps", "times", "description", "caption",
                         "enCap", "videoID", "split", "desc", "a"]), inner, max_size=4), max_leaves=12)
FILES = {"msrvtt": ("MSRVTT_data.json", "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv"),
         "msvd": ("captions_msvd.json", "train_list.txt", "val_list.txt", "test_list.txt"),
         "lsmdc": ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv"),
         "didemo": tuple(f"{split}_{end}" for split in ("train", "val", "test") for end in ("data.json", "list.txt")),
         "activitynet": ("train.json", "val_1.json"),
         "vatex": ("vatex_training_v1.0.json", "vatex_validation_v1.0.json", "val_list.txt", "test_list.txt"),
         "tvr": ("tvr_train_release.jsonl", "tvr_val_release.jsonl"),
         "charades_sta": ("charades_sta_train.txt", "charades_sta_test.txt"),
         "qvhighlights": ("highlight_train_release.jsonl", "highlight_val_release.jsonl")}


def test_every_published_data_set_is_read_from_random_files():
    assert set(FILES) == set(SOURCES)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_readers_refuse_in_one_line_when_files_are_random(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("fuzz")
    for file in FILES[name]:
        if file.endswith((".json", ".jsonl")):
            content = data.draw(st.one_of(JSON.map(json.dumps).map(str.encode), st.binary(max_size=40)))
        else:
            content = data.draw(st.one_of(st.text("a\t,\n\"\r", max_size=40).map(str.encode), st.binary(max_size=40),
                                          st.just(b"video_id,sentence\na,b\n")))
        (folder / file).write_bytes(content)
    refusal = ""
    try:
        list(read_annotations(published(name, folder)))
    except HcmiError as error:
        refusal = str(error)
    assert str(folder) in refusal
    assert "need" in refusal
    assert "\n" not in refusal
