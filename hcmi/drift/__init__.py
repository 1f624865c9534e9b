"""ROOM drift."""

from hcmi.drift.label_free_recall import Scores, estimate_recall, recall_at_1
from hcmi.drift.profile import Profile, compare, query_columns
from hcmi.drift.sample import Reference, combined
from hcmi.drift.stage import drift, judge

__all__ = [
    "Profile", "Reference", "Scores", "combined", "compare", "drift", "estimate_recall", "judge", "query_columns",
    "recall_at_1",
]
