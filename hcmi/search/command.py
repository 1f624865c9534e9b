"""What the verbs `hcmi search` and `hcmi serve` share; messages here name their flags."""

import os

from hcmi.config import load_params
from hcmi.errors import ConfigError, HcmiError
from hcmi.releases import served_paths
from hcmi.search.retriever import CANDIDATES, Retriever

MODEL, EXPORT = "models/hcmi", "export/index"


def open_retriever(model: str | None, index: str | None, videos: str | None, params: str, precision: str = "float32",
                   follow: bool = False) -> Retriever:
    """The retriever that the options ask for. `params` may be missing, because searching a folder needs no pipeline.

    Without `model` and `index` it is over the current release, where there is one and search.uri is the default; with
    `follow`, over the link to it, so that a later release is found there.
    Raises: ConfigError when both `index` and `videos` are given, and as Retriever does.
    """
    uri, candidates = EXPORT, CANDIDATES
    if os.path.exists(params):
        config = load_params(params).search
        uri, candidates = config.uri, config.candidates
    served = served_paths()
    if videos is not None:
        if index is not None:
            raise ConfigError(f"--videos {videos}: need one place to search, got --index {index} too. Leave one out.")
        return Retriever.from_folder(videos, model or (served[0] if served else MODEL), candidates, precision=precision)
    if served is not None and model is None and index is None and uri == EXPORT:
        return _served(served, candidates, precision, follow)
    return Retriever(model or MODEL, index or uri, candidates, precision)


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
