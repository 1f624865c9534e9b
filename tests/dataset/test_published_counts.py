"""Readers of published data sets: videos and captions of each split, on the real files where they exist."""

import json
import shutil
from collections import Counter

import pytest
from dataset_world import published

from hcmi.dataset import read_annotations


def counts_of(rows):
    """split -> (videos, captions)"""
    videos, captions = {}, Counter()
    for row in rows:
        videos.setdefault(row.split, set()).add(row.video)
        captions[row.split] += 1
    return {split: (len(videos[split]), captions[split]) for split in videos}


@pytest.fixture(scope="session")
def msrvtt(annotations_dir, tmp_path_factory):
    """The real lists and a generated MSRVTT_data.json (the real one is not here): 10,000 videos, 20 captions each."""
    folder = tmp_path_factory.mktemp("msrvtt")
    for path in (annotations_dir / "msrvtt").iterdir():
        shutil.copy(path, folder)
    videos = [{"video_id": f"video{i}", "split": "train" if i < 6513 else "validate" if i < 7010 else "test"}
              for i in range(10_000)]
    sentences = [{"video_id": f"video{i}", "caption": f"caption {k} of {i}"} for i in range(10_000) for k in range(20)]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    return folder


@pytest.mark.parametrize(("protocol", "train"), [("9k", 9_000), ("7k", 7_010)])
def test_msrvtt_has_the_1ka_pairs_and_its_training_ids_when_read(msrvtt, protocol, train):
    rows = list(read_annotations(published("msrvtt", msrvtt, protocol, val_fraction=0.0)))
    assert counts_of(rows) == {"train": (train, train * 20), "test": (1000, 1000)}
    assert [(row.video, row.caption) for row in rows if row.split == "test"][:2] == [
        ("video9770", "a person is connecting something to system"), ("video9771", "a little girl does gymnastics")]


def test_msrvtt_full_has_the_official_splits_when_read(msrvtt, tmp_path):
    rows = list(read_annotations(published("msrvtt", msrvtt, "full")))
    assert counts_of(rows) == {"train": (6513, 130_260), "val": (497, 9_940), "test": (2990, 59_800)}
    assert next(row for row in rows if row.split == "test").caption.startswith("a clip showing a computer screen")
    shutil.copy(msrvtt / "MSRVTT_data.json", tmp_path)
    assert counts_of(read_annotations(published("msrvtt", tmp_path, "full")))["test"] == (2990, 59_800)


def test_msrvtt_takes_one_caption_a_video_when_that_is_all_there_is(annotations_dir):
    config = published("msrvtt", annotations_dir / "msrvtt", "9k")
    rows = list(read_annotations(config))
    counts = counts_of(rows)
    assert counts["train"][0] + counts["val"][0] == 9000 == counts["train"][1] + counts["val"][1]
    assert counts["val"][0] / 9000 == pytest.approx(0.1, abs=0.01)
    assert next(row for row in rows if row.video == "video0").caption == "a car is shown"


def test_msvd_has_every_caption_when_read(annotations_dir):
    rows = list(read_annotations(published("msvd", annotations_dir / "msvd")))
    assert counts_of(rows) == {"train": (1200, 48_774), "val": (100, 4_290), "test": (670, 27_763)}
    assert rows[0].caption == "a squirrel is eating a peanut in it s shell"


@pytest.fixture(scope="session")
def didemo(annotations_dir, tmp_path_factory):
    """The real files and a generated train_data.json with two sentences for each video of the real list."""
    folder = tmp_path_factory.mktemp("didemo")
    for path in (annotations_dir / "didemo").iterdir():
        shutil.copy(path, folder)
    names = (folder / "train_list.txt").read_text().split("\n")
    entries = [{"video": name, "description": f"{text} of {name}", "times": [[0, 1]]}
               for text in ("start", "end") for name in names if name]
    (folder / "train_data.json").write_text(json.dumps(entries))
    return folder


def test_didemo_joins_the_sentences_of_a_video_when_the_protocol_is_paragraph(didemo):
    rows = list(read_annotations(published("didemo", didemo)))
    assert counts_of(rows) == {"train": (8392, 8392), "val": (1065, 1065), "test": (1004, 1004)}
    first = json.loads((didemo / "test_data.json").read_text())[0]["video"]
    sentences = [entry["description"].strip() for entry in json.loads((didemo / "test_data.json").read_text())
                 if entry["video"] == first]
    row = next(row for row in rows if row.video == first.removesuffix(".m4v"))
    assert (row.caption, row.start_s, row.end_s) == (" ".join(sentences), None, 31.0)     # as CLIP4Clip reads them


def test_didemo_gives_seconds_most_annotators_chose_when_the_protocol_is_moments(didemo):
    rows = list(read_annotations(published("didemo", didemo, "moments")))
    row = next(row for row in rows if row.caption == "someone kicks the bug towards some rocks.")
    assert (row.start_s, row.end_s) == (20.0, 25.0)      # times [4,4] x 4, [0,0] x 3: five seconds each
    assert {row.end_s - row.start_s for row in rows if row.split == "test"} <= {5.0 * n for n in range(1, 7)}
    assert counts_of(rows)["val"][0] == 1065


def test_activitynet_has_val_1_as_test_when_read(annotations_dir):
    config = published("activitynet", annotations_dir / "activitynet", val_fraction=0.0)
    rows = list(read_annotations(config))
    assert counts_of(rows) == {"train": (10_009, 10_009), "test": (4_917, 4_917)}
    assert rows[0].video == "v_QOlSCBRmfWY"
    assert rows[0].caption.startswith("A young woman is seen standing in a room and leads into her dancing. The girl")
    moments = list(read_annotations(config.model_copy(update={"protocol": "moments"})))
    assert counts_of(moments) == {"train": (10_009, 37_421), "test": (4_917, 17_505)}
    assert (moments[0].start_s, moments[0].end_s) == (0.83, 19.86)


def test_validation_is_held_out_of_training_when_the_publication_has_none(annotations_dir):
    rows = list(read_annotations(published("activitynet", annotations_dir / "activitynet")))
    counts = counts_of(rows)
    assert counts["test"] == (4917, 4917)
    assert counts["val"][0] / 10_009 == pytest.approx(0.1, abs=0.01)
    assert {row.video for row in rows if row.split == "val"}.isdisjoint(row.video for row in rows if row.split != "val")


@pytest.fixture
def vatex(tmp_path):
    """25,991 + 3,000 + 6,000 videos with ten captions each."""
    def write(name, start, count):
        entries = [{"videoID": f"id{i}_000001_000011", "enCap": [f"caption {k} of {i}" for k in range(10)], "chCap": []}
                   for i in range(start, start + count)]
        (tmp_path / name).write_text(json.dumps(entries))
    write("vatex_training_v1.0.json", 0, 25_991)
    write("vatex_validation_v1.0.json", 30_000, 3_000)
    write("vatex_public_test_english_v1.1.json", 40_000, 6_000)
    for split, start in (("val", 30_000), ("test", 31_500)):
        names = (f"id{i}_000001_000011\n" for i in range(start, start + 1500))
        (tmp_path / f"{split}_list.txt").write_text("".join(names))
    return tmp_path


def test_vatex_has_both_protocols_when_read(vatex):
    assert counts_of(read_annotations(published("vatex", vatex))) == {
        "train": (25_991, 259_910), "val": (1_500, 15_000), "test": (1_500, 15_000)}
    assert counts_of(read_annotations(published("vatex", vatex, "public"))) == {
        "train": (25_991, 259_910), "val": (3_000, 30_000), "test": (6_000, 60_000)}
