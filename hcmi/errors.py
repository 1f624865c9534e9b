"""One exception tree. The CLI prints any `HcmiError` as one line and exits 1; everything else is a bug.

Messages read `<subject>: need <X>, got <Y>. <next step>.`
"""


class HcmiError(Exception):
    """Something the user can put right: bad input, bad configuration, a missing file."""


class ConfigError(HcmiError):
    """params.yaml or a command-line value is wrong."""


class DataError(HcmiError):
    """A caption file, a manifest, a shard or a folder of videos is wrong."""


class DecodeError(DataError):
    """One video cannot be turned into frames; `reason` is a short fixed word for `skipped.jsonl`."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):  # crosses process boundaries
        return type(self), (self.reason, str(self))


class ModelError(HcmiError):
    """A model folder, checkpoint, head or backbone is missing, unknown or does not fit."""


class SearchIndexError(HcmiError):
    """A search index is missing, broken or was made by another model."""


class DriftError(HcmiError):
    """A drift profile or an incoming batch cannot be judged."""
