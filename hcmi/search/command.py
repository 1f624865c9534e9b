"""What the verbs `hcmi search` and `hcmi serve` share; messages here name their flags."""

import os

from hcmi.config import load_params
from hcmi.errors import ConfigError
from hcmi.search.retriever import CANDIDATES, Retriever


def open_retriever(model: str, index: str | None, videos: str | None, params: str, precision: str = "float32"
                   ) -> Retriever:
    """The retriever that the options ask for. `params` may be missing, because searching a folder needs no pipeline.

    Raises: ConfigError when both `index` and `videos` are given, and as Retriever does.
    """
    uri, candidates = "export/index", CANDIDATES
    if os.path.exists(params):
        config = load_params(params).search
        uri, candidates = config.uri, config.candidates
    if videos is not None:
        if index is not None:
            raise ConfigError(f"--videos {videos}: need one place to search, got --index {index} too. Leave one out.")
        return Retriever.from_folder(videos, model, candidates, precision=precision)
    return Retriever(model, index or uri, candidates, precision)
