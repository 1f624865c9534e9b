"""ROOM search."""

from hcmi.search.explain import background, moment
from hcmi.search.retriever import (
    BACKGROUND_VIDEOS,
    PART_HEADS,
    Retriever,
    check_query,
    hit_record,
    open_retriever,
    parse_tags,
    part_similarities,
)

__all__ = [
    "BACKGROUND_VIDEOS", "PART_HEADS", "Retriever", "background", "check_query", "hit_record", "moment",
    "open_retriever", "parse_tags", "part_similarities",
]
