"""The retriever that the page answers with while its model and index are trained and exported again.

A new model is in its folder minutes before its index is, so for a while the two do not belong together. DVC may delete
either one first, and a copy takes time. The page keeps the pair that it has loaded, and replaces it once the model and
the index in the folders are complete and the model has made the index.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from hcmi.errors import HcmiError
from hcmi.index import SearchIndex, read_catalog
from hcmi.model import FILES
from hcmi.search import Retriever

State = tuple[str, int, int, int, int]          # name, inode, size, times of change of content and of inode
Stamp = tuple[State | None, ...]


class FollowingRetriever:
    """`current()` returns the retriever to answer one request with. It is in memory, so its folders may be deleted.

    A newer index of the same model (videos were added or removed) is used from the next request on. An index of another
    model is loaded together with that model in a thread; until then, the old model and index answer requests. A model
    that was given as an object, as for a folder of videos, is kept. So is a model whose index is in Milvus: Milvus
    serves its newest rows itself.
    """

    def __init__(self, retriever: Retriever, say: Callable[[str], None] = lambda line: None):
        self._now = retriever.as_loaded() if isinstance(retriever.index, SearchIndex) else retriever
        self._say = say
        self._looking = threading.Lock()
        self._loader: threading.Thread | None = None
        self._tried: Stamp = ()         # the state of the folders that was tried last, with or without success
        self._waits = False             # for a complete pair; this is said once, not for each request

    def current(self) -> Retriever:
        """The retriever for one request. Any thread may call this."""
        if isinstance(self._now.index, SearchIndex):
            with self._looking:
                self._look(self._now.index)
        return self._now

    def _look(self, index: SearchIndex) -> None:
        """Change to a newer state of the index, or begin to load another model and its index."""
        if self._loader is not None and self._loader.is_alive():
            return
        stamp = self._stamp(index.folder)
        if stamp == self._tried:
            return
        self._tried = stamp
        try:
            made_by = read_catalog(index.folder)["model"]["fingerprint"]
            if made_by == self._now.fingerprint:
                self._now = self._now.with_index(index.latest())
                self._waits = False
            elif self._now.model_folder is not None:
                self._loader = threading.Thread(target=self._load, args=(stamp, index.folder), name="next model")
                self._loader.start()
        except (HcmiError, OSError) as error:
            self._wait(error)

    def _load(self, stamp: Stamp, folder: Path) -> None:
        """Load the other model and its index. If the files change meanwhile, drop both: the next request retries."""
        assert self._now.model_folder is not None, "_look checks this"
        model = self._now.model_folder
        if not self._now.model.checkpoint:      # while its folder is gone, a path such as runs/first would be a name
            model = model.absolute()
        try:
            following = Retriever(model, folder, self._now.candidates, self._now.precision).as_loaded()
        except (HcmiError, OSError) as error:
            self._wait(error)
            return
        if self._stamp(folder) == stamp:
            self._now, self._waits = following, False
            self._say(f"note: model {following.fingerprint[:12]} and its index of {len(following.index)} videos answer "
                      "from now on.")

    def _wait(self, error: Exception) -> None:
        if not self._waits:
            self._waits = True
            self._say(f"note: {error} Until model and index belong together, the loaded ones answer.")

    def _stamp(self, folder: Path) -> Stamp:
        """Differs between any two states of the files that a pair is loaded from."""
        try:
            entries = read_catalog(folder)["segments"]
            names = {name for entry in entries for name in (*entry["sizes"], entry["removed"]) if name}
        except (HcmiError, OSError):
            names = set()
        paths = [folder / "index.json", *(folder / name for name in sorted(names))]
        if self._now.model_folder is not None:
            paths += [self._now.model_folder / name for name in FILES]
        return tuple(_state(path) for path in paths)


def _state(path: Path) -> State | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return path.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
