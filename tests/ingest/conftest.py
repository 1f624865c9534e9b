"""A project in which a release is served, made once and copied for each test."""

import contextlib
import shutil
from pathlib import Path

import pytest
from release_world import make_project, promote


@pytest.fixture(scope="session")
def released(project, tmp_path_factory) -> Path:
    folder = make_project(project, tmp_path_factory.mktemp("released") / "project")
    with contextlib.chdir(folder):
        promote()
    return folder


@pytest.fixture
def here(released, tmp_path, monkeypatch) -> Path:
    """The project, with a served release, as the working folder."""
    shutil.copytree(released, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
