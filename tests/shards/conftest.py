import pytest
from made_shards import make_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """30 clips of 30 videos, 6 frames, 2 captions."""
    return make_shards(tmp_path_factory.mktemp("shards"), [f"a{clip}" for clip in range(30)])


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """30 clips of 12 videos: 10 of one, 5 of another, 2 or 1 of the others."""
    videos = ["long"] * 10 + ["half"] * 5 + [f"a{clip // 2}" for clip in range(15)]
    return make_shards(tmp_path_factory.mktemp("segments"), videos)


@pytest.fixture
def fresh(tmp_path):
    return make_shards(tmp_path / "shards", list("abcdef"))
