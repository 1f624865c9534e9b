"""captions.csv, byte by byte. test_folder.py has the tables that are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmi.dataset import read_captions
from hcmi.dataset.captions import CaptionRow
from hcmi.errors import DataError, HcmiError


def test_rows_have_their_place_and_times_when_read(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text('video,caption,start,end,split\na.mp4,"a dog,\n asleep",,2.5,val\n\nb.mp4,,1,,\n', encoding="utf-8")
    assert list(read_captions(path)) == [CaptionRow("a.mp4", "a dog, asleep", None, 2.5, "val", f"{path} row 2"),
                                         CaptionRow("b.mp4", "", 1.0, None, None, f"{path} row 4")]


def test_table_is_read_when_a_spreadsheet_has_written_it(tmp_path):
    """Excel writes the empty cells beside and below a table, and from row 17 on leaves out those at a row's end."""
    path = tmp_path / "captions.csv"
    rows = ("video,caption,start,end,split,,", "a.mp4,a dog,,,test,,", "b.mp4,a cat", "c.mp4,,1,", ",,,,,,", ",,", "")
    path.write_text("\r\n".join(rows))
    assert list(read_captions(path)) == [CaptionRow("a.mp4", "a dog", None, None, "test", f"{path} row 2"),
                                         CaptionRow("b.mp4", "a cat", where=f"{path} row 3"),
                                         CaptionRow("c.mp4", "", 1.0, where=f"{path} row 4")]


def test_table_is_read_when_it_stands_away_from_the_corner_of_the_sheet(tmp_path):
    """Row numbers are those of the sheet."""
    path = tmp_path / "captions.csv"
    rows = ("", ",,,,", ",,video,caption,start,", ",,a.mp4,a dog,,", "", ",,b.mp4,a cat")
    path.write_text("\n".join(rows))
    assert list(read_captions(path)) == [CaptionRow("a.mp4", "a dog", where=f"{path} row 4"),
                                         CaptionRow("b.mp4", "a cat", where=f"{path} row 6")]


@pytest.mark.parametrize(("rows", "message"), [
    (",video,caption\na.mp4,a dog\n", "row 2: need 1 empty cell before the first column, as row 1 has, got 'a.mp4'. "
                                      "Move the row."),
    ("\n,,video,caption\n,,a.mp4,a dog\n,note,b.mp4,a cat\n",
     "row 4: need 2 empty cells before the first column, as row 2 has, got 'note'. Move the row."),
    ("\n\n,video,text\n", "row 3: need the columns video,caption[,start,end,split], got 'video,text'. Add the column "
                          "caption."),
    ("\nsep=,\nvideo,caption\n", "row 2: need the columns video,caption[,start,end,split], got 'sep=,', which only "
                                 "Excel reads. Remove row 2.")])
def test_refusal_of_a_table_away_from_the_corner_names_its_rows(tmp_path, rows, message):
    path = tmp_path / "captions.csv"
    path.write_text(rows)
    with pytest.raises(DataError) as refused:
        list(read_captions(path))
    assert str(refused.value) == f"{path} {message}"


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200),
                 st.text(max_size=200).map(lambda text: b"video,caption,start\n" + text.encode()),
                 st.lists(st.lists(st.text(",\"\n\r\ta.é/", max_size=8), max_size=4)).map(
                     lambda rows: b"video,caption\n" + "\n".join(map(",".join, rows)).encode())))
def test_table_is_read_or_refused_in_one_line_when_bytes_are_random(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "captions.csv"
    path.write_bytes(content)
    refusal = ""
    try:
        for row in read_captions(path):
            assert row.video.strip() != ""
            assert row.where.startswith(str(path))
    except HcmiError as error:
        refusal = str(error)
    assert not refusal or (str(path) in refusal and "need" in refusal and "\n" not in refusal)
