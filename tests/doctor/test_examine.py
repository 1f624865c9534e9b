"""Which videos there are, and what decoding a sample of them shows."""

import shutil

import pytest
from model_world import changed

from hcmi.doctor.examine import examine_sample, read_videos
from hcmi.errors import DataError


def test_videos_come_from_the_table_or_from_the_folder(folder, params):
    found = read_videos(folder, params.dataset)
    videos, captions = found.videos, found.captions
    assert {name: path == folder / "videos" / name for name, path in videos.items()} == dict.fromkeys(
        ("two.mp4", "four.mp4", "broken.mp4", "gone.mp4"), True)
    assert captions["two.mp4"] == {(None, None): ["grey", "it grows lighter"]}
    assert captions["four.mp4"] == {(0.0, 2.0): ["the first half"]}
    assert found.splits == {}
    found = read_videos(folder / "videos", params.dataset)
    assert (sorted(found.videos), found.captions) == (["broken.mp4", "four.mp4", "two.mp4"], {})


@pytest.mark.parametrize(("rows", "message"), [
    ("two.mp4,a,train\ntwo.mp4,b,test\n", r"captions.csv row 3: need one split for all rows of 'two.mp4', got test"),
    ("/etc/two.mp4,a,\n", r"captions.csv row 2: need a path inside .*, got the absolute path"),
    ("../two.mp4,a,\n", r"captions.csv row 2: need a path inside .*, got '../two.mp4' with '..'")])
def test_table_is_refused_when_the_dataset_stage_would_refuse_it(tmp_path, params, rows, message):
    (tmp_path / "captions.csv").write_text(f"video,caption,split\n{rows}")
    with pytest.raises(DataError, match=message):
        read_videos(tmp_path, params.dataset)


def test_names_of_one_file_are_one_video_and_a_link_out_of_the_folder_is_outside(folder, params, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(folder / "videos/two.mp4", tmp_path / "videos")
    (tmp_path / "videos/link.mp4").symlink_to(folder / "videos/four.mp4")
    (tmp_path / "captions.csv").write_text("video,caption\n./two.mp4,a\ntwo.mp4,b\nlink.mp4,c\n")
    found = read_videos(tmp_path, params.dataset)
    assert (sorted(found.videos), found.outside) == (["link.mp4", "two.mp4"], {"link.mp4"})


def test_sample_has_the_figures_of_good_files_and_the_errors_of_others(folder, params):
    videos = read_videos(folder / "videos", params.dataset).videos
    sample = examine_sample(videos, params.shards, seconds=60)
    assert {name: one.duration_s for name, one in sample.good.items()} == {"two.mp4": 2.0, "four.mp4": 4.0}
    assert {name: error.reason for name, error in sample.bad.items()} == {"broken.mp4": "not_a_video"}
    assert (sample.size, sample.good_share, sample.skip_fraction) == (3, 2 / 3, 0)
    assert all(len(one.jpeg_bytes) == 24 and one.decoder == "decord" for one in sample.good.values())


def test_only_files_that_can_be_opened_count_against_the_limit_when_they_cannot_be_decoded(folder, params):
    """`dataset` leaves out broken.mp4, so that it never comes to the stage `shards`, in which the others fail."""
    videos = read_videos(folder / "videos", params.dataset).videos
    sample = examine_sample(videos, changed(params.shards, decode_timeout_s=1e-4), seconds=60)
    assert len(sample.bad) == 3
    assert sample.undecodable == {"two.mp4", "four.mp4"}
    assert sample.skip_fraction == 1


def test_no_file_is_begun_when_the_time_is_up(folder, params):
    videos = read_videos(folder / "videos", params.dataset).videos
    assert examine_sample(videos, params.shards, seconds=-1).size == 0
