"""The clips and captions of a split as tokens, by one process or by several: for evaluation, export and the index."""

from hcmi.encode.clips import Encoded, encode_clips, frame_times
from hcmi.encode.split import (
    EncodedSplit,
    captions_of,
    count_captioned,
    encode_split,
    load_split,
    require_captions,
    save_split,
)

__all__ = ["Encoded", "EncodedSplit", "captions_of", "count_captioned", "encode_clips", "encode_split", "frame_times",
           "load_split", "require_captions", "save_split"]
