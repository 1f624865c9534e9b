"""The picture of the page that the README shows."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from PIL import Image
from serve_world import served

SCRIPT = Path(__file__).parents[2] / "docs/picture.py"


def test_picture_of_the_page_is_taken(retriever, tmp_path):
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs Chromium: apt-get install chromium")
    spec = importlib.util.spec_from_file_location("picture", SCRIPT)
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    with served(retriever) as address:
        picture.take(address, "a red ring", str(tmp_path / "page.png"))
    with Image.open(tmp_path / "page.png") as taken:
        assert taken.size == (picture.SIZE["width"], picture.SIZE["height"])
