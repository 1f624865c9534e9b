"""Annotations as other retrieval code lays them out: GRAM and VAST, T-MASS, CLIP2Video. docs/datasets.md shows each."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from hcmi.dataset.build_clips import bare_name
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.reading import Rows, each, field_of, json_of, list_of, strings_of, table_of
from hcmi.types import SPLITS

DIDEMO_SECONDS = 31.0       # CLIP4Clip and T-MASS read so much of a video: the annotators saw its first 30 seconds


def other_layout(name: str, folder: Path) -> tuple[Rows, tuple[str, ...]] | None:
    """The rows and the splits of data set `name` in a layout of other code; None where the folder holds no such file.

    Such a file is read instead of those that the data set was published with. The counts of the publication are not
    checked, because these files have often been thinned.
    """
    for names, mark, files, read in LAYOUTS:
        if name in names and (folder / mark).is_file():
            splits = tuple(split for split in SPLITS if split != "val" or (folder / files.format(split)).exists())
            return read(folder, splits), splits
    return None


def vast(folder: Path, splits: Sequence[str]) -> Rows:
    """GRAM and VAST: `descs_ret_<split>.json`, a list of `{"video_id": ..., "desc": a caption or a list of them}`."""
    for split in splits:
        path = folder / f"descs_ret_{split}.json"
        for number, entry in enumerate(json_of(path, list)):
            where = f"{path} entry {number}"
            texts = field_of(entry, "desc", (str, list), where)
            captions = [texts] if isinstance(texts, str) else strings_of(texts, f"{where}, desc")
            yield from each(bare_name(field_of(entry, "video_id", str, where)), captions, split, where)


def t_mass(folder: Path, splits: Sequence[str]) -> Rows:
    """T-MASS on DiDeMo: `didemo_<split>_label.csv`, a paragraph a video; its other data sets are laid out as ours."""
    for split in splits:
        path = folder / f"didemo_{split}_label.csv"
        for where, row in table_of(path, "video_path", "text"):
            yield CaptionRow(bare_name(PurePosixPath(row["video_path"]).name), row["text"].strip(), 0.0, DIDEMO_SECONDS,
                             split, where)


def clip2video(folder: Path, splits: Sequence[str]) -> Rows:
    """CLIP2Video on VATEX: `vatex_data.json`, `{video: {"enCap": [captions]}}`, and a list of names for each split."""
    path = folder / "vatex_data.json"
    captions = json_of(path, dict)
    for split in splits:
        for video in list_of(folder / f"{split}_list.txt"):
            where = f"{path}, {video}"
            yield from each(video, strings_of(field_of(captions.get(video), "enCap", list, where), where), split, where)


VAST = ("msrvtt", "msvd", "lsmdc", "didemo", "activitynet", "vatex")
# Data sets, the file by which the layout is known, that of each split, and the reader.
LAYOUTS: tuple[tuple[tuple[str, ...], str, str, Callable[[Path, Sequence[str]], Rows]], ...] = (
    (VAST, "descs_ret_train.json", "descs_ret_{}.json", vast),
    (("didemo",), "didemo_train_label.csv", "didemo_{}_label.csv", t_mass),
    (("vatex",), "vatex_data.json", "{}_list.txt", clip2video))
