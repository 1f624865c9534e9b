"""The retriever: towers that embed frames and words, a head that scores them at several levels, and its model folder.

It takes pixels and strings, and gives tokens (`VideoTokens`, `TextTokens`) and similarities. A model is a Hugging Face
folder: configuration, weights, tokenizer and preprocessing. A checkpoint of CLIP, SigLIP or another family of
`families.py` is loaded as an untrained one.
"""

from hcmi.model.checkpoint import is_trained, load_retriever, new_retriever, zero_shot_retriever
from hcmi.model.checkpoint_files import is_name
from hcmi.model.cut import cut_note, unread
from hcmi.model.describe import describe_model, description_text
from hcmi.model.encode import (
    NotFiniteError,
    bucketed_similarities,
    check_finite,
    concatenate,
    encode_batches,
    encode_features,
    encode_frames,
    encode_precision,
    encode_texts,
    encode_videos,
    score,
)
from hcmi.model.geometry import CLIP_SQUARE, Square, check_square, shards_square
from hcmi.model.heads import GAIN
from hcmi.model.interaction import TOLD_SHARE
from hcmi.model.languages import is_foreign, warn_of_foreign
from hcmi.model.modeling import FILES, PRECISIONS, HcmiModel
from hcmi.model.on_features import HeadOnFeatures, token_states, towers_hash
from hcmi.model.patches import multiply_patches
from hcmi.model.text_encoder import load_text_encoder
from hcmi.model.tiles import BLOCK, similarity_blocks, tiled_similarities

__all__ = [
    "BLOCK", "CLIP_SQUARE", "FILES", "GAIN", "PRECISIONS", "TOLD_SHARE", "HcmiModel", "HeadOnFeatures",
    "NotFiniteError", "Square", "bucketed_similarities", "check_finite", "check_square", "concatenate", "cut_note",
    "describe_model", "description_text", "encode_batches", "encode_features", "encode_frames", "encode_precision",
    "encode_texts", "encode_videos", "is_foreign", "is_name", "is_trained", "load_retriever", "load_text_encoder",
    "multiply_patches", "new_retriever", "score", "shards_square", "similarity_blocks", "tiled_similarities",
    "token_states", "towers_hash", "unread", "warn_of_foreign", "zero_shot_retriever",
]
