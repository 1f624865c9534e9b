"""Stage `drift`: compare each incoming batch with the reference that export wrote; write a page and a verdict for each.

`judging.py` decides. Evidently shows the same comparisons, and gives a snapshot for its own interface.
Equal input gives equal bytes: the outputs hold no dates and no random ids.
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hcmi.config import Params
from hcmi.dataset import table_cells
from hcmi.drift.batches import find_batches
from hcmi.drift.history import newest_records
from hcmi.drift.judging import judge
from hcmi.drift.learned import Learned, learn
from hcmi.drift.page import render
from hcmi.drift.pictures import at_random, draw, farthest, lost
from hcmi.drift.reference import Reference
from hcmi.drift.report import TO_WRITE, BatchReport
from hcmi.drift.verdict import CHANGED, HURT
from hcmi.errors import ConfigError, shown
from hcmi.files import ask_to_write, atomic_dir, is_passed_over
from hcmi.model import load_retriever
from hcmi.progress import track
from hcmi.runtime import pick_device, tune_allocator

MAX_TO_WRITE = 50           # clips in captions_to_write.csv [ours]


def drift(*, incoming_dir: str | Path, model_dir: str | Path, export_dir: str | Path, shards_dir: str | Path,
          out_dir: str | Path, params: Params, batches: Sequence[str] = (), learn_from: str | Path | None = None,
          accepted: str | Path = "data/accepted.json") -> dict[str, Any]:
    """Judge each batch in `incoming_dir`, or only `batches`; write index.html and report.json; return the latter.

    A batch is a folder in the `folder` format, or a folder of videos without captions; empty folders are ignored. A
    batch that cannot be read gets the verdict `cannot tell` and raises nothing. `learn_from`: a folder of reports; the
    limits then also allow what those of its batches showed that the list `accepted` names.
    Raises: ModelError, DriftError, DataError or SearchIndexError when the model, the export, the shards or `batches`
    are wrong; MachineError when `out_dir` cannot be written, which is checked first.
    """
    _check_is_no_folder_of_reports(Path(out_dir), batches)
    ask_to_write(folders={out_dir: "report.json"})
    os.environ.setdefault("DO_NOT_TRACK", "1")      # Evidently's usage statistics
    folders = find_batches(incoming_dir, batches)
    reports: list[BatchReport] = []
    card: dict[str, Any] = {"clips": 0, "captioned": 0}
    reference, learned = None, Learned()
    known = None if learn_from is None else newest_records(learn_from)  # before the long work: a wrong name is refused
    if folders:
        tune_allocator()
        model = load_retriever(model_dir, pick_device("auto"))
        reference = Reference(model, export_dir, shards_dir, np.random.default_rng(params.drift.seed))
        card = reference.card
        if known is not None:
            learned = learn(known, accepted, card["model"])
        for folder in track(folders, "drift", unit="batch"):
            reports.append(judge(folder, reference, params, shards_dir, learned))
            _add_evidently(reports[-1], reference)
    taught = [learned.without(report.name) for report in reports]
    result = {"verdicts": {report.name: report.verdict for report in reports},
              "false_alarm_rate": params.drift.false_alarm_rate, "seed": params.drift.seed, "reference": card,
              "learned_from": max((len(some.batches) for some in taught if some.factors), default=0),
              "batches": [report.to_record() for report in reports]}
    page = render(result, reports, reference.profile if reference else None,
                  _pictures(reports, reference, params, out_dir), _evidently_library(reports), str(incoming_dir),
                  batches)
    with atomic_dir(out_dir) as out:
        (out / "report.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (out / "index.html").write_text(page, encoding="utf-8")
        for folder, report in zip(folders, reports, strict=True):
            _write_captions_to_write(report, folder, out)
            if report.evidently_snapshot:
                (out / f"{report.name}.evidently.json").write_text(report.evidently_snapshot, encoding="utf-8")
    return result


def _check_is_no_folder_of_reports(out_dir: Path, batches: Sequence[str]) -> None:
    """A report has no folders in it; one that was written into the folder of all reports does not change that."""
    names = sorted(path.name for path in out_dir.iterdir() if path.is_dir() and not is_passed_over(path.name)) \
        if out_dir.is_dir() else []
    if names or (out_dir / "judged.json").exists():
        raise ConfigError(f"{out_dir}: need a folder for this report, which is replaced, got one with "
                          f"{shown(names[0]) if names else 'judged.json'} in it. Name a folder in it, such as "
                          f"{out_dir / (batches[0] if batches else 'BATCH')}.")


def _pictures(reports: list[BatchReport], reference: Reference | None, params: Params,
              page_dir: str | Path) -> dict[str, dict[str, list[dict]]]:
    """Batch name -> kind -> examples; the reference's are under ""."""
    if reference is None:
        return {}
    generator = np.random.default_rng(params.drift.seed)
    wanted = {("", "random"): at_random(reference.sample, generator)}
    for report in reports:
        if report.sample is not None:
            wanted[report.name, "random"] = at_random(report.sample, generator)
            wanted[report.name, "far"] = farthest(report)
            wanted[report.name, "lost"] = lost(report, reference.gallery_clips)
    drawn = draw(list(wanted.values()), params.shards.decode_timeout_s, page_dir)
    found: dict[str, dict[str, list[dict]]] = {}
    for (name, kind), some in zip(wanted, drawn, strict=True):
        found.setdefault(name, {})[kind] = some
    return found


def _add_evidently(report: BatchReport, reference: Reference) -> None:
    if not report.shifts or report.sample is None:
        return
    from hcmi.drift.evidently_report import report_with_evidently

    assert report.profile is not None
    texts = [[sample.caption_of.get(row, "") for row in range(len(sample))]
             for sample in (reference.sample, report.sample)]
    found = report_with_evidently(report.name, report.verdict, reference.profile, report.profile,
                                  (texts[0], texts[1]), report.shifts, report.severity)
    report.evidently_page, report.evidently_snapshot = found.page, found.snapshot


def _write_captions_to_write(report: BatchReport, batch: Path, out: Path) -> None:
    """<batch>.captions_to_write.csv: the clips whose captions would teach the model most, those that lost first.

    A caption that is known is filled in. It can be the captions.csv of the folder `batch` as it is.
    """
    sample, profile = report.sample, report.profile
    if report.verdict not in (HURT, CHANGED) or sample is None or profile is None:
        return
    nearest_V = profile.columns.get("nearest_known", pd.Series(np.zeros(len(sample)))).to_numpy()
    row_of = {clip.video_id: row for row, clip in enumerate(sample.clips)}
    rows = dict.fromkeys([*(row_of[one["video_id"]] for one in report.lost), *np.argsort(nearest_V).tolist()])
    with open(out / f"{report.name}{TO_WRITE}", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video", "caption", "start", "end"))
        for row in list(rows)[:MAX_TO_WRITE]:
            name, start, end = table_cells(sample.clips[row], batch)
            writer.writerow((name, sample.caption_of.get(row, ""), start, end))


def _evidently_library(reports: list[BatchReport]) -> str:
    if not any(report.evidently_page for report in reports):
        return ""
    from hcmi.drift.evidently_report import library

    return library()
