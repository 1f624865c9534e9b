"""What the verbs `hcmi search` and `hcmi serve` share; messages here name their flags."""

import os

from hcmi.config import SearchConfig, WindowsConfig, load_params
from hcmi.errors import ConfigError
from hcmi.search.folder_index import WINDOWS
from hcmi.search.retriever import CANDIDATES, Retriever

LEAST_WINDOW_S = 0.5


def open_retriever(model: str, index: str | None, videos: str | None, params: str, precision: str = "float32",
                   window: float | None = None, overlap: float | None = None) -> Retriever:
    """The retriever that the options ask for. `params` may be missing, because searching a folder needs no pipeline.

    `window` and `overlap`: seconds of the windows of long videos; default: those of `params`.
    Raises: ConfigError when both `index` and `videos` are given, or the windows are wrong; and as Retriever does.
    """
    search, windows = SearchConfig(uri="export/index", candidates=CANDIDATES), WINDOWS
    if os.path.exists(params):
        config = load_params(params)
        search, windows = config.search, config.windows
    if videos is not None:
        if index is not None:
            raise ConfigError(f"--videos {videos}: need one place to search, got --index {index} too. Leave one out.")
        return Retriever.from_folder(videos, model, search.candidates, precision=precision,
                                     windows=with_options(windows, window, overlap))
    if window is not None or overlap is not None:
        raise ConfigError("--window and --overlap: need --videos FOLDER, got none. An index is divided already.")
    return Retriever(model, index or search.uri, search.candidates, precision)


def with_options(windows: WindowsConfig, window: float | None, overlap: float | None) -> WindowsConfig:
    """`windows` with the length and the overlap, in seconds, that a user has given.

    With a length alone, the overlap keeps its share of it.
    Raises: ConfigError when the length is below LEAST_WINDOW_S, or the overlap is not below the length.
    """
    seconds = windows.seconds if window is None else window
    if overlap is None:
        overlap = windows.overlap_seconds / windows.seconds * seconds
    if not LEAST_WINDOW_S <= seconds < float("inf"):
        raise ConfigError(f"--window: need at least {LEAST_WINDOW_S} seconds, got {seconds:g}. Give more.")
    if not 0 <= overlap < seconds:
        raise ConfigError(f"--overlap: need 0 or more, and less than the window's {seconds:g} seconds, got "
                          f"{overlap:g}. Give less, or a longer --window.")
    return WindowsConfig(seconds=seconds, overlap_seconds=overlap, whole_seconds=windows.whole_seconds)
