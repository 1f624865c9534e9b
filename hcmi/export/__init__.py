"""Stage `export`: the tokens of every clip on disk, with the search index over them and the reference for drift."""

from hcmi.export.stage import encode_clips, export

__all__ = ["encode_clips", "export"]
