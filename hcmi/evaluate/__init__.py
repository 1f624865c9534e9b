"""ROOM evaluate."""

from hcmi.evaluate.compare import compare, compare_text
from hcmi.evaluate.figures import save, style
from hcmi.evaluate.metrics import difference_of_rates, ranks, wilson
from hcmi.evaluate.postprocess import choose_level_weights
from hcmi.evaluate.split import encode_split
from hcmi.evaluate.stage import evaluate, report_text

__all__ = [
    "choose_level_weights", "compare", "compare_text", "difference_of_rates", "encode_split", "evaluate", "ranks",
    "report_text", "save", "style", "wilson",
]
