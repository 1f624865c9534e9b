"""A page over a folder of real videos."""

import httpx
import pytest
from search_world import searchable_model, write_video
from serve_world import served

from hcmi.search import Retriever

GREYS = (60, 160, 240)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder with model/, videos/ and a cache."""
    root = tmp_path_factory.mktemp("world")
    searchable_model().save_pretrained(root / "model")
    for grey in GREYS:
        write_video(root / "videos" / f"g{grey}.mp4", grey, seconds=4.0)
    return root


@pytest.fixture(scope="session")
def retriever(world):
    return Retriever.from_folder(world / "videos", world / "model", cache=world / "cache")


@pytest.fixture(scope="session")
def page(retriever):
    with served(retriever) as address, httpx.Client(base_url=address) as client:
        yield client
