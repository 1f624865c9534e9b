"""Published data sets: read their annotation files as rows of captions, and check the counts against the publication.

docs/datasets.md says what to download and where to put it. Each reader takes the folder and the name of a protocol, and
yields rows in the order of the files; `read_annotations` counts them.
"""

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hcmi.config import DatasetConfig
from hcmi.dataset.build_clips import bare_name, place_of
from hcmi.dataset.captions import CaptionRow
from hcmi.errors import ConfigError, DataError
from hcmi.types import SPLITS
from hcmi.video import walk_files

Rows = Iterator[CaptionRow]
SEGMENT_S = 5.0             # the unit of time of DiDeMo


@dataclass(frozen=True)
class Counts:
    """How many different videos and captions a split must have; None where the publication gives no number."""

    videos: int | None
    captions: int | None = None


@dataclass(frozen=True)
class Source:
    """A published data set: its reader, and the counts of the splits of each protocol. The first is the default.

    Where a protocol has no `val`, `dataset.val_fraction` of the training videos are held out for it, so that the best
    epoch is never chosen on the test split, as it was for many published figures.
    """

    read: Callable[[Path, str], Rows]
    protocols: dict[str, dict[str, Counts]]


# ------------------------------------------------------------------------------------------------------ reading files

def _text(path: Path) -> str:
    if path.exists() and not path.is_file():        # reading a pipe would block
        raise DataError(f"{path}: need a regular file, got something else. See docs/datasets.md.")
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: need this annotation file, found none. See docs/datasets.md.") from error
    except OSError as error:
        raise DataError(f"{path}: need a readable file, got {error.strerror}. Correct its permissions.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")       # some bytes of LSMDC's files are in this encoding


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: need JSON, got: {error}. Download the file again.") from error
    return _kind(value, kind, str(path))


def _kind(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{where}: need {wanted}, got {json.dumps(value)[:60]}. Download the file again.")
    return value


def _field(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = _kind(record, dict, where).get(key)
    return _kind(value, kind, f"{where}, {key}")


def _strings(value: Any, where: str) -> list[str]:
    return [_kind(one, str, where) for one in _kind(value, list, where)]


def _list(path: Path) -> list[str]:
    """The names in a file that has one in each line."""
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _table(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The place (for messages) and the cells of each row of a CSV file with a header."""
    reader = csv.DictReader(io.StringIO(_text(path)))
    try:
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path} row 1: need the column {missing[0]}, got "
                            f"{','.join(reader.fieldnames or ())[:60]!r}. Download the file again.")
        for number, row in enumerate(reader, start=2):
            if any(row[name] is None for name in columns):
                raise DataError(f"{path} row {number}: need {len(columns)} cells or more, got fewer. "
                                f"Download the file again.")
            yield f"{path} row {number}", row
    except csv.Error as error:
        raise DataError(f"{path}: need a CSV table, got: {error}. Download the file again.") from error


# ---------------------------------------------------------------------------------------------------------- data sets

def msrvtt(folder: Path, protocol: str) -> Rows:
    """MSR-VTT. 9k and 7k: so many training videos and the 1k-A test pairs; full: the official three splits."""
    if protocol == "full":
        captions, splits = _msrvtt_captions(folder)
        names = {"train": "train", "validate": "val", "test": "test"}
        ready = folder / "full_test_2990x20.json"
        for video, sentences in captions.items():
            split = names.get(splits.get(video, ""))
            if split in ("train", "val") or (split == "test" and not ready.exists()):
                yield from _each(video, sentences, split, str(folder / "MSRVTT_data.json"))
        if ready.exists():
            yield from msrvtt_full_test(ready)
        return
    captions, _ = _msrvtt_captions(folder)
    for where, row in _table(folder / f"MSRVTT_train.{protocol}.csv", "video_id"):
        if row["video_id"] not in captions:
            raise DataError(f"{where}: need a video with captions, got {row['video_id'][:60]!r} without. "
                            f"Download MSRVTT_data.json again.")
        yield from _each(row["video_id"], captions[row["video_id"]], "train", where)
    for where, row in _table(folder / "MSRVTT_JSFUSION_test.csv", "video_id", "sentence"):
        yield CaptionRow(row["video_id"], row["sentence"].strip(), split="test", where=where)


def _msrvtt_captions(folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and official split of each video. Without the whole file: one caption a training video, no splits."""
    whole, single = folder / "MSRVTT_data.json", folder / "train9k_one_caption.json"
    captions: dict[str, list[str]] = {}
    if not whole.exists() and single.exists():
        for number, entry in enumerate(_json(single, list)):
            where = f"{single} entry {number}"
            captions.setdefault(_field(entry, "video_id", str, where), []).append(_field(entry, "desc", str, where))
        return captions, {}
    data = _json(whole, dict)
    for number, entry in enumerate(_field(data, "sentences", list, str(whole))):
        where = f"{whole} sentence {number}"
        captions.setdefault(_field(entry, "video_id", str, where), []).append(_field(entry, "caption", str, where))
    videos = enumerate(_field(data, "videos", list, str(whole)))
    return captions, {_field(entry, "video_id", str, f"{whole} video {number}"):
                      _field(entry, "split", str, f"{whole} video {number}") for number, entry in videos}


def msrvtt_full_test(path: Path) -> Rows:
    """The full test split as published with retrieval code: `[{"video": "video7010.mp4", "caption": [20 strings]}]`."""
    for number, entry in enumerate(_json(path, list)):
        where = f"{path} entry {number}"
        captions = _strings(_field(entry, "caption", list, where), where)
        yield from _each(bare_name(_field(entry, "video", str, where)), captions, "test", where)


def msvd(folder: Path, protocol: str) -> Rows:
    """MSVD: every caption of every video, in training and in testing."""
    path = folder / "captions_msvd.json"
    captions = _json(path, dict)
    for split in ("train", "val", "test"):
        for video in _list(folder / f"{split}_list.txt"):
            where = f"{path}, {video}"
            yield from _each(video, _strings(captions.get(video), where), split, where)


def lsmdc(folder: Path, protocol: str) -> Rows:
    """LSMDC 2016: clips of films, each a file with one sentence; `blind` has a test split without sentences."""
    test = "LSMDC16_annos_blindtest.csv" if protocol == "blind" else "LSMDC16_challenge_1000_publictect.csv"
    for split, name in (("train", "LSMDC16_annos_training.csv"), ("val", "LSMDC16_annos_val.csv"), ("test", test)):
        yield from lsmdc_table(folder / name, split)


def lsmdc_table(path: Path, split: str) -> Rows:
    """A file of LSMDC: tabs despite its name, no header; clip, two aligned and two extracted times, any sentence."""
    for number, line in enumerate(re.split("\r\n|\r|\n", _text(path)), start=1):    # a sentence may hold U+2028
        if not line.strip():
            continue
        where, cells = f"{path} row {number}", line.split("\t")
        if len(cells) not in (5, 6) or not cells[0].strip():
            raise DataError(f"{where}: need five or six cells with tabs between them, the first a clip's name, got "
                            f"{len(cells)}. Download the file again.")
        yield CaptionRow(bare_name(cells[0].strip()), cells[5].strip() if len(cells) == 6 else None, split=split,
                         where=where)


def didemo(folder: Path, protocol: str) -> Rows:
    """DiDeMo. paragraph: a video's sentences joined; moments: each with the segment that most annotators chose."""
    for split in ("train", "val", "test"):
        wanted = dict.fromkeys(_list(folder / f"{split}_list.txt"))
        path = folder / f"{split}_data.json"
        sentences: dict[str, list[CaptionRow]] = {name: [] for name in wanted}
        for number, entry in enumerate(_json(path, list)):
            where = f"{path} entry {number}"
            video, text = _field(entry, "video", str, where), _field(entry, "description", str, where).strip()
            if video in wanted:
                start_s, end_s = _agreed(_field(entry, "times", list, where), where)
                sentences[video].append(CaptionRow(bare_name(video), text, start_s, end_s, split, where))
        for rows in sentences.values():
            yield from rows if protocol == "moments" else _paragraph(rows)


def _agreed(times: list, where: str) -> tuple[float, float]:
    """Start and end in seconds of the segment that most annotators chose; of several, the first in the file."""
    votes: Counter[tuple[int, int]] = Counter()
    for pair in times:
        first, last = (_kind(one, int, f"{where}, times") for one in _pair(pair, f"{where}, times"))
        votes[first, last] += 1
    if not votes:
        raise DataError(f"{where}: need times, got none. Download the file again.")
    first, last = votes.most_common(1)[0][0]
    return SEGMENT_S * first, SEGMENT_S * (last + 1)


def _pair(value: Any, where: str) -> tuple[Any, Any]:
    if len(_kind(value, list, where)) != 2:
        raise DataError(f"{where}: need two numbers, got {len(value)}. Download the file again.")
    return value[0], value[1]


def activitynet(folder: Path, protocol: str) -> Rows:
    """ActivityNet Captions, tested on val_1. paragraph: a video's sentences joined; moments: each with its times."""
    for split, name in (("train", "train.json"), ("test", "val_1.json")):
        for video, entry in _json(folder / name, dict).items():
            where = f"{folder / name}, {video}"
            sentences = _strings(_field(entry, "sentences", list, where), where)
            times = _field(entry, "timestamps", list, where)
            if len(times) != len(sentences):
                raise DataError(f"{where}: need as many timestamps as sentences, got {len(times)} and "
                                f"{len(sentences)}. Download the file again.")
            rows = []
            for text, time in zip(sentences, times, strict=True):
                start_s, end_s = (float(_kind(one, (int, float), f"{where}, timestamps"))
                                  for one in _pair(time, f"{where}, timestamps"))
                rows.append(CaptionRow(video, text.strip(), start_s, end_s, split, where))
            yield from rows if protocol == "moments" else _paragraph(rows)


def vatex(folder: Path, protocol: str) -> Rows:
    """VATEX in English. retrieval: two lists divide the validation file; public: validation and public test files."""
    yield from _vatex_file(folder / "vatex_training_v1.0.json", {}, "train")
    if protocol == "public":
        yield from _vatex_file(folder / "vatex_validation_v1.0.json", {}, "val")
        yield from _vatex_file(folder / "vatex_public_test_english_v1.1.json", {}, "test")
        return
    lists = {video: split for split in ("val", "test") for video in _list(folder / f"{split}_list.txt")}
    yield from _vatex_file(folder / "vatex_validation_v1.0.json", lists, None)


def _vatex_file(path: Path, splits: dict[str, str], default: str | None) -> Rows:
    for number, entry in enumerate(_json(path, list)):
        where = f"{path} entry {number}"
        video = _field(entry, "videoID", str, where)
        if split := splits.get(video, default):
            yield from _each(video, _strings(_field(entry, "enCap", list, where), where), split, where)


def _each(video: str, captions: list[str], split: str, where: str) -> Rows:
    for caption in captions:
        yield CaptionRow(video, caption.strip(), split=split, where=where)


def _paragraph(rows: list[CaptionRow]) -> Rows:
    if rows:
        yield replace(rows[0], caption=" ".join(row.caption for row in rows if row.caption), start_s=None, end_s=None)


ONE_K = Counts(1_000, 1_000)
DIDEMO = {"train": Counts(8_392), "val": Counts(1_065), "test": Counts(1_004)}
VATEX_TRAIN = Counts(25_991, 259_910)
SOURCES: dict[str, Source] = {
    "msrvtt": Source(msrvtt, {
        "9k": {"train": Counts(9_000), "test": ONE_K}, "7k": {"train": Counts(7_010), "test": ONE_K},
        "full": {"train": Counts(6_513, 130_260), "val": Counts(497, 9_940), "test": Counts(2_990, 59_800)}}),
    "msvd": Source(msvd, {
        "multi": {"train": Counts(1_200, 48_774), "val": Counts(100, 4_290), "test": Counts(670, 27_763)}}),
    "lsmdc": Source(lsmdc, {
        "1k": {"val": Counts(None, 7_408), "test": ONE_K}, "blind": {"val": Counts(None, 7_408)}}),
    "didemo": Source(didemo, {
        "paragraph": {**DIDEMO, "val": Counts(1_065, 1_065), "test": Counts(1_004, 1_004)}, "moments": DIDEMO}),
    "activitynet": Source(activitynet, {
        "paragraph": {"train": Counts(10_009, 10_009), "test": Counts(4_917, 4_917)},
        "moments": {"train": Counts(10_009, 37_421), "test": Counts(4_917, 17_505)}}),
    "vatex": Source(vatex, {
        "retrieval": {"train": VATEX_TRAIN, "val": Counts(1_500, 15_000), "test": Counts(1_500, 15_000)},
        "public": {"train": VATEX_TRAIN, "val": Counts(3_000, 30_000), "test": Counts(6_000, 60_000)}}),
}


# -------------------------------------------------------------------------------------------------------------- rules

def protocol_of(config: DatasetConfig) -> str:
    """The protocol's name; `default` is the data set's first. Raises: ConfigError listing the known ones."""
    known = list(SOURCES[config.name].protocols)
    if config.protocol == "default":
        return known[0]
    if config.protocol not in known:
        raise ConfigError(f"dataset.protocol: need one of default, {', '.join(known)} for {config.name}, got "
                          f"{config.protocol!r}. Correct params.yaml.")
    return config.protocol


def read_annotations(config: DatasetConfig) -> Rows:
    """All rows of the data set that `config` names. After the last one the published counts are checked.

    Raises: ConfigError for an unknown protocol; DataError when a file is missing, is not what it should be, names
    another split, or gives other counts than the publication.
    """
    source, protocol = SOURCES[config.name], protocol_of(config)
    expected = source.protocols[protocol]
    videos: dict[str, set[str]] = {}
    captions: Counter[str] = Counter()
    for row in source.read(Path(config.path), protocol):
        if row.split not in (None, *SPLITS):
            raise DataError(f"{row.where}: need one of the splits {', '.join(SPLITS)}, got {row.split!r:.60}. "
                            f"Download the annotation again; docs/datasets.md lists the files.")
        split = row.split or ""
        videos.setdefault(split, set()).add(row.video)
        captions[split] += 1
        if split == "train" and "val" not in expected and place_of(row.video, config.seed) < config.val_fraction:
            row = replace(row, split="val")
        yield row
    for split, counts in expected.items():
        found = {"videos": len(videos.get(split, ())), "captions": captions[split]}
        for what, wanted in (("videos", counts.videos), ("captions", counts.captions)):
            if wanted is not None and found[what] != wanted:
                raise DataError(f"{config.path}: need {wanted} {split} {what} for {config.name} {protocol}, got "
                                f"{found[what]}. Download the annotation again; docs/datasets.md lists the files.")


def files_by_bare_name(folder: Path) -> dict[str, str]:
    """Path of every file below `folder`/videos by its name without ending (NFC), since people convert and nest videos.

    Of two files with the same name the first in alphabetical order is taken.
    """
    found: dict[str, str] = {}
    for path in walk_files(folder / "videos") if (folder / "videos").is_dir() else ():
        found.setdefault(unicodedata.normalize("NFC", bare_name(path.name)), str(path))
    return found
