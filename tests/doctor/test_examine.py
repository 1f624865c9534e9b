"""Which videos there are, and what decoding a sample of them shows."""

from hcmi.doctor.examine import examine_sample, read_videos


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


def test_sample_has_the_figures_of_good_files_and_the_errors_of_others(folder, params):
    videos = read_videos(folder / "videos", params.dataset).videos
    sample = examine_sample(videos, params.shards, seconds=60)
    assert {name: one.duration_s for name, one in sample.good.items()} == {"two.mp4": 2.0, "four.mp4": 4.0}
    assert {name: error.reason for name, error in sample.bad.items()} == {"broken.mp4": "not_a_video"}
    assert (sample.size, sample.good_share) == (3, 2 / 3)
    assert all(len(one.jpeg_bytes) == 24 and one.decoder == "decord" for one in sample.good.values())


def test_no_file_is_begun_when_the_time_is_up(folder, params):
    videos = read_videos(folder / "videos", params.dataset).videos
    assert examine_sample(videos, params.shards, seconds=-1).size == 0
