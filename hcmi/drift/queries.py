"""A batch of queries: what people searched for, compared with the captions that the model was tested on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hcmi.drift.causes import Cause, enough, unknown_share, unknown_words
from hcmi.drift.compare import compare
from hcmi.drift.profile import MIN_CLIPS, Profile, query_columns
from hcmi.drift.reference import Reference
from hcmi.drift.report import BatchReport
from hcmi.drift.sample import combined_scores, draw_rows
from hcmi.drift.verdict import CHANGED, OK, TOO_FEW
from hcmi.errors import DataError, shown
from hcmi.model import encode_texts
from hcmi.types import TextTokens
from hcmi.video import is_text
from hcmi.wording import plural

LOG = "queries.jsonl"


def read_queries(path: Path) -> list[dict[str, Any]]:
    """The lines of a query log: {"query": text}, and "found", the number of answers, where it is known. Empty lines do
    not count.

    Raises: DataError that names the line.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: need a readable file in UTF-8, got: {error}. Correct it.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} row {number}: need JSON, got: {error}. Correct it.") from error
        query = row.get("query") if isinstance(row, dict) else None
        if not isinstance(query, str) or not query.strip() or not is_text(query):
            raise DataError(f'{path} row {number}: need {{"query": "..."}}, got {shown(line.strip()[:60])}. '
                            "Correct it.")
        rows.append(row)
    return rows


def judge_queries(report: BatchReport, path: Path, reference: Reference, false_alarm_rate: float,
                  generator: np.random.Generator) -> None:
    """Fill in the verdict on a query log. Its queries and the tested captions are ranked among the same clips.

    Equal queries hang together. Raises: DataError when the log is wrong.
    """
    report.is_query_log = True
    rows = read_queries(path)
    report.num_found = report.num_queries = len(rows)
    known = reference.sample.texts
    if len(rows) < MIN_CLIPS or known is None or reference.gallery is None or len(known) < MIN_CLIPS:
        report.reason = TOO_FEW
        report.trouble = (f"The log has {plural(len(rows), 'query', 'queries')}; a verdict needs {MIN_CLIPS}, tested "
                          "clips with captions and clips of another split.")
        return
    chosen = [rows[row] for row in draw_rows(len(rows), generator)]
    queries = [" ".join(row["query"].split()) for row in chosen]
    texts = encode_texts(reference.model, queries)
    assert reference.scores is not None
    first = _profile(reference.sample.captions, known, reference.scores.gallery_NG, reference)
    second = _profile(queries, texts, combined_scores(reference.model, texts, reference.gallery), reference)
    report.shifts = compare(first, second, false_alarm_rate, generator)
    nothing = _nothing_found(chosen)
    words = unknown_words(np.arange(len(queries)), queries, reference.words, reference.usual_unknown, "query",
                          "queries")
    report.causes = [cause for cause in (nothing, words) if cause is not None]
    report.verdict = CHANGED if report.causes or any(shift.drifted for shift in report.shifts) else OK
    report.reason = ""


def _profile(queries: list[str], texts: TextTokens, gallery_NG: np.ndarray, reference: Reference) -> Profile:
    """The columns that need no right answer."""
    nobody_N = np.full(len(queries), -1e6)
    found = query_columns(nobody_N, gallery_NG, reference.temperature)
    words = {"caption_words": [float(len(query.split())) for query in queries],
             "unknown_words": [unknown_share(query, reference.words) for query in queries]}
    columns = found[["top1_score", "margin", "entropy"]].assign(**words)
    groups = np.unique(queries, return_inverse=True)[1]
    return Profile(columns, {"caption_embedding": texts.sentence_BD.numpy()}, groups)


def _nothing_found(rows: list[dict[str, Any]]) -> Cause | None:
    empty = [" ".join(row["query"].split()) for row in rows if row.get("found") == 0]
    if not enough(len(empty), len(rows)):
        return None
    return Cause("nothing found", f"{len(empty)} of {plural(len(rows), 'query', 'queries')} found nothing",
                 "Look at these queries: add such clips, or train with such words.", len(empty), len(rows), [],
                 [f"{query} ({count})" for query, count in Counter(empty).most_common(8)])
