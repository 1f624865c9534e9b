"""A project with a model, made once and copied for each test."""

import shutil
from pathlib import Path

import pytest
from model_world import COLOURS, write_film
from release_world import make_project, train_model

from hcmi.dataset import is_held_out
from hcmi.types import Clip
from hcmi.video import sha256


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


@pytest.fixture(scope="session")
def held(tmp_path_factory) -> list[Path]:
    """Twenty films that no training sees when they are in a batch. They are longer than the films that tests make
    themselves, so that no two have equal bytes.
    """
    folder = tmp_path_factory.mktemp("held")
    found: list[Path] = []
    names = ((one, other, frames) for frames in range(9, 30) for one in COLOURS for other in COLOURS if one != other)
    while len(found) < 20:
        one, other, frames = next(names)
        path = write_film(folder / f"new_{one}_{other}_{frames}.mp4", [one, other], frames_each=frames)
        if is_held_out(Clip("film", str(path), "train", (), 0.0, 1.0, 1.0, sha256(path), {})):
            found.append(path)
    return found
