"""A project with a model, its export and its figures, from which releases are made."""

import contextlib
import json
import shutil
from pathlib import Path

from model_world import shake, tiny_model
from search_world import call_hcmi

from hcmi.config import Params, load_params
from hcmi.model import load_retriever


def make_project(project: Path, folder: Path) -> Path:
    """A copy of the session's small project with models/hcmi, export/, metrics/ and plots/ in place."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data/incoming").mkdir(parents=True)
    (folder / "data/shards").symlink_to((project / "data/shards").resolve())
    shutil.copy(project / "params.yaml", folder / "params.yaml")
    (folder / "data/accepted.json").write_text("[]\n")
    train_model(folder, 0)
    return folder


def train_model(folder: Path, seed: int) -> None:
    """Replace the model by another one, and make its export and figures by the real stages."""
    model = tiny_model() if seed == 0 else shake(tiny_model(), seed)
    shutil.rmtree(folder / "models", ignore_errors=True)
    model.save_pretrained(folder / "models/hcmi")
    with contextlib.chdir(folder):
        call_hcmi("export")
        call_hcmi("evaluate")


def fingerprint(folder: Path) -> str:
    return load_retriever(folder).fingerprint


def params(folder: Path) -> Params:
    return load_params(folder / "params.yaml")


def promote(*options: str) -> dict:
    """The decision of `hcmi promote`, called in the working folder."""
    return json.loads(call_hcmi("promote", "--json", *options).stdout)


def put_batch(folder: Path, name: str, videos: list[Path], captions: dict[str, str] | None = None) -> Path:
    """A batch in data/incoming; `captions`: name of a file -> its caption."""
    batch = folder / "data/incoming" / name
    (batch / "videos").mkdir(parents=True)
    for video in videos:
        shutil.copy(video, batch / "videos" / video.name)
    if captions:
        lines = ["video,caption", *(f"{video},{caption}" for video, caption in captions.items())]
        (batch / "captions.csv").write_text("\n".join(lines) + "\n")
    return batch
