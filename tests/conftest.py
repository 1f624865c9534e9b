"""Fixtures that every test folder shares."""

import contextlib
import os
import shutil
import subprocess
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


@pytest.fixture(scope="session")
def project(films, tmp_path_factory) -> Path:
    """A project in which each verb finds its inputs: shards of films, an untrained model with its export and figures, a
    batch.
    """
    from click.testing import CliRunner
    from model_world import section, tiny_model, train_config
    from ruamel.yaml import YAML

    from hcmi.cli import main

    folder = tmp_path_factory.mktemp("project")
    (folder / "data").mkdir()
    (folder / "data/shards").symlink_to(films)
    (folder / "manifest.parquet").symlink_to(films.parent / "manifest.parquet")
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["model"], params["train"] = section().model_dump(), train_config(epochs=1).model_dump()
    params["shards"] |= {"size": 16, "num_frames": 8, "num_workers": 1}
    params["dataset"]["scenes"] |= {"num_train": 2, "num_val": 1, "num_test": 1, "num_incoming": 1}
    YAML().dump(params, folder / "params.yaml")
    some = sorted((films.parent / "films").glob("*.mp4"))[:3]
    for place in (folder / "few", folder / "incoming/batch"):
        place.mkdir(parents=True)
        for path in some:
            shutil.copy(path, place / path.name)
    tiny_model().save_pretrained(folder / "model")
    with contextlib.chdir(folder):
        for verb in ("export", "evaluate"):
            done = CliRunner().invoke(main, [verb, "--model", "model"], catch_exceptions=False)
            assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """Makes a disk of its own, of so many bytes; gone with the module's tests."""
    made = []

    def make(size_bytes: int) -> Path:
        place = tmp_path_factory.mktemp("disk")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a small disk")
        made.append(place)
        return place

    yield make
    for place in made:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def plain_user() -> list[str]:
    """The beginning of a command line that runs a program as a user to whom permissions apply."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("nothing here takes root's privileges away")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
