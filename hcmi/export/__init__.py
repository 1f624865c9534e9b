"""Stage `export`: the tokens of every clip on disk, with the search index over them and the reference for drift."""

from hcmi.export.stage import export

__all__ = ["export"]
