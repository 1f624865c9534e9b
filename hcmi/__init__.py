"""HCMI: text-video retrieval with hierarchical cross-modal interactions (arXiv 2204.03382)."""

__version__ = "0.1.0"
