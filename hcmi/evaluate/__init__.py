"""Stage 4: how well a model finds held-out clips by their captions, and captions by their clips.

The room holds the retrieval metrics, the post-processing of scores, the plots of one evaluation and the paired
comparison of two.
"""

from hcmi.evaluate.compare import OtherRunError, compare_runs, compare_text, read_run
from hcmi.evaluate.drawing import save_figure, style_axes
from hcmi.evaluate.metrics import (
    Ranks,
    average_precision,
    difference_of_rates,
    paired_difference,
    ranks,
    summary,
    wilson,
)
from hcmi.evaluate.postprocess import FEWEST_CLIPS, choose_level_weights
from hcmi.evaluate.stage import evaluate, report_text

__all__ = [
    "FEWEST_CLIPS", "OtherRunError", "Ranks", "average_precision", "choose_level_weights", "compare_runs",
    "compare_text", "difference_of_rates", "evaluate", "paired_difference", "ranks", "read_run", "report_text",
    "save_figure", "style_axes", "summary", "wilson",
]
