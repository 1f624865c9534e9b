"""Stage 6 of the pipeline: has a new batch of videos drifted from what the model was tested on?

`drift` compares each batch in data/incoming with the held-out clips of the export, and writes a verdict for each batch:
a page for people and a JSON report. Evidently draws the distributions. `estimate_recall` estimates how well search
works on a batch whose captions are not matched to its clips.
"""

from hcmi.drift.label_free_recall import Scores, estimate_recall, recall_at_1
from hcmi.drift.profile import Profile, compare, query_columns
from hcmi.drift.reference import Reference
from hcmi.drift.sample import combined_scores
from hcmi.drift.stage import drift, judge

__all__ = [
    "Profile", "Reference", "Scores", "combined_scores", "compare", "drift", "estimate_recall", "judge",
    "query_columns", "recall_at_1",
]
