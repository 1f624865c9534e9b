"""Readers of published data sets, on a few entries in each published format."""

import json

import pytest
from dataset_world import published

from hcmi.dataset import SOURCES, annotations, files_by_bare_name, read_annotations
from hcmi.dataset.annotations import Counts, Source


def test_lsmdc_reads_tabs_without_header_when_there_are_six_or_five_columns(tmp_path, monkeypatch):
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    line = f"{clip}\t00.00.51.926\t00.00.54.129\t00.00.51.754\t00.00.54.454\tSOMEONE says \"no, thanks\", caf\xe9.\n"
    for name in ("training", "val"):
        (tmp_path / f"LSMDC16_annos_{name}.csv").write_bytes((line + "\n").encode("cp1252"))
    (tmp_path / "LSMDC16_challenge_1000_publictect.csv").write_text(line.replace("0001", "0002"))
    (tmp_path / "LSMDC16_annos_blindtest.csv").write_text("\t".join(line.split("\t")[:5]) + "\n")
    monkeypatch.setitem(SOURCES, "lsmdc", Source(annotations.lsmdc, {"1k": {"test": Counts(1, 1)}, "blind": {}}))
    rows = list(read_annotations(published("lsmdc", tmp_path, val_fraction=0.0)))
    assert [(row.video, row.caption, row.split) for row in rows] == [
        (name, 'SOMEONE says "no, thanks", café.', split)
        for name, split in ((clip, "train"), (clip, "val"), (clip.replace("0001", "0002"), "test"))]
    blind = read_annotations(published("lsmdc", tmp_path, "blind"))
    assert [row.caption for row in blind if row.split == "test"] == [None]


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c"])
def test_lsmdc_row_ends_only_where_the_line_does(tmp_path, odd):
    path = tmp_path / "a.csv"
    path.write_bytes(f"one\t0\t1\t0\t1\ta{odd}b\r\ntwo\t0\t1\t0\t1\tc\n".encode())
    rows = annotations.lsmdc_table(path, "test")
    assert [(row.video, row.caption) for row in rows] == [("one", f"a{odd}b"), ("two", "c")]


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
    rows = list(read_annotations(published(name, tmp_path, val_fraction=0.0)))
    assert [(row.video, row.caption, row.split) for row in rows] == expected
    held_out = [row.split for row in read_annotations(published(name, tmp_path, val_fraction=1.0))]
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
    rows = list(read_annotations(published(name, tmp_path, val_fraction=0.0)))
    assert [(row.video, row.caption, row.start_s, row.end_s, row.split) for row in rows] == expected
    (tmp_path / "videos").mkdir()
    for row in rows:        # names with dots, or with a dash at the start
        (tmp_path / f"videos/{row.video}.mp4").touch()
    assert {row.video for row in rows} <= set(files_by_bare_name(tmp_path))
