"""Published data sets: read their annotation files as rows of captions, and check the counts against the publication.

docs/datasets.md says what to download and where to put it. Each reader takes the folder and the name of a protocol, and
yields rows in the order of the files; `read_annotations` counts them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hcmi.config import DatasetConfig
from hcmi.dataset.build_clips import bare_name, place_of
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.layouts import DIDEMO_SECONDS, other_layout
from hcmi.dataset.moments import charades_sta, qvhighlights, tvr
from hcmi.dataset.reading import (
    LAYOUT,
    Rows,
    each,
    field_of,
    json_of,
    list_of,
    of_kind,
    pair_of,
    strings_of,
    table_of,
    text_of,
)
from hcmi.errors import ConfigError, DataError
from hcmi.types import SPLITS
from hcmi.video import walk_files

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
                yield from each(video, sentences, split, str(folder / "MSRVTT_data.json"))
        if ready.exists():
            yield from msrvtt_full_test(ready)
        return
    captions, _ = _msrvtt_captions(folder)
    for where, row in table_of(folder / f"MSRVTT_train.{protocol}.csv", "video_id"):
        if row["video_id"] not in captions:
            raise DataError(f"{where}: need a video with captions, got {row['video_id'][:60]!r} without. "
                            f"Download MSRVTT_data.json again.")
        yield from each(row["video_id"], captions[row["video_id"]], "train", where)
    for where, row in table_of(folder / "MSRVTT_JSFUSION_test.csv", "video_id", "sentence"):
        yield CaptionRow(row["video_id"], row["sentence"].strip(), split="test", where=where)


def _msrvtt_captions(folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and official split of each video. Without the whole file: one caption a training video, no splits."""
    whole, single = folder / "MSRVTT_data.json", folder / "train9k_one_caption.json"
    captions: dict[str, list[str]] = {}
    if not whole.exists() and single.exists():
        for number, entry in enumerate(json_of(single, list)):
            where = f"{single} entry {number}"
            captions.setdefault(field_of(entry, "video_id", str, where), []).append(field_of(entry, "desc", str, where))
        return captions, {}
    data = json_of(whole, dict)
    for number, entry in enumerate(field_of(data, "sentences", list, str(whole))):
        where = f"{whole} sentence {number}"
        captions.setdefault(field_of(entry, "video_id", str, where), []).append(field_of(entry, "caption", str, where))
    videos = enumerate(field_of(data, "videos", list, str(whole)))
    return captions, {field_of(entry, "video_id", str, f"{whole} video {number}"):
                      field_of(entry, "split", str, f"{whole} video {number}") for number, entry in videos}


def msrvtt_full_test(path: Path) -> Rows:
    """The full test split as published with retrieval code: `[{"video": "video7010.mp4", "caption": [20 strings]}]`."""
    for number, entry in enumerate(json_of(path, list)):
        where = f"{path} entry {number}"
        captions = strings_of(field_of(entry, "caption", list, where), where)
        yield from each(bare_name(field_of(entry, "video", str, where)), captions, "test", where)


def msvd(folder: Path, protocol: str) -> Rows:
    """MSVD: every caption of every video, in training and in testing."""
    path = folder / "captions_msvd.json"
    captions = json_of(path, dict)
    for split in ("train", "val", "test"):
        for video in list_of(folder / f"{split}_list.txt"):
            where = f"{path}, {video}"
            yield from each(video, strings_of(captions.get(video), where), split, where)


def lsmdc(folder: Path, protocol: str) -> Rows:
    """LSMDC 2016: clips of films, each a file with one sentence; `blind` has a test split without sentences."""
    test = "LSMDC16_annos_blindtest.csv" if protocol == "blind" else "LSMDC16_challenge_1000_publictect.csv"
    for split, name in (("train", "LSMDC16_annos_training.csv"), ("val", "LSMDC16_annos_val.csv"), ("test", test)):
        yield from lsmdc_table(folder / name, split)


def lsmdc_table(path: Path, split: str) -> Rows:
    """A file of LSMDC: tabs despite its name, no header; clip, two aligned and two extracted times, any sentence."""
    for number, line in enumerate(re.split("\r\n|\r|\n", text_of(path)), start=1):    # a sentence may hold U+2028
        if not line.strip():
            continue
        where, cells = f"{path} row {number}", line.split("\t")
        if len(cells) not in (5, 6) or not cells[0].strip():
            raise DataError(f"{where}: need five or six cells with tabs between them, the first a clip's name, got "
                            f"{len(cells)}. {LAYOUT}")
        yield CaptionRow(bare_name(cells[0].strip()), cells[5].strip() if len(cells) == 6 else None, split=split,
                         where=where)


def didemo(folder: Path, protocol: str) -> Rows:
    """DiDeMo. paragraph: the sentences of a video's beginning, which annotators saw, joined; moments: each with the
    segment that most annotators chose.
    """
    for split in ("train", "val", "test"):
        wanted = dict.fromkeys(list_of(folder / f"{split}_list.txt"))
        path = folder / f"{split}_data.json"
        sentences: dict[str, list[CaptionRow]] = {name: [] for name in wanted}
        for number, entry in enumerate(json_of(path, list)):
            where = f"{path} entry {number}"
            video, text = field_of(entry, "video", str, where), field_of(entry, "description", str, where).strip()
            if video in wanted:
                start_s, end_s = _agreed(field_of(entry, "times", list, where), where)
                sentences[video].append(CaptionRow(bare_name(video), text, start_s, end_s, split, where))
        for rows in sentences.values():
            yield from rows if protocol == "moments" else _paragraph(rows, DIDEMO_SECONDS)


def _agreed(times: list, where: str) -> tuple[float, float]:
    """Start and end in seconds of the segment that most annotators chose; of several, the first in the file."""
    votes: Counter[tuple[int, int]] = Counter()
    for pair in times:
        first, last = (of_kind(one, int, f"{where}, times") for one in pair_of(pair, f"{where}, times"))
        votes[first, last] += 1
    if not votes:
        raise DataError(f"{where}: need times, got none. {LAYOUT}")
    first, last = votes.most_common(1)[0][0]
    return SEGMENT_S * first, SEGMENT_S * (last + 1)


def activitynet(folder: Path, protocol: str) -> Rows:
    """ActivityNet Captions, tested on val_1. paragraph: a video's sentences joined; moments: each with its times."""
    for split, name in (("train", "train.json"), ("test", "val_1.json")):
        for video, entry in json_of(folder / name, dict).items():
            where = f"{folder / name}, {video}"
            sentences = strings_of(field_of(entry, "sentences", list, where), where)
            times = field_of(entry, "timestamps", list, where)
            if len(times) != len(sentences):
                raise DataError(f"{where}: need as many timestamps as sentences, got {len(times)} and "
                                f"{len(sentences)}. {LAYOUT}")
            rows = []
            for text, time in zip(sentences, times, strict=True):
                start_s, end_s = (float(of_kind(one, (int, float), f"{where}, timestamps"))
                                  for one in pair_of(time, f"{where}, timestamps"))
                rows.append(CaptionRow(video, text.strip(), start_s, end_s, split, where))
            yield from rows if protocol == "moments" else _paragraph(rows)


def vatex(folder: Path, protocol: str) -> Rows:
    """VATEX in English. retrieval: two lists divide the validation file; public: validation and public test files."""
    yield from _vatex_file(folder / "vatex_training_v1.0.json", {}, "train")
    if protocol == "public":
        yield from _vatex_file(folder / "vatex_validation_v1.0.json", {}, "val")
        yield from _vatex_file(folder / "vatex_public_test_english_v1.1.json", {}, "test")
        return
    lists = {video: split for split in ("val", "test") for video in list_of(folder / f"{split}_list.txt")}
    yield from _vatex_file(folder / "vatex_validation_v1.0.json", lists, None)


def _vatex_file(path: Path, splits: dict[str, str], default: str | None) -> Rows:
    for number, entry in enumerate(json_of(path, list)):
        where = f"{path} entry {number}"
        video = field_of(entry, "videoID", str, where)
        if split := splits.get(video, default):
            yield from each(video, strings_of(field_of(entry, "enCap", list, where), where), split, where)


def _paragraph(rows: list[CaptionRow], end_s: float | None = None) -> Rows:
    """One row for the video, or for its part before `end_s`."""
    if rows:
        yield replace(rows[0], caption=" ".join(row.caption for row in rows if row.caption), start_s=None, end_s=end_s)


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
    "tvr": Source(tvr, {"moments": {"train": Counts(17_435, 87_175), "test": Counts(2_179, 10_895)}}),
    "charades_sta": Source(charades_sta, {"moments": {"train": Counts(5_338, 12_408), "test": Counts(1_334, 3_720)}}),
    "qvhighlights": Source(qvhighlights, {"moments": {"train": Counts(None, 7_218), "test": Counts(None, 1_550)}}),
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
    expected: Mapping[str, Counts] = source.protocols[protocol]
    rows = source.read(Path(config.path), protocol)
    if other := other_layout(config.name, Path(config.path)):
        rows, expected = other[0], dict.fromkeys(other[1], Counts(None))
    videos: dict[str, set[str]] = {}
    captions: Counter[str] = Counter()
    for row in rows:
        if row.split not in (None, *SPLITS):
            raise DataError(f"{row.where}: need one of the splits {', '.join(SPLITS)}, got {row.split!r:.60}. "
                            f"{LAYOUT}")
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
