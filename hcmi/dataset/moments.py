"""Published data sets of moments, each a sentence and the part of a video that it describes.

TVR's test set has no times, and QVHighlights' had none when it was published (highlight_test_with_gt.jsonl came later).
So their validation sets are the test split, as in the publications' own tables.
"""

import re
from pathlib import Path

from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.reading import LAYOUT, Rows, field_of, json_lines_of, of_kind, pair_of, text_of
from hcmi.errors import DataError

CHARADES_LINE = re.compile(r"(\S+)\s+(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s*##(.*)")


def tvr(folder: Path, protocol: str) -> Rows:
    """TVR: JSON lines with `vid_name`, `desc` and `ts`, the start and end in seconds."""
    for split, name in (("train", "tvr_train_release.jsonl"), ("test", "tvr_val_release.jsonl")):
        for where, entry in json_lines_of(folder / name):
            start_s, end_s = _times(field_of(entry, "ts", list, where), f"{where}, ts")
            yield CaptionRow(field_of(entry, "vid_name", str, where), field_of(entry, "desc", str, where).strip(),
                             start_s, end_s, split, where)


def charades_sta(folder: Path, protocol: str) -> Rows:
    """Charades-STA: lines such as `AO8RW 0.0 6.9##a person is putting a book on a shelf.`"""
    for split in ("train", "test"):
        path = folder / f"charades_sta_{split}.txt"
        for number, line in enumerate(text_of(path).split("\n"), start=1):
            if not line.strip():
                continue
            found = CHARADES_LINE.fullmatch(line.strip())
            if not found:
                raise DataError(f"{path} row {number}: need a video, start, end, ## and a sentence, got "
                                f"{line.strip()[:60]!r}. {LAYOUT}")
            video, start, end, text = found.groups()
            yield CaptionRow(video, text.strip(), float(start), float(end), split, f"{path} row {number}")


def qvhighlights(folder: Path, protocol: str) -> Rows:
    """QVHighlights: JSON lines with `vid`, `query` and `relevant_windows`; a query gets the longest of its windows."""
    for split, name in (("train", "highlight_train_release.jsonl"), ("test", "highlight_val_release.jsonl")):
        for where, entry in json_lines_of(folder / name):
            windows = [_times(one, f"{where}, relevant_windows")
                       for one in field_of(entry, "relevant_windows", list, where)]
            if not windows:
                raise DataError(f"{where}: need relevant_windows, got none. {LAYOUT}")
            start_s, end_s = max(windows, key=lambda window: window[1] - window[0])
            yield CaptionRow(field_of(entry, "vid", str, where), field_of(entry, "query", str, where).strip(), start_s,
                             end_s, split, where)


def _times(value: object, where: str) -> tuple[float, float]:
    start_s, end_s = (float(of_kind(one, (int, float), where)) for one in pair_of(value, where))
    return start_s, end_s
