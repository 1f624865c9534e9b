"""A folder whose content is known."""

from pathlib import Path

import pytest
from model_world import save_small_clip
from video_files import write_grey

from hcmi.config import load_params


@pytest.fixture(scope="session")
def params():
    return load_params(Path(__file__).resolve().parents[2] / "params.yaml")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A CLIP of random weights for images of 64 pixels."""
    return save_small_clip(tmp_path_factory.mktemp("clip"), image_size=64)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two good videos of 2 s and 4 s, a broken one, one that is not there; five captions."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "videos").mkdir()
    write_grey(folder / "videos" / "two.mp4", num_frames=20, fps=10)
    write_grey(folder / "videos" / "four.mp4", num_frames=40, fps=10)
    (folder / "videos" / "broken.mp4").write_bytes(b"not a video at all")
    (folder / "captions.csv").write_text(
        "video,caption,start,end\ntwo.mp4,grey,,\ntwo.mp4,it grows lighter,,\nfour.mp4,the first half,0,2\n"
        "broken.mp4,nothing,,\ngone.mp4,nobody knows,,\n", encoding="utf-8")
    return folder
