"""Stage 6 of the pipeline: has a new batch of videos changed from what the model was tested on, and does search suffer?

`drift` compares each batch in data/incoming with the held-out clips of the export, and writes a verdict for each batch:
a page for people and a JSON report. Evidently shows the distributions and the tests. `estimate_recall` estimates how
well search works on a batch whose captions are not matched to its clips.
"""

from hcmi.drift.compare import compare
from hcmi.drift.damage import DAMAGES, damage
from hcmi.drift.history import write_history
from hcmi.drift.judging import conclude, judge
from hcmi.drift.label_free_recall import Scores, estimate_recall, recall_at_1
from hcmi.drift.profile import Profile, query_columns
from hcmi.drift.recall_from_clips import Clips
from hcmi.drift.reference import Reference
from hcmi.drift.report import BatchReport
from hcmi.drift.sample import Sample, combined_scores
from hcmi.drift.stage import drift

__all__ = [
    "DAMAGES", "BatchReport", "Clips", "Profile", "Reference", "Sample", "Scores", "combined_scores", "compare",
    "conclude", "damage", "drift", "estimate_recall", "judge", "query_columns", "recall_at_1", "write_history",
]
