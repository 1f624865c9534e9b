"""HCMI: text-video retrieval with hierarchical cross-modal interactions (arXiv 2204.03382)."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`from hcmi import Retriever` loads torch; `import hcmi` alone does not."""
    if name == "Retriever":
        from hcmi.search import Retriever
        return Retriever
    raise AttributeError(f"module 'hcmi' has no attribute {name!r}")
