"""HCMI: text-video retrieval with hierarchical cross-modal interactions (arXiv 2204.03382)."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`from hcmi import Retriever` and `Encoder` load torch; `import hcmi` alone does not."""
    if name in ("Encoder", "Retriever"):
        import hcmi.search
        return getattr(hcmi.search, name)
    raise AttributeError(f"module 'hcmi' has no attribute {name!r}")
