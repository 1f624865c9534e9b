"""Where a release comes from: the data, the code and the parameters."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from hcmi import __version__
from hcmi.releases import now


def lineage(folder: Path) -> dict[str, Any]:
    """For release.json. `folder` has plots/run.json, and copies of params.yaml and dvc.lock where there are some."""
    card = json.loads((folder / "plots" / "run.json").read_text(encoding="utf-8"))
    return {"made": now(), "data": card["data"], "versions": card["versions"], "code": _code(),
            **{name.replace(".", "_") + "_sha256": _sha256(folder / name) for name in ("params.yaml", "dvc.lock")}}


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _code() -> dict[str, Any]:
    """The version, the git revision of the working folder, and whether tracked files differ from it."""
    revision, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"hcmi": __version__, "revision": revision, "changed": None if status is None else bool(status)}


def git(*arguments: str) -> str | None:
    """What git prints; None without git, a repository or a commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
