"""The retriever: towers that embed frames and words, a head that scores them at several levels, and its model folder.

It takes pixels and strings, and gives tokens (`VideoTokens`, `TextTokens`) and similarities. A model is a Hugging Face
folder: configuration, weights, tokenizer and preprocessing. A CLIP or SigLIP checkpoint is loaded as an untrained one.
"""

from hcmi.model.cut import cut_note, words_read
from hcmi.model.describe import describe_model, description_text
from hcmi.model.encode import bucketed_similarities, concatenate, encode_texts, encode_videos, score
from hcmi.model.heads import GAIN
from hcmi.model.interaction import TOLD_SHARE
from hcmi.model.modeling import FILES, PRECISIONS, HcmiModel, load_retriever, new_retriever
from hcmi.model.text_encoder import load_text_encoder
from hcmi.model.tiles import BLOCK, similarity_blocks, tiled_similarities

__all__ = [
    "BLOCK", "FILES", "GAIN", "PRECISIONS", "TOLD_SHARE", "HcmiModel", "bucketed_similarities", "concatenate",
    "cut_note", "describe_model", "description_text", "encode_texts", "encode_videos", "load_retriever",
    "load_text_encoder", "new_retriever", "score", "similarity_blocks", "tiled_similarities", "words_read",
]
