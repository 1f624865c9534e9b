"""ROOM model."""

from hcmi.model.encode import encode_texts, encode_videos, join, score
from hcmi.model.modeling import FILES, HcmiModel, load_retriever, new_retriever
from hcmi.model.text_encoder import load_text_encoder
from hcmi.model.tiles import BLOCK, similarity_blocks, tiled_similarities

__all__ = [
    "BLOCK", "FILES", "HcmiModel", "encode_texts", "encode_videos", "join", "load_retriever", "load_text_encoder",
    "new_retriever", "score", "similarity_blocks", "tiled_similarities",
]
