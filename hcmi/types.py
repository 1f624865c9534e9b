"""Records that cross module boundaries.

Letters in tensor names, everywhere: B batch, Q queries (texts), V videos, T frames, W words (tokens),
C clips, P phrases, D embedding, H height, X width (pixels), K views.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = ("frame_word", "clip_phrase", "video_sentence")


@dataclass(frozen=True)
class Clip:
    """One row of the manifest: a video, or the part of one between `start_s` and `end_s`, with its captions."""

    video_id: str            # unique; [A-Za-z0-9_-]+, no dots: it is a WebDataset key
    path: str                # relative to the repository root where possible, else absolute; POSIX slashes
    split: str               # train | val | test
    captions: tuple[str, ...]
    start_s: float           # seconds into the file
    end_s: float             # seconds into the file; the whole file: duration_s
    duration_s: float        # end_s - start_s
    sha256: str              # of the file's bytes
    tags: dict[str, str]     # free labels for filters and evaluation slices, e.g. {"num_events": "3"}


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

    sentence_BD: "Tensor"
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
class Hit:
    """One answer to a search."""

    rank: int
    video_id: str
    path: str
    score: float
    start_s: float                # the best moment, seconds into the file
    end_s: float
    levels: dict[str, float]      # score of each level before weighting
