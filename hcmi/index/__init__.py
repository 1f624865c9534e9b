"""The index that search reads: tokens of videos on disk, a FAISS index over their vectors, or the same in Milvus.

`SearchIndex` is one consistent state of an index folder; `add_videos` and `remove_videos` write the next one while
others search. `TokenStore` and `TokenWriter` read and write token files, for the export too.
"""

from hcmi.index.milvus import MilvusIndex, is_milvus, push_export
from hcmi.index.search_index import SearchIndex, read_catalog
from hcmi.index.segment import Filter
from hcmi.index.store import (
    VIDEOS_SCHEMA,
    TokenStore,
    TokenWriter,
    read_texts,
    read_videos,
    round_trip,
    table_clips,
    videos_table,
    write_parquet,
    write_texts,
)
from hcmi.index.writer import add_videos, create_index, model_card, remove_videos

__all__ = [
    "VIDEOS_SCHEMA", "Filter", "MilvusIndex", "SearchIndex", "TokenStore", "TokenWriter", "add_videos", "create_index",
    "is_milvus", "model_card", "push_export", "read_catalog", "read_texts", "read_videos", "remove_videos",
    "round_trip", "table_clips", "videos_table", "write_parquet", "write_texts",
]
