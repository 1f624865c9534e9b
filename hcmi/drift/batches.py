"""The folders of new videos that the stage judges."""

import os
from collections.abc import Sequence
from pathlib import Path

from hcmi.errors import DriftError


def find_batches(incoming_dir: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """The folders in `incoming_dir` that hold at least one file, sorted by name; hidden folders are left out.

    `names`: return only these. A named folder without files is left out too, because the two folders that the
    pipeline names are empty with every data set but scenes.
    Raises: DriftError when there is no folder with one of `names`.
    """
    root = Path(incoming_dir)
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []
    found = [folder for folder in folders if _is_batch(folder)]
    for name in names:
        if name not in {folder.name for folder in folders}:
            raise DriftError(f"{root}: need a batch called {name!r}, got {', '.join(f.name for f in found) or 'none'}. "
                             f"Put its videos into {root / name}.")
    return [folder for folder in found if not names or folder.name in names]


def _is_batch(folder: Path) -> bool:
    if folder.name.startswith(".") or not os.path.isdir(folder):
        return False
    unlisted: list[OSError] = []    # folders that cannot be listed count as files: reading the batch reports the error
    return any(files for _, _, files in os.walk(folder, onerror=unlisted.append)) or bool(unlisted)
