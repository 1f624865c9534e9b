"""The folders of new videos that the stage judges."""

from collections.abc import Sequence
from pathlib import Path

from hcmi.errors import DriftError
from hcmi.files import folders_with_files


def find_batches(incoming_dir: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """The folders in `incoming_dir` that hold at least one file, sorted by name; hidden folders are left out.

    `names`: return only these. A named folder without files is left out too, because the two folders that the
    pipeline names are empty with every data set but scenes.
    Raises: DriftError when there is no such folder, or none in it with one of `names`.
    """
    root = Path(incoming_dir)
    if not root.is_dir():
        raise DriftError(f"{root}: need a folder that holds a folder for each batch, got none. Correct the name or "
                         "make the folder.")
    found = folders_with_files(root)
    known = {folder.name for folder in root.iterdir() if folder.is_dir()}
    for name in names:
        if name not in known:       # `..` and `a/b` are folders too, but no names of batches
            raise DriftError(f"{root}: need a batch called {name!r}, got {', '.join(f.name for f in found) or 'none'}. "
                             f"Put its videos into {root / name}.")
    return [folder for folder in found if not names or folder.name in names]
