"""An empty index."""

import pytest
from index_world import MODEL

from hcmi.index import create_index


@pytest.fixture
def folder(tmp_path):
    create_index(tmp_path / "index", MODEL)
    return tmp_path / "index"
