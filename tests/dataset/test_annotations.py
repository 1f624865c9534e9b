"""Readers of published data sets, on the real annotation files where they exist and on generated ones like them."""

import json
import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmi.config import load_params
from hcmi.dataset import SOURCES, annotations, build_dataset, files_by_bare_name, read_annotations, read_manifest, stage
from hcmi.dataset.annotations import Counts, Source, protocol_of
from hcmi.errors import ConfigError, DataError, HcmiError

CONFIG = load_params(Path(__file__).resolve().parents[2] / "params.yaml").dataset


def config_for(name, path, protocol="default", **changes):
    return CONFIG.model_copy(update={"name": name, "path": str(path), "protocol": protocol, **changes})


def counts_of(rows):
    """split -> (videos, captions)"""
    videos, captions = {}, Counter()
    for row in rows:
        videos.setdefault(row.split, set()).add(row.video)
        captions[row.split] += 1
    return {split: (len(videos[split]), captions[split]) for split in videos}


@pytest.fixture(scope="session")
def real(shared_data):
    return shared_data / "annotations"


@pytest.fixture(scope="session")
def msrvtt(real, tmp_path_factory):
    """The real lists and a generated MSRVTT_data.json (the real one is not here): 10,000 videos, 20 captions each."""
    folder = tmp_path_factory.mktemp("msrvtt")
    for path in (real / "msrvtt").iterdir():
        shutil.copy(path, folder)
    videos = [{"video_id": f"video{i}", "split": "train" if i < 6513 else "validate" if i < 7010 else "test"}
              for i in range(10_000)]
    sentences = [{"video_id": f"video{i}", "caption": f"caption {k} of {i}"} for i in range(10_000) for k in range(20)]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    return folder


# ---------------------------------------------------------------------------------------------------------- real files

@pytest.mark.parametrize(("protocol", "train"), [("9k", 9_000), ("7k", 7_010)])
def test_msrvtt_has_the_1ka_pairs_and_its_training_ids_when_read(msrvtt, protocol, train):
    rows = list(read_annotations(config_for("msrvtt", msrvtt, protocol, val_fraction=0.0)))
    assert counts_of(rows) == {"train": (train, train * 20), "test": (1000, 1000)}
    assert [(row.video, row.caption) for row in rows if row.split == "test"][:2] == [
        ("video9770", "a person is connecting something to system"), ("video9771", "a little girl does gymnastics")]


def test_msrvtt_full_has_the_official_splits_when_read(msrvtt, tmp_path):
    rows = list(read_annotations(config_for("msrvtt", msrvtt, "full")))
    assert counts_of(rows) == {"train": (6513, 130_260), "val": (497, 9_940), "test": (2990, 59_800)}
    assert next(row for row in rows if row.split == "test").caption.startswith("a clip showing a computer screen")
    shutil.copy(msrvtt / "MSRVTT_data.json", tmp_path)
    assert counts_of(read_annotations(config_for("msrvtt", tmp_path, "full")))["test"] == (2990, 59_800)


def test_msrvtt_takes_one_caption_a_video_when_that_is_all_there_is(real):
    config = config_for("msrvtt", real / "msrvtt", "9k")
    rows = list(read_annotations(config))
    counts = counts_of(rows)
    assert counts["train"][0] + counts["val"][0] == 9000 == counts["train"][1] + counts["val"][1]
    assert counts["val"][0] / 9000 == pytest.approx(0.1, abs=0.01)
    assert next(row for row in rows if row.video == "video0").caption == "a car is shown"


def test_msvd_has_every_caption_when_read(real):
    rows = list(read_annotations(config_for("msvd", real / "msvd")))
    assert counts_of(rows) == {"train": (1200, 48_774), "val": (100, 4_290), "test": (670, 27_763)}
    assert rows[0].caption == "a squirrel is eating a peanut in it s shell"


@pytest.fixture(scope="session")
def didemo(real, tmp_path_factory):
    """The real files and a generated train_data.json with two sentences for each video of the real list."""
    folder = tmp_path_factory.mktemp("didemo")
    for path in (real / "didemo").iterdir():
        shutil.copy(path, folder)
    names = (folder / "train_list.txt").read_text().split("\n")
    entries = [{"video": name, "description": f"{text} of {name}", "times": [[0, 1]]}
               for text in ("start", "end") for name in names if name]
    (folder / "train_data.json").write_text(json.dumps(entries))
    return folder


def test_didemo_joins_the_sentences_of_a_video_when_the_protocol_is_paragraph(didemo):
    rows = list(read_annotations(config_for("didemo", didemo)))
    assert counts_of(rows) == {"train": (8392, 8392), "val": (1065, 1065), "test": (1004, 1004)}
    first = json.loads((didemo / "test_data.json").read_text())[0]["video"]
    sentences = [entry["description"].strip() for entry in json.loads((didemo / "test_data.json").read_text())
                 if entry["video"] == first]
    row = next(row for row in rows if row.video == first.removesuffix(".m4v"))
    assert (row.caption, row.start_s, row.end_s) == (" ".join(sentences), None, None)


def test_didemo_gives_seconds_most_annotators_chose_when_the_protocol_is_moments(didemo):
    rows = list(read_annotations(config_for("didemo", didemo, "moments")))
    row = next(row for row in rows if row.caption == "someone kicks the bug towards some rocks.")
    assert (row.start_s, row.end_s) == (20.0, 25.0)      # times [4,4] x 4, [0,0] x 3: five seconds each
    assert {row.end_s - row.start_s for row in rows if row.split == "test"} <= {5.0 * n for n in range(1, 7)}
    assert counts_of(rows)["val"][0] == 1065


def test_activitynet_has_val_1_as_test_when_read(real):
    config = config_for("activitynet", real / "activitynet", val_fraction=0.0)
    rows = list(read_annotations(config))
    assert counts_of(rows) == {"train": (10_009, 10_009), "test": (4_917, 4_917)}
    assert rows[0].video == "v_QOlSCBRmfWY"
    assert rows[0].caption.startswith("A young woman is seen standing in a room and leads into her dancing. The girl")
    moments = list(read_annotations(config.model_copy(update={"protocol": "moments"})))
    assert counts_of(moments) == {"train": (10_009, 37_421), "test": (4_917, 17_505)}
    assert (moments[0].start_s, moments[0].end_s) == (0.83, 19.86)


def test_validation_is_held_out_of_training_when_the_publication_has_none(real):
    rows = list(read_annotations(config_for("activitynet", real / "activitynet")))
    counts = counts_of(rows)
    assert counts["test"] == (4917, 4917)
    assert counts["val"][0] / 10_009 == pytest.approx(0.1, abs=0.01)
    assert {row.video for row in rows if row.split == "val"}.isdisjoint(row.video for row in rows if row.split != "val")


# ----------------------------------------------------------------------------------------------------- generated files

def test_lsmdc_reads_tabs_without_header_when_there_are_six_or_five_columns(tmp_path, monkeypatch):
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    line = f"{clip}\t00.00.51.926\t00.00.54.129\t00.00.51.754\t00.00.54.454\tSOMEONE says \"no, thanks\", caf\xe9.\n"
    for name in ("training", "val"):
        (tmp_path / f"LSMDC16_annos_{name}.csv").write_bytes((line + "\n").encode("cp1252"))
    (tmp_path / "LSMDC16_challenge_1000_publictect.csv").write_text(line.replace("0001", "0002"))
    (tmp_path / "LSMDC16_annos_blindtest.csv").write_text("\t".join(line.split("\t")[:5]) + "\n")
    monkeypatch.setitem(SOURCES, "lsmdc", Source(annotations.lsmdc, {"1k": {"test": Counts(1, 1)}, "blind": {}}))
    rows = list(read_annotations(config_for("lsmdc", tmp_path, val_fraction=0.0)))
    assert [(row.video, row.caption, row.split) for row in rows] == [
        (name, 'SOMEONE says "no, thanks", café.', split)
        for name, split in ((clip, "train"), (clip, "val"), (clip.replace("0001", "0002"), "test"))]
    blind = read_annotations(config_for("lsmdc", tmp_path, "blind"))
    assert [row.caption for row in blind if row.split == "test"] == [None]


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c"])
def test_lsmdc_row_ends_only_where_the_line_does(tmp_path, odd):
    path = tmp_path / "a.csv"
    path.write_bytes(f"one\t0\t1\t0\t1\ta{odd}b\r\ntwo\t0\t1\t0\t1\tc\n".encode())
    rows = annotations.lsmdc_table(path, "test")
    assert [(row.video, row.caption) for row in rows] == [("one", f"a{odd}b"), ("two", "c")]


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
    assert counts_of(read_annotations(config_for("vatex", vatex))) == {
        "train": (25_991, 259_910), "val": (1_500, 15_000), "test": (1_500, 15_000)}
    assert counts_of(read_annotations(config_for("vatex", vatex, "public"))) == {
        "train": (25_991, 259_910), "val": (3_000, 30_000), "test": (6_000, 60_000)}


def test_videos_are_found_when_nested_converted_or_without_ending(tmp_path):
    names = ("TrainVal/video0.mp4", "b/10052357@N03_7585070382_5762149bfc.mp4",
             "0001_Film/0001_00.00.51.926-00.00.54.129.avi", "z/video0.mkv")
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    found = files_by_bare_name(tmp_path)
    assert found["video0"].endswith("TrainVal/video0.mp4")
    assert annotations.bare_name("10052357@N03_7585070382_5762149bfc.") in found
    assert "0001_00.00.51.926-00.00.54.129" in found
    assert len(found) == 3


# -------------------------------------------------------------------------------------------------------------- stage

def test_missing_videos_are_counted_and_listed_when_some_are_there(real, shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MOST_MISSING", 0.999)
    folder = tmp_path / "msvd"
    shutil.copytree(real / "msvd", folder)
    names = [name for split in ("train", "test") for name in (folder / f"{split}_list.txt").read_text().split()[:2]]
    (folder / "videos").mkdir()
    sources = sorted((shared_data / "real_clips" / "videos").iterdir())
    for name, source in zip(names, sources, strict=False):
        shutil.copy(source, folder / "videos" / f"{name}.mp4")
    outs = {f"{name}_dir": tmp_path / name for name in ("manifest", "generated", "incoming")}
    summary = build_dataset(config=config_for("msvd", folder), **outs)
    assert (summary["clips"], summary["train"], summary["test"]) == (4, 2, 2)
    assert summary["skipped"] == {"missing": 1966}
    clips = read_manifest(tmp_path / "manifest" / "manifest.parquet")
    everything = json.loads((folder / "captions_msvd.json").read_text())
    assert sum(len(clip.captions) for clip in clips) == sum(len(everything[name]) for name in names)
    lines = [json.loads(line) for line in (tmp_path / "manifest" / "skipped.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"missing"}
    assert all(line["path"].startswith(str(folder / "videos")) for line in lines)


def test_dataset_is_refused_when_most_of_its_videos_are_missing(real, shared_data, tmp_path):
    folder = tmp_path / "msvd"
    shutil.copytree(real / "msvd", folder)
    (folder / "videos").mkdir()
    name = (folder / "train_list.txt").read_text().split()[0]
    shutil.copy(next((shared_data / "real_clips/videos").iterdir()), folder / "videos" / f"{name}.mp4")
    outs = {f"{name}_dir": tmp_path / name for name in ("manifest", "generated", "incoming")}
    with pytest.raises(DataError, match=r"need at least 50% of the videos that captions name, got 1 clips, and 1,969 "):
        build_dataset(config=config_for("msvd", folder), **outs)
    assert not (tmp_path / "manifest").exists()


# ------------------------------------------------------------------------------------------------------------- refused

def test_reading_is_refused_when_a_file_is_missing_or_short(real, tmp_path):
    with pytest.raises(DataError, match=r"captions_msvd.json: need this annotation file, found none. See docs"):
        list(read_annotations(config_for("msvd", tmp_path)))
    shutil.copytree(real / "msvd", tmp_path / "msvd")
    lines = (tmp_path / "msvd" / "test_list.txt").read_text().splitlines()
    (tmp_path / "msvd" / "test_list.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match=r"need 670 test videos for msvd multi, got 669. Download the annotation again"):
        list(read_annotations(config_for("msvd", tmp_path / "msvd")))


def test_reading_is_refused_when_an_annotation_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "captions_msvd.json")
    with pytest.raises(DataError, match=r"captions_msvd.json: need a regular file, got something else. See docs"):
        list(read_annotations(config_for("msvd", tmp_path)))


def test_reading_is_refused_when_the_protocol_is_unknown():
    with pytest.raises(ConfigError, match=r"dataset.protocol: need one of default, 9k, 7k, full for msrvtt, got '1kA'"):
        protocol_of(config_for("msrvtt", "x", "1kA"))
    assert protocol_of(config_for("activitynet", "x")) == "paragraph"


def test_reading_is_refused_when_a_row_names_another_split(monkeypatch):
    rows = [annotations.CaptionRow("a", "a cat", split="tset", where="list.json entry 0")]
    monkeypatch.setitem(SOURCES, "msvd", Source(lambda folder, protocol: iter(rows), {"multi": {}}))
    with pytest.raises(DataError, match=r"^list.json entry 0: need one of the splits train, val, test, got 'tset'\. d"):
        list(read_annotations(config_for("msvd", "x")))


BROKEN = {
    "not json": ("captions_msvd.json", "{", r"captions_msvd.json: need JSON, got"),
    "a list": ("captions_msvd.json", "[1]", r"captions_msvd.json: need dict, got \[1\]. docs/datasets.md shows"),
    "no captions": ("captions_msvd.json", "{}", r"captions_msvd.json, a: need list, got null"),
    "numbers": ("captions_msvd.json", '{"a": [3]}', r"captions_msvd.json, a: need str, got 3"),
}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


OTHERS = {
    "GRAM and VAST": ("msrvtt", {
        "descs_ret_train.json": json.dumps([{"video_id": "video0", "desc": "a dog", "subtitle": ""},
                                            {"video_id": "video1.mp4", "desc": ["a cat ", "it sleeps"]}]),
        "descs_ret_test.json": json.dumps([{"video_id": "video7", "desc": "a bird"}])},
        [("video0", "a dog", "train"), ("video1", "a cat", "train"), ("video1", "it sleeps", "train"),
         ("video7", "a bird", "test")]),
    "T-MASS": ("didemo", {
        "didemo_train_label.csv": "success,video_path,starts,ends,text,formatted_data\n"
                                  'True,/x/1@N00_2_ab.m4v,tensor([[0]]),tensor([[31]]),"a man, then a dog",/t_0.pth\n',
        "didemo_val_label.csv": "success,video_path,starts,ends,text,formatted_data\n",
        "didemo_test_label.csv": "success,video_path,starts,ends,text,formatted_data\n"
                                 "True,/x/5@N06_8_fd.,tensor([0]),tensor([31]),a baby,/x/t_1.pth\n"},
        [("1@N00_2_ab", "a man, then a dog", "train"), ("5@N06_8_fd", "a baby", "test")]),
    "CLIP2Video": ("vatex", {
        "vatex_data.json": json.dumps({"a_1_11": {"enCap": ["a dog", "a puppy"]}, "b_2_12": {"enCap": ["a cat"]}}),
        "train_list.txt": "a_1_11\n", "test_list.txt": "b_2_12\n"},
        [("a_1_11", "a dog", "train"), ("a_1_11", "a puppy", "train"), ("b_2_12", "a cat", "test")]),
}


@pytest.mark.parametrize("layout", OTHERS)
def test_annotation_is_read_when_it_is_laid_out_as_other_code_has_it(tmp_path, layout):
    name, files, expected = OTHERS[layout]
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    rows = list(read_annotations(config_for(name, tmp_path, val_fraction=0.0)))
    assert [(row.video, row.caption, row.split) for row in rows] == expected
    held_out = [row.split for row in read_annotations(config_for(name, tmp_path, val_fraction=1.0))]
    has_val = "didemo_val_label.csv" in files
    assert held_out == ["val" if row[2] == "train" and not has_val else row[2] for row in expected]


MOMENTS = {
    # keys, numbers and ids as in the authors' own files
    "tvr": ({"tvr_train_release.jsonl": lines(
                {"vid_name": "friends_s06e15-16_seg02_clip_20", "duration": 91.28999999999999, "ts": [1.5, 4],
                 "desc": "Ross sits.  ", "type": "vt", "desc_id": 90143}),
             "tvr_val_release.jsonl": "\n" + lines(
                {"vid_name": "s02e14_seg02_clip_02", "duration": 90.72, "ts": [0, 90.716], "desc": "He runs.",
                 "type": "v", "desc_id": 88605})},
            [("friends_s06e15-16_seg02_clip_20", "Ross sits.", 1.5, 4.0, "train"),
             ("s02e14_seg02_clip_02", "He runs.", 0.0, 90.716, "test")]),
    "charades_sta": ({"charades_sta_train.txt": "AO8RW 0.0 6.9##a person puts a book down.\r\n",
                      "charades_sta_test.txt": "3MSZA  24.3 30 ##person turn ## a light on.\n\n"},
                     [("AO8RW", "a person puts a book down.", 0.0, 6.9, "train"),
                      ("3MSZA", "person turn ## a light on.", 24.3, 30.0, "test")]),
    "qvhighlights": ({"highlight_train_release.jsonl": lines(
                        {"qid": 1, "query": "A  family", "duration": 142, "vid": "-b_660.0_810.0",
                         "relevant_clip_ids": [0, 1, 4, 5, 6, 7], "saliency_scores": [[0, 3, 2]] * 6,
                         "relevant_windows": [[0, 4], [8, 16]]}),
                      "highlight_val_release.jsonl": lines(
                        {"qid": 2, "query": "A car", "duration": 150, "vid": "_c_60.0_210.0", "relevant_clip_ids": [5],
                         "saliency_scores": [[4, 1, 1]], "relevant_windows": [[10, 12]]})},
                     [("-b_660.0_810.0", "A  family", 8.0, 16.0, "train"),
                      ("_c_60.0_210.0", "A car", 10.0, 12.0, "test")]),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_have_their_sentence_and_times(tmp_path, name, monkeypatch):
    files, expected = MOMENTS[name]
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    source = Source(SOURCES[name].read, {"moments": {"train": Counts(1, 1), "test": Counts(1, 1)}})
    monkeypatch.setitem(annotations.SOURCES, name, source)
    rows = list(read_annotations(config_for(name, tmp_path, val_fraction=0.0)))
    assert [(row.video, row.caption, row.start_s, row.end_s, row.split) for row in rows] == expected
    (tmp_path / "videos").mkdir()
    for row in rows:        # names with dots, or with a dash at the start
        (tmp_path / f"videos/{row.video}.mp4").touch()
    assert {row.video for row in rows} <= set(files_by_bare_name(tmp_path))


def test_video_is_found_by_its_name_when_systems_and_macs_have_been_there(tmp_path):
    nfd = unicodedata.normalize("NFD", "café")
    for name in (".Trash/v_1.mp4", "__MACOSX/v_1.mp4", "part/v_1.webm", "._v_2.mp4", "v_2.MP4", f"{nfd}.avi"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    found = {name: Path(path).relative_to(tmp_path / "videos").as_posix()
             for name, path in files_by_bare_name(tmp_path).items()}
    assert found == {"v_1": "part/v_1.webm", "v_2": "v_2.MP4", "café": f"{nfd}.avi"}


@pytest.mark.parametrize("case", BROKEN)
def test_reading_says_what_is_wrong_when_a_file_is_broken(tmp_path, case):
    name, content, message = BROKEN[case]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}_list.txt").write_text("a\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_annotations(config_for("msvd", tmp_path)))


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
        list(read_annotations(config_for(name, folder)))
    except HcmiError as error:
        refusal = str(error)
    assert str(folder) in refusal
    assert "need" in refusal
    assert "\n" not in refusal
