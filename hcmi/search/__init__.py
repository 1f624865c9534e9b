"""Search: find videos, and the moments in them, for a text or a video.

`Retriever` answers queries from a model and an index, or from a folder of videos that it indexes by itself. An answer
can be explained: which frames match which words. `Encoder` gives the vectors alone. The rest are checks of what is
asked for, and how answers are shown.
"""

from hcmi.search.answers import check_explanation_path, hit_record, hits_text, missing_files, write_explanation
from hcmi.search.command import open_retriever
from hcmi.search.encoder import Encoder
from hcmi.search.moments import BASELINE_VIDEOS, find_moment, measure_baseline
from hcmi.search.mteb_model import MtebModel
from hcmi.search.query import check_number, check_query, check_top, parse_tags
from hcmi.search.retriever import Retriever
from hcmi.search.times import span_text, time_text

__all__ = [
    "BASELINE_VIDEOS", "Encoder", "MtebModel", "Retriever", "check_explanation_path", "check_number",
    "check_query", "check_top", "find_moment", "hit_record", "hits_text", "measure_baseline", "missing_files",
    "open_retriever", "parse_tags", "span_text", "time_text", "write_explanation",
]
