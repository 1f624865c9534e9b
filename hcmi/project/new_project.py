"""`hcmi init`: a project folder outside the clone of the code, with the files that `dvc repro` and Prefect need."""

import re
import shlex
from importlib import metadata
from pathlib import Path

from hcmi.errors import MachineError
from hcmi.files import ask_to_write, atomic_file

SHARE = "share/hcmi/"       # where pyproject.toml installs the files
FILES = ("params.yaml", "dvc.yaml", "prefect.yaml", "prefect.remote.yaml", "prefect.toml", ".dvcignore", ".gitignore",
         ".dvc/config", ".dvc/.gitignore", "data/README.md", "data/raw/README.md", "data/incoming/README.md")
ACCEPTED = "data/accepted.json"     # no batch yet
MINE = "data/raw/mine"
TABLE = f"{MINE}/captions.csv"
# The stage `code` of the clone and of a project, whose code lies elsewhere: DVC asks it at every run.
OUR_CODE, INSTALLED_CODE = "    deps:\n      - hcmi\n", "    always_changed: true\n"
NO_GIT = "    no_scm = true       # no git around this folder; remove this line once there is\n"


def init_project(folder: str | Path) -> tuple[list[str], list[str]]:
    """Make the files of a project in `folder`. Returns the names of those that were made and those that were kept.

    A file that is there is never changed. Where no git repository surrounds the folder, DVC is told to do without one.

    Raises: MachineError when `folder` cannot be written, or the installation lacks its files.
    """
    folder = Path(folder)
    found = {name: _adapted(name, _content(name)) for name in (*FILES, *_presets())}
    found |= {TABLE: "video,caption\n", ACCEPTED: "[]\n"}
    if not in_git(folder):
        found[".dvc/config"] += NO_GIT
    made = [name for name in found if not (folder / name).exists()]
    ask_to_write(files=[folder / name for name in made])
    for name in made:
        with atomic_file(folder / name) as path:
            path.write_text(found[name], encoding="utf-8")
    (folder / MINE / "videos").mkdir(exist_ok=True)
    return made, [name for name in found if name not in made]


def in_git(folder: Path) -> bool:
    """Whether a git repository surrounds the folder."""
    return any((parent / ".git").exists() for parent in (folder.absolute(), *folder.absolute().parents))


def next_steps(folder: str | Path) -> list[str]:
    """What to type after `hcmi init folder`."""
    go = [] if Path(folder).resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    return [*go, f"# put your videos into {MINE}/videos, and a row for each caption into {TABLE}", "hcmi doctor",
            "dvc repro", 'hcmi search "a dog jumps into water"']


def _sources() -> dict[str, Path]:
    """The files by name: of the clone this module is in, or as they were installed."""
    clone = Path(__file__).resolve().parents[2]
    if (clone / "dvc.yaml").is_file() and (clone / "pyproject.toml").is_file():
        return {path.relative_to(clone).as_posix(): path
                for path in (*(clone / name for name in FILES), *(clone / "presets").glob("*.yaml"))}
    return {str(path).partition(SHARE)[2]: Path(str(path.locate())) for path in metadata.files("hcmi") or ()
            if SHARE in str(path)}


def _presets() -> list[str]:
    return sorted(name for name in _sources() if name.startswith("presets/"))


def _content(name: str) -> str:
    try:
        return _sources()[name].read_text(encoding="utf-8")
    except (KeyError, OSError) as error:
        raise MachineError(f"hcmi: need its file {SHARE}{name}, got an installation without it. Install it again "
                           f"with pip, or work in a clone.") from error


def _adapted(name: str, text: str) -> str:
    """A file of the clone as a project outside it needs it: with the installed code in place of the clone's."""
    if name == "dvc.yaml":
        stages = text[text.index("stages:\n"):].replace(OUR_CODE, INSTALLED_CODE)
        return f"# The pipeline: what each stage reads and writes. Made by `hcmi init`.\n{stages}"
    if name == "params.yaml":
        return re.sub(r"^(  name: )scenes( .*\n  path: )data/raw/scenes ", rf"\1folder\2{MINE}", text,
                      count=1, flags=re.MULTILINE)
    if name in ("prefect.yaml", "prefect.remote.yaml"):
        return re.sub(r"entrypoint: flows/(\w+)\.py:(\w+)", r"entrypoint: flows.\1.\2", text)
    text = re.sub(r"\[(docs/[^\]]*)\]\((?:\.\./)+\1[^)]*\)", r"\1 of hcmi", text)
    return re.sub(r"\[([^\]]*)\]\((?:\.\./)+(docs/[^)#]*)[^)]*\)", r"\1 (\2 of hcmi)", text)
