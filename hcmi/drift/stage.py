"""Stage `drift`: compare each incoming batch with the reference that export wrote; write a page and a verdict for each.

The limits come from `profile.compare`. Evidently's tests compare its own distances with them and give the verdict.
Equal input gives equal bytes: the outputs hold no dates and no random ids.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hcmi.config import Params
from hcmi.drift.batches import find_batches
from hcmi.drift.label_free_recall import Scores, estimate_recall, recall_at_1
from hcmi.drift.page import render
from hcmi.drift.pictures import draw_examples
from hcmi.drift.profile import MIN_CLIPS, compare
from hcmi.drift.reference import Reference
from hcmi.drift.report import BatchReport
from hcmi.drift.sample import count_reasons, read_batch, unreadable
from hcmi.drift.summary import DRIFT, OK, SMALL
from hcmi.errors import DataError, shown
from hcmi.evaluate import difference_of_rates
from hcmi.files import ask_to_write, atomic_dir
from hcmi.model import load_retriever
from hcmi.progress import track
from hcmi.runtime import pick_device, tune_allocator


def drift(*, incoming_dir: str | Path, model_dir: str | Path, export_dir: str | Path, shards_dir: str | Path,
          out_dir: str | Path, params: Params, batches: Sequence[str] = ()) -> dict[str, Any]:
    """Judge each batch in `incoming_dir`, or only `batches`; write index.html and report.json; return the latter.

    A batch is a folder in the `folder` format, or a folder of videos without captions; empty folders are ignored. A
    batch that cannot be read gets the verdict `unreadable` and raises nothing.
    Raises: ModelError, DriftError, DataError or SearchIndexError when the model, the export, the shards or `batches`
    are wrong; MachineError when `out_dir` cannot be written, which is checked first.
    """
    ask_to_write(folders=[out_dir])
    os.environ.setdefault("DO_NOT_TRACK", "1")      # Evidently's usage statistics
    folders = find_batches(incoming_dir, batches)
    reports: list[BatchReport] = []
    card: dict[str, Any] = {"clips": 0, "captioned": 0}
    reference = None
    if folders:
        tune_allocator()
        model = load_retriever(model_dir, pick_device("auto"))
        reference = Reference(model, export_dir, shards_dir, np.random.default_rng(params.drift.seed))
        card = {"clips": len(reference.sample), "captioned": len(reference.sample.captioned)}
        reports = [judge(folder, reference, params, shards_dir) for folder in track(folders, "drift", unit="batch")]
    result = {"verdicts": {report.name: report.verdict for report in reports},
              "false_alarm_rate": params.drift.false_alarm_rate, "seed": params.drift.seed, "reference": card,
              "batches": [report.to_record() for report in reports]}
    page = render(result, reports, reference.profile if reference else None, _pictures(reports, reference, params),
                  _evidently_library(reports), str(incoming_dir), batches)
    with atomic_dir(out_dir) as folder:
        (folder / "report.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "index.html").write_text(page, encoding="utf-8")
    return result


def _pictures(reports: list[BatchReport], reference: Reference | None, params: Params) -> dict[str, list[dict]]:
    """Batch name -> examples; the reference's are under ""."""
    samples = {report.name: report.sample for report in reports if report.sample is not None}
    if reference is None or not samples:
        return {}
    found = draw_examples([reference.sample, *samples.values()], params.shards.decode_timeout_s,
                     np.random.default_rng(params.drift.seed))
    return dict(zip(["", *samples], found, strict=True))


def _evidently_library(reports: list[BatchReport]) -> str:
    if not any(report.evidently_page for report in reports):
        return ""
    from hcmi.drift.evidently_report import library

    return library()


def judge(folder: Path, reference: Reference, params: Params, shards_dir: str | Path) -> BatchReport:
    """Read, compare and judge one batch. Its random draws depend only on the seed and the batch's name."""
    report = BatchReport(shown(folder.name))
    generator = np.random.default_rng([params.drift.seed, zlib.crc32(os.fsencode(folder.name))])
    try:
        report.sample, report.skipped, report.num_found = read_batch(folder, reference.model, params,
                                                                     reference.precision, shards_dir, generator)
    except DataError as error:
        report.why = str(error)
        return report
    limit = params.shards.max_skip_fraction
    failed = unreadable(report.skipped)
    if report.sample is None or len(failed) > limit * report.num_found:
        report.why = (f"{len(failed)} of {report.num_found} clips cannot be read ({count_reasons(failed)}); "
                      f"at most {limit:.0%} may fail.")
        return report
    report.profile, scores = reference.profile_of(report.sample)
    report.shifts = compare(reference.profile, report.profile, params.drift.false_alarm_rate, generator)
    measure_search_quality(report, scores, reference.scores, generator)
    smallest = min(len(report.sample), len(reference.sample))
    if smallest < MIN_CLIPS or not report.shifts:
        who = "The reference" if len(reference.sample) == smallest < len(report.sample) else "The batch"
        report.verdict, report.why = SMALL, f"{who} has {smallest} clips; a verdict needs {MIN_CLIPS}."
        return report
    from hcmi.drift.evidently_report import compare_with_evidently

    report.failed, report.evidently_page = compare_with_evidently(reference.profile, report.profile, report.shifts)
    report.verdict = DRIFT if report.failed else OK
    return report


def measure_search_quality(report: BatchReport, batch: Scores | None, reference: Scores | None,
                   generator: np.random.Generator) -> None:
    """Fill in R@1 measured, expected and estimated: each caption's own clip competes with the gallery."""
    if batch is None or reference is None or min(len(batch), len(reference)) < MIN_CLIPS:
        return
    report.gallery = batch.gallery_NG.shape[1]
    report.measured, report.expected = recall_at_1(batch), recall_at_1(reference)
    hits, known_hits = (recall_at_1(scores) / 100 * len(scores) for scores in (batch, reference))
    low, high = difference_of_rates(known_hits, len(reference), hits, len(batch))
    report.difference = 100 * low, 100 * high
    rows = generator.choice(len(batch), min(len(batch), len(reference)), replace=False)
    report.estimate = estimate_recall(batch[rows], reference, generator)
