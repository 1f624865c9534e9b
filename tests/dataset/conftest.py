"""Videos and folders for the tests of the dataset room."""

import hashlib
import shutil

import numpy as np
import pytest
from dataset_world import OnePlacePool

from hcmi.scenes.write import encode


@pytest.fixture(autouse=True)
def _no_processes(request, monkeypatch):
    """Files are probed in this process, but for the tests that ask for `processes` or read the shared data."""
    if not {"shared_data", "processes"} & set(request.fixturenames):
        monkeypatch.setattr("hcmi.dataset.build_clips.DecoderPool", OnePlacePool)


@pytest.fixture
def processes():
    """Files are probed in child processes, as in real use."""


@pytest.fixture(scope="session")
def annotations_dir(shared_data):
    """The authors' own annotation files, a folder for each data set."""
    return shared_data / "annotations"


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """Two seconds, 24 frames: frame i is grey level 10 * i."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    encode(np.stack([np.full((32, 32, 3), 10 * i, np.uint8) for i in range(24)]), path, 12)
    return path


@pytest.fixture
def folder(tmp_path, film):
    """Makes <tmp>/set with the videos a.mp4 and b.mp4 and the given captions.csv (text or bytes)."""
    def make(table=None, videos=("a.mp4", "b.mp4")):
        for name in videos:
            target = tmp_path / "set" / "videos" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(film, target)
        (tmp_path / "set" / "videos").mkdir(parents=True, exist_ok=True)
        if table is not None:
            (tmp_path / "set" / "captions.csv").write_bytes(table.encode() if isinstance(table, str) else table)
        return tmp_path / "set"
    return make


@pytest.fixture(scope="session")
def film_of(film, tmp_path_factory):
    """The path of row's video: for each name a film of other bytes, an empty box of the name's hash behind its end."""
    root = tmp_path_factory.mktemp("films")

    def locate(row):
        path = root / row.video
        if not path.exists():
            digest = hashlib.sha256(row.video.encode()).digest()
            path.write_bytes(film.read_bytes() + (8 + len(digest)).to_bytes(4, "big") + b"free" + digest)
        return str(path)
    return locate
