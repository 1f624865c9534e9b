"""Which code is installed: `python -m hcmi.project.code` prints it, for code.txt of a project outside the clone."""

import hashlib
from pathlib import Path

from hcmi import __version__


def installed_code() -> str:
    """The version, and a hash of the name and content of every file of the package but caches."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__} {digest.hexdigest()[:16]}"


if __name__ == "__main__":
    print(installed_code())
