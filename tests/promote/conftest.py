"""A project with a model, made once and copied for each test."""

import shutil
from pathlib import Path

import pytest
from release_world import make_project, train_model


@pytest.fixture(scope="session")
def made(project, tmp_path_factory) -> Path:
    """Folders first/ and second/: the same project with two models."""
    root = tmp_path_factory.mktemp("promote")
    make_project(project, root / "first")
    train_model(make_project(project, root / "second"), seed=1)
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """The project with the first model, as the working folder."""
    shutil.copytree(made / "first", tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def retrain(made, here):
    """Replaces model, export and figures, as `dvc repro` does."""
    def replace(name: str) -> None:
        for part in ("models", "export", "metrics", "plots"):
            shutil.rmtree(here / part)
            shutil.copytree(made / name / part, here / part)

    return replace
