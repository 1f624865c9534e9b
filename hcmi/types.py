"""Records that cross room boundaries.

The last letters of an array's or tensor's name are its dimensions, everywhere:

    B batch       T frames (time)           H height, pixels
    Q queries     W words, or text tokens   X width, pixels
    V videos      C clips of a video        D embedding
    N any items   P phrases of a text       K views, or captions of a clip

In pixels the last dimension is colour, RGB, and is written C as well: `frames_BTHXC`. 2 and 3 are literal sizes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from torch import Tensor

_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f]|5c)")
LEVELS = ("frame_word", "clip_phrase", "video_sentence")
SPLITS = ("train", "val", "test")


def path_text(path: str) -> str:
    """A path as text for tables and JSON: a byte of a file name that is no UTF-8 becomes `\\xe9`, as people see it.

    A path that holds such an escape by itself gets its backslash escaped, so that `path_of_text` is the inverse.
    """
    if "\\x" in path:
        path = _ESCAPED_BYTE.sub(lambda found: r"\x5c" + found[0][1:], path)
    return path if path.isascii() else "".join(
        f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in path)


def path_of_text(text: str) -> str:
    """The path that `path_text` made into text, as Python opens it (surrogateescape)."""
    return text if "\\x" not in text else _ESCAPED_BYTE.sub(
        lambda found: "\\" if found[1] == "5c" else chr(0xDC00 + int(found[1], 16)), text)


@dataclass(frozen=True)
class Clip:
    """A video, or the part of one between `start_s` and `end_s`, with its captions: from the manifest to the answer."""

    video_id: str            # unique; [A-Za-z0-9_-]+, no dots: it is a WebDataset key
    path: str                # relative to the repository root where possible, else absolute; POSIX slashes
    split: str               # one of SPLITS
    captions: tuple[str, ...]
    start_s: float           # seconds into the file
    end_s: float             # seconds into the file; the whole file: duration_s
    duration_s: float        # end_s - start_s
    sha256: str              # of the file's bytes
    tags: dict[str, str]     # free labels for filters and evaluation slices, e.g. {"num_events": "3"}

    def to_row(self) -> dict[str, Any]:
        """A row of `CLIP_SCHEMA`, which is also ready for JSON; its path is text (`path_text`)."""
        return {**vars(self), "path": path_text(self.path), "captions": list(self.captions), "tags": dict(self.tags)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Clip":
        """The clip of a row, as `to_row` made it or as Arrow reads it back; other columns are ignored.

        Raises: KeyError when a column is missing.
        """
        values = {name: row[name] for name in CLIP_SCHEMA.names}
        return cls(**{**values, "path": path_of_text(row["path"]), "captions": tuple(row["captions"] or ()),
                      "tags": dict(row["tags"] or {})})

    @property
    def content_key(self) -> tuple[str, float, float]:
        """What makes a clip the same clip: the file's bytes and the part of it."""
        return self.sha256, round(self.start_s, 3), round(self.end_s, 3)


CLIP_SCHEMA = pa.schema([
    ("video_id", pa.string()), ("path", pa.string()), ("split", pa.string()), ("captions", pa.list_(pa.string())),
    ("start_s", pa.float64()), ("end_s", pa.float64()), ("duration_s", pa.float64()), ("sha256", pa.string()),
    ("tags", pa.map_(pa.string(), pa.string()))])


@dataclass(frozen=True)
class Skip:
    """A clip that was left out, and why: one line of skipped.jsonl."""

    video_id: str
    path: str
    stage: str
    reason: str              # a short fixed word
    detail: str              # one line for people

    def to_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


class _Tokens:
    """Shows shapes instead of numbers, moves between devices, and is cut by rows."""

    def __repr__(self) -> str:
        shapes = ", ".join(f"{f.name}={tuple(getattr(self, f.name).shape)}" for f in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({shapes})"

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self, rows):
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))  # type: ignore[arg-type]

    def to(self, *args, **kwargs):
        return type(self)(*(getattr(self, f.name).to(*args, **kwargs) for f in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class VideoTokens(_Tokens):
    """A batch of videos at three levels. Vectors have length 1; weights sum to 1 over valid tokens, 0 on padding."""

    video_BD: "Tensor"
    frames_BTD: "Tensor"
    clips_BCD: "Tensor"
    frame_weights_BT: "Tensor"     # exactly 0 marks padding: the mask is `weights > 0`
    clip_weights_BC: "Tensor"

    def __post_init__(self) -> None:
        _check(self.video_BD, self.frames_BTD, self.frame_weights_BT, self.clips_BCD, self.clip_weights_BC)


@dataclass(frozen=True, repr=False)
class TextTokens(_Tokens):
    """A batch of texts at three levels, as `VideoTokens`."""

    sentence_BD: "Tensor"          # its length is the weight of this level for this text: 1, or what the head estimates
    words_BWD: "Tensor"
    phrases_BPD: "Tensor"
    word_weights_BW: "Tensor"
    phrase_weights_BP: "Tensor"

    def __post_init__(self) -> None:
        _check(self.sentence_BD, self.words_BWD, self.word_weights_BW, self.phrases_BPD, self.phrase_weights_BP)


def _check(whole_BD, fine_BND, fine_weights_BN, coarse_BND, coarse_weights_BN) -> None:
    rows, width = whole_BD.shape
    for tokens_BND, weights_BN in ((fine_BND, fine_weights_BN), (coarse_BND, coarse_weights_BN)):
        found = (tuple(tokens_BND.shape), weights_BN.shape[0])
        assert found == ((rows, weights_BN.shape[1], width), rows), (
            f"tokens {tuple(tokens_BND.shape)}, weights {tuple(weights_BN.shape)} and "
            f"whole {tuple(whole_BD.shape)} do not agree")


@dataclass(frozen=True)
class EvalBatch:
    """T frames of each of B clips, in the reader's order. Padding frames are 0 and masked False."""

    rows: list[int]
    frames_BTHXC: "Tensor"            # uint8
    frame_mask_BT: "Tensor"           # bool


@dataclass(frozen=True)
class Moment:
    """A part of a file that answers a search."""

    video_id: str                 # of the clip, or window, that it was found in
    score: float
    start_s: float                # seconds into the file
    end_s: float


@dataclass(frozen=True)
class Hit:
    """One answer to a search: a file, and the clip of it, or window, that answers best."""

    rank: int
    video_id: str
    path: str
    score: float
    start_s: float                # the best moment, seconds into the file
    end_s: float
    levels: dict[str, float]      # score, before weighting, of each level that has a weight above 0
    more: tuple[Moment, ...] = ()   # further moments of the same file, best first; no two of all share a second
