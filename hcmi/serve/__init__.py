"""ROOM serve."""

from hcmi.serve.app import serve

__all__ = ["serve"]
