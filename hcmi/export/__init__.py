"""Stage `export`: the tokens of every clip on disk, with the search index over them and the reference for drift."""

from hcmi.export.stage import encode_batches, export

__all__ = ["encode_batches", "export"]
