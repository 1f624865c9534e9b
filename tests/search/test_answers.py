"""How answers are shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hcmi.errors import ConfigError, MachineError
from hcmi.search import check_explanation_path, hit_record, hits_text, missing_files, span_text, time_text
from hcmi.types import Hit, Moment, path_of_text


def hit(path: str, rank: int = 1) -> Hit:
    return Hit(rank, "v1", path, 1.5, 2.0, 4.25, {"frame_word": 0.5, "video_sentence": 1.0})


def test_record_is_ready_for_json():
    assert json.loads(json.dumps(hit_record(hit("a.mp4")))) == {
        "rank": 1, "video_id": "v1", "path": "a.mp4", "score": 1.5, "start_s": 2.0, "end_s": 4.25,
        "levels": {"frame_word": 0.5, "video_sentence": 1.0}, "more": []}


def test_further_moments_stand_below_their_file():
    film = replace(hit("a.mp4"), more=(Moment("v2", 1.4, 10.0, 12.5), Moment("v3", 1.3, 3600.25, 3601.0)))
    assert hit_record(film)["more"][0] == {"video_id": "v2", "score": 1.4, "start_s": 10.0, "end_s": 12.5}
    assert [line.split(None, 2)[:2] for line in hits_text([film, hit("b.mp4", 2)]).splitlines()] == [
        ["1", "a.mp4"], ["also", "10.0"], ["2", "b.mp4"]]
    assert "also 10.0 - 12.5 s, 1:00:00.2 - 1:00:01.0" in hits_text([film])


def test_times_are_seconds_and_after_a_minute_those_of_a_player():
    assert span_text(2.04, 59.94) == "2.0 - 59.9 s"
    assert span_text(0.0, 0.04) == "0.00 - 0.04 s"
    assert span_text(7.2, 60.0) == "0:07.2 - 1:00.0"
    assert span_text(1284.0, 1286.26) == "21:24.0 - 21:26.3"
    assert span_text(3599.96, 36605.5) == "1:00:00.0 - 10:10:05.5"
    assert [*map(time_text, (0, 59.94, 60.0, 1284.26))] == ["0.0 s", "59.9 s", "1:00.0", "21:24.3"]


def test_table_shows_paths_from_the_working_folder_where_they_are_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / "videos" / "a.mp4"), "b.mp4", "/elsewhere/c.mp4"]
    lines = hits_text([hit(path, rank) for rank, path in enumerate(paths, 1)]).splitlines()
    assert [line.split()[1] for line in lines] == ["videos/a.mp4", "b.mp4", "/elsewhere/c.mp4"]
    assert lines[0].endswith("2.0 - 4.2 s  score 1.500  (frame-word 0.500  video-sentence 1.000)")
    assert hits_text([]).startswith("Nothing found")


def test_table_has_one_line_an_answer_and_columns_where_they_are_seen(tmp_path, monkeypatch):
    """Two columns of a terminal for a Chinese character and an emoji; none for an accent of its own."""
    monkeypatch.chdir(tmp_path)
    columns = {"a.mp4": 5, "犬の動画.mp4": 12, "new\nline.mp4": 13, "caf\udce9.mp4": 11, "🐶.mp4": 6, "e\u0301.mp4": 5}
    lines = hits_text([hit(path, rank) for rank, path in enumerate(columns, 1)]).splitlines()
    begins = [line.index(" 2.0 - ") - len(line.split()[1]) + width
              for line, width in zip(lines, columns.values(), strict=True)]
    assert begins == [begins[0]] * len(columns)


def test_record_is_text_when_a_name_is_no_utf8():
    path = hit_record(hit("caf\udce9/a\\xe9.mp4"))["path"]
    assert path.encode("utf-8").decode() == r"caf\xe9/a\x5cxe9.mp4"
    assert path_of_text(path) == "caf\udce9/a\\xe9.mp4"


def test_missing_files_are_named(tmp_path):
    (tmp_path / "a.mp4").touch()
    found = missing_files([hit(str(tmp_path / "a.mp4")), hit(str(tmp_path / "b.mp4"))])
    assert [line.partition(":")[0] for line in found] == [str(tmp_path / "b.mp4")]


@pytest.mark.parametrize(("path", "got"), [("why.txt", "'.txt'"), ("why", "'no ending'")])
def test_explanation_is_refused_when_its_name_has_another_ending(path, got):
    with pytest.raises(ConfigError, match=f"^path {path}: need a name ending in .png, .svg, .pdf or .json, got {got}"):
        check_explanation_path(path)


def test_explanation_is_refused_when_it_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="need the folder"):
        check_explanation_path(str(tmp_path / "file" / "why.png"))
    check_explanation_path(str(tmp_path / "why.PNG"))
    assert list(Path(tmp_path).iterdir()) == [tmp_path / "file"]
