"""What the verbs `hcmi search` and `hcmi serve` share; messages here name their flags."""

import os

from hcmi.config import LEAST_STEP_S, SearchConfig, WindowsConfig, load_params
from hcmi.errors import ConfigError, HcmiError
from hcmi.model import load_retriever
from hcmi.releases import served_paths
from hcmi.search.folder_index import WINDOWS
from hcmi.search.query import check_words
from hcmi.search.retriever import CANDIDATES, Retriever

MODEL, EXPORT = "models/hcmi", "export/index"
LEAST_WINDOW_S = 0.5


def open_retriever(model: str | None, index: str | None, videos: str | None, params: str, precision: str = "float32",
                   window: float | None = None, overlap: float | None = None, shots: bool = False,
                   follow: bool = False, query: str = "") -> Retriever:
    """The retriever that the options ask for. There may be no params.yaml: searching a folder needs no pipeline.

    Without `model` and `index` it is over the current release, where there is one and search.uri is the default; with
    `follow`, over the link to it, so that a later release is found there. `window` and `overlap`: seconds of the
    windows of long videos; default: those of `params`. `shots`: from cut to cut, whatever `params` says.
    `query`: is checked before a folder is read, which may take long.
    Raises: ConfigError when both `index` and `videos` are given, the windows are wrong, or the query cannot be
    understood; and as Retriever does.
    """
    search, windows = SearchConfig(uri=EXPORT, candidates=CANDIDATES), WINDOWS
    if os.path.exists(params) or params != "params.yaml":
        config = load_params(params)
        search, windows = config.search, config.windows
    served = served_paths()
    if videos is not None:
        if index is not None:
            raise ConfigError(f"--videos {videos}: need one place to search, got --index {index} too. Leave one out.")
        windows = with_options(windows, window, overlap, shots)
        loaded = load_retriever(model or (served[0] if served else MODEL), precision=precision)
        if query:
            check_words(query, loaded)
        return Retriever.from_folder(videos, loaded, search.candidates, windows=windows)
    if window is not None or overlap is not None or shots:
        raise ConfigError("--window, --overlap and --shots: need --videos FOLDER, got none. An index is divided "
                          "already.")
    if served is not None and model is None and index is None and search.uri == EXPORT:
        return _served(served, search.candidates, precision, follow)
    return Retriever(model or MODEL, index or search.uri, search.candidates, precision)


def _served(paths: tuple[str, str], candidates: int, precision: str, follow: bool) -> Retriever:
    """A retriever over the release that the link points at; loaded again if another one took its place meanwhile."""
    while True:
        model, index = before = tuple(os.path.realpath(path) for path in paths)
        if follow:
            model, index = paths
        try:
            return Retriever(model, index, candidates, precision)
        except (HcmiError, OSError):
            if tuple(os.path.realpath(path) for path in paths) == before:
                raise


def with_options(windows: WindowsConfig, window: float | None, overlap: float | None, shots: bool = False
                 ) -> WindowsConfig:
    """`windows` with the length and the overlap, in seconds, and the cut that a user has given.

    With a length alone, the overlap keeps its share of it.
    Raises: ConfigError when the length is below LEAST_WINDOW_S, or two windows begin at almost the same time.
    """
    seconds = windows.seconds if window is None else window
    if overlap is None:
        overlap = windows.overlap_seconds / windows.seconds * seconds
    if not LEAST_WINDOW_S <= seconds < float("inf"):
        raise ConfigError(f"--window: need at least {LEAST_WINDOW_S} seconds, got {seconds:g}. Give more.")
    if not 0 <= overlap <= seconds - LEAST_STEP_S:
        raise ConfigError(f"--overlap: need 0 or more, and at least {LEAST_STEP_S} less than the window's {seconds:g} "
                          f"seconds, got {overlap:g}. Give less, or a longer --window.")
    return windows.model_copy(update={"cut": "shots" if shots else windows.cut, "seconds": seconds,
                                      "overlap_seconds": overlap})
