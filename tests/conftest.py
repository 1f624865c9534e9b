"""Fixtures that every test folder shares."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos, captions and annotation files that live beside a developer's checkout, not in it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared sample data is not there: {folder}")
    return folder


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    """Shards of plain two-colour films: 24 to train on, 3 to validate, 3 to test; each has two captions."""
    from model_world import make_shards

    return make_shards(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="session")
def undisturbed(films, tmp_path_factory) -> Path:
    """A short training run from start to end."""
    from train_world import run

    folder = tmp_path_factory.mktemp("undisturbed")
    run(films, folder)
    return folder
