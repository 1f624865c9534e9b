"""A bucket as the folder of new videos: each of its objects is fetched once, and is a file from then on.

An object appears whole, so there is nothing to wait for. `data/incoming/bucket.json` remembers which objects have been
taken.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from hcmi.errors import DataError
from hcmi.files import write_json
from hcmi.video import VIDEO_ENDINGS

NOTES = "bucket.json"           # address of the bucket -> name of an object -> its version
FETCHED = ".bucket"             # hidden: no batch
CAPTIONS = "captions.csv"
# As the file systems of fsspec call them. A copy may restore the time of modification, so every time counts.
TAGS, TIMES = ("ETag", "etag"), ("LastModified", "mtime", "created")


def is_address(inbox: str | Path) -> bool:
    """Whether this names a bucket, such as s3://bucket/new, and not a folder."""
    return "://" in str(inbox)


@contextmanager
def fetched(address: str, incoming: Path) -> Iterator[Path]:
    """A folder of the videos of the bucket that have not been taken, with its captions.csv; gone after the block.

    The objects count as taken when the block ends without an error: a run that is killed before fetches them again.
    Raises: DataError when the bucket cannot be read.
    """
    folder, notes = incoming / FETCHED, _read(incoming / NOTES)
    shutil.rmtree(folder, ignore_errors=True)
    known = notes.get(address, {})
    try:
        there = _fetch(address, known, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if there != known:
        write_json(incoming / NOTES, notes | {address: there})


def _fetch(address: str, known: dict[str, str], folder: Path) -> dict[str, str]:
    """Fetch what is not known. Returns name -> version of every video that is in the bucket."""
    from fsspec.core import url_to_fs  # brings the client of the bucket's kind, which takes a second

    folder.mkdir(parents=True)
    try:
        bucket, root = url_to_fs(address)
        bucket.invalidate_cache()
        found = {str(PurePosixPath(path).relative_to(root)): info
                 for path, info in bucket.find(root, detail=True).items() if info["type"] == "file"
                 and ".." not in path.split("/")}       # an object may have any name: nothing is written elsewhere
        videos = {name: _version(info) for name, info in found.items() if name.lower().endswith(tuple(VIDEO_ENDINGS))}
        if any(name.startswith("videos/") for name in videos):
            (folder / "videos").mkdir()         # else a bucket with nothing new would look like one without the folder
        for name in [*(name for name in videos if known.get(name) != videos[name]), *({CAPTIONS} & found.keys())]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            bucket.get_file(f"{root}/{name}", str(folder / name))
    except ImportError as error:
        raise DataError(f"{address}: need the client of such addresses, got: {error}. For s3://, "
                        "`pip install 'hcmi[s3]'`.") from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{address}: need a bucket that can be read, got: {said}. Correct the address or the "
                        "credentials, or wait until it answers.") from error
    return videos


def _version(info: dict[str, Any]) -> str:
    found = [info[key] for key in TAGS if info.get(key)][:1] or [info[key] for key in TIMES if info.get(key)]
    return " ".join(map(str, [info["size"], *found]))


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        return {address: dict(names) for address, names in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):    # none yet, or damaged: contents are known all the same
        return {}
