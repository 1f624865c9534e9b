"""ROOM export."""

from hcmi.export.stage import encode_batches, export

__all__ = ["encode_batches", "export"]
