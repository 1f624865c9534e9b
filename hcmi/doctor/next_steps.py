"""What to type next: in an empty folder, in a folder of videos without a project, and in a project."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from hcmi.config import DatasetConfig, Params
from hcmi.project import MINE, in_git, next_steps

CHECKPOINT = "openai/clip-vit-base-patch32"
PROJECT = "my_project"
PRESET = "dvc exp run $(hcmi overrides presets/laptop.yaml)"
TO_GIT = ["git init", "sed -i /no_scm/d .dvc/config", "git add -A", 'git commit -m "Start"']     # `dvc exp` needs git


def override(key: str, text: str) -> str:
    """`key=text` for `dvc exp run -S`, whose grammar (Hydra's) gives a meaning to spaces, accents, commas, brackets."""
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return f"{key}={text}"
    inner = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), text)
    return shlex.quote(f'{key}="{inner}"')


def is_of_project(folder: Path, params: Params | None) -> bool:
    """Whether the folder is the data set of this project."""
    return bool(params and params.dataset.path and os.path.realpath(params.dataset.path) == os.path.realpath(folder))


def of_made_videos(config: DatasetConfig) -> dict[str, Any]:
    """The report on a data set whose videos the pipeline makes or extracts. DVC needs a `dataset.path` that exists."""
    return {"problems": [], "next": ["dvc repro" if os.path.exists(config.path) else "hcmi dataset"]}


def without_videos(folder: Path, params: Params | None) -> dict[str, Any]:
    """The report on a folder that names no video: a problem, and what to type."""
    problem = f"{folder}: need at least one video file, got none. "
    if is_of_project(folder, params):
        return {"problems": [f"{problem}Put your videos into {folder / 'videos'}, and a row for each caption into "
                             f"{folder / 'captions.csv'}."], "next": ["hcmi doctor", "dvc repro"]}
    if params:
        return {"problems": [f"{problem}Name a folder with videos."], "next": ["hcmi doctor"]}
    return {"problems": [f"{problem}Make a project here and put videos into {MINE}/videos, or name a folder with "
                         "videos."], "next": [f"hcmi init {shlex.quote(str(folder))}", *next_steps(folder)]}


def with_videos(folder: Path, captions: bool, params: Params | None, little: bool = False) -> list[str]:
    """Commands for a folder that has videos. `little`: training as `params` say would learn little from them."""
    place = shlex.quote(str(folder))
    search = f'hcmi search "what you look for" --videos {place} --model {CHECKPOINT}'
    if not captions:
        return [search]
    if params is None:
        return [search, f"hcmi init {PROJECT}", f"cd {PROJECT}",
                f"$EDITOR params.yaml     # dataset.path: {folder.absolute()}", "hcmi doctor", "dvc repro"]
    if is_of_project(folder, params):
        return [*([] if in_git(Path.cwd()) else TO_GIT), PRESET] if little and params.dataset.name == "folder" else [
            "dvc repro"]
    ours = f"-S dataset.name=folder -S {override('dataset.path', str(folder))}"
    return [search, f"{PRESET} {ours}", f"dvc exp run {ours}"]
