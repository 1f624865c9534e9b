"""Causes of a change that have a name, each with its own advice. Pure."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from hcmi.drift.label_free_recall import Scores, exchanged_captions
from hcmi.types import Clip, Skip
from hcmi.wording import plural

COPY = 0.995                # cosine of the vectors of two clips that show the same, at least [ours]
SAME_LOOK = 16.0            # of 255, by which the parts of two frames that show the same may differ [ours]
COPY_CHANCE = 1 / 50_000    # share of pairs of unrelated clips that a model may take for copies [ours]
FEWEST, LEAST_SHARE = 3, 0.03       # of a batch's clips; fewer are chance and no cause [ours]
SHOWN_WORDS = 8
TRAIN_WITH = "Add clips and captions like these to the training data and train again."


@dataclass(frozen=True)
class Cause:
    """What was found, in how many of how many clips, and what to do about it. `rows`: of the sample."""

    name: str
    sentence: str
    advice: str
    count: int
    total: int
    rows: list[int] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def to_record(self) -> dict:
        return {name: getattr(self, name) for name in ("name", "sentence", "advice", "count", "total", "details")}


def words_of(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def unknown_share(caption: str, known: Collection[str]) -> float:
    """Share of a caption's words that no caption of the training and validation clips has."""
    words = words_of(caption)
    return sum(word not in known for word in words) / max(len(words), 1)


def enough(count: int, total: int, usual: float = 0.0) -> bool:
    """Whether `count` of `total` is a cause. `usual`: the share among the tested clips."""
    expected = usual * total
    return count >= max(FEWEST, LEAST_SHARE * total) and count > expected + 3 * (expected + 1) ** 0.5 * (usual > 0)


def repeats(clips: Sequence[Clip], rows_VD: np.ndarray, frames: Sequence[np.ndarray], limit: float) -> list[int]:
    """The clips that show the same as an earlier one: equal files, or vectors and middle frames that are nearly equal.

    `limit`: of the cosine of the vectors. The vectors alone do not tell: a model that knows nothing like these clips
    may have one vector for all of them.
    """
    seen: set = set()
    sims_VV = np.tril(rows_VD @ rows_VD.T, -1)
    looks_VL = np.stack([look_of(frame) for frame in frames])
    rows = []
    for row, clip in enumerate(clips):
        near = np.flatnonzero(sims_VV[row] > limit)
        if clip.content_key in seen or (np.abs(looks_VL[near] - looks_VL[row]).max(1) <= SAME_LOOK).any():
            rows.append(row)
        seen.add(clip.content_key)
    return rows


def look_of(frame_HX3: np.ndarray) -> np.ndarray:
    """The means [768] of 16 x 16 equal parts of a frame. What does not fill a part is left out."""
    high, wide = (side // 16 for side in frame_HX3.shape[:2])
    parts = frame_HX3[:16 * high, :16 * wide].reshape(16, high, 16, wide, 3)
    return parts.mean((1, 3), dtype=np.float32).ravel()


def copies_within(clips: Sequence[Clip], rows_VD: np.ndarray, frames: Sequence[np.ndarray], limit: float, usual: float
                  ) -> Cause | None:
    """Clips that show the same as an earlier one of the batch. `usual`: the share of as many of the tested clips."""
    rows = repeats(clips, rows_VD, frames, limit)
    if not enough(len(rows), len(clips), usual):
        return None
    return Cause("copies within the batch", f"{plural(len(rows), 'clip')} of {len(clips)} repeat another clip of the "
                 "batch", "Remove the copies: they count several times in every figure here.", len(rows), len(clips),
                 rows)


def copies_of_known(clips: Sequence[Clip], nearest_V: np.ndarray, known: Collection[str], limit: float,
                    usual: float) -> Cause | None:
    """Clips that the index has already. `known`: sha256 of its files. `usual`: the share of the tested clips."""
    rows = [row for row, clip in enumerate(clips) if clip.sha256 in known or nearest_V[row] > limit]
    if not enough(len(rows), len(clips), usual):
        return None
    return Cause("copies of known clips", f"{plural(len(rows), 'clip')} of {len(clips)} are in the index already",
                 "Leave the copies out: they teach the model nothing, and search would answer with both.",
                 len(rows), len(clips), rows)


def wrong_captions(scores: Scores, captioned: np.ndarray, captions: Sequence[str],
                   temperature: float) -> tuple[Cause | None, np.ndarray]:
    """The cause, and the captions that it is about: each finds another clip of the batch instead of its own."""
    found = exchanged_captions(scores, temperature)
    if not enough(len(found), len(scores)):
        return None, found[:0]
    said = [f"{captions[row]}" for row in found[:SHOWN_WORDS]]
    return Cause("wrong captions", f"{plural(len(found), 'caption')} of {len(scores)} probably "
                 "belong to another clip of the batch",
                 "Check which video each line of captions.csv names; search is not at fault.",
                 len(found), len(scores), captioned[found].tolist(), said), found


def has_new_words(captions: Sequence[str], known: Collection[str]) -> np.ndarray:
    """bool [N]: the captions with words that no caption of the training and validation clips has."""
    return np.array([bool(known) and unknown_share(caption, known) > 0 for caption in captions], bool)


def unknown_words(captioned: np.ndarray, captions: Sequence[str], known: Collection[str], usual: float,
                  what: str = "caption", plural_of: str = "") -> Cause | None:
    """Captions with words that the model was not trained on. `usual`: the share of the tested captions that have some.

    `what`, `plural_of`: the word for a caption.
    """
    if not known or not captions:
        return None
    new = [[word for word in words_of(caption) if word not in known] for caption in captions]
    rows = [row for row, words in enumerate(new) if words]
    shares = [unknown_share(caption, known) for caption in captions]
    foreign = float(np.median(shares)) > 0.5 and usual < 0.9
    if not foreign and not enough(len(rows), len(captions), usual):
        return None
    counts = Counter(word for words in new for word in words)
    top = [f"{word} ({count})" for word, count in counts.most_common(SHOWN_WORDS)]
    advice = ("Translate the captions, or use a model for their language." if foreign else
              "If people will search with these words, train with captions that use them.")
    listed = "mostly words of another language or alphabet" if foreign else ", ".join(top[:4])
    return Cause("unknown words", f"{plural(len(rows), what, plural_of)} of {len(captions)} "
                 f"have words that no training caption has: {listed}",
                 advice, len(rows), len(captions), captioned[rows].tolist(), top)


def empty_captions(skipped: Sequence[Skip], num_captions: int) -> Cause | None:
    """Rows of captions.csv without a caption. `num_captions`: of the whole batch, as the rows are."""
    empty = [skip for skip in skipped if skip.reason == "empty_caption"]
    total = len(empty) + num_captions
    if not enough(len(empty), total):
        return None
    which = "All" if not num_captions else f"{len(empty)} of {total}"
    return Cause("empty captions", f"{which} captions are empty",
                 "Fill in the captions: without them nobody can say whether search still finds these clips.",
                 len(empty), total, [], [skip.path for skip in empty[:SHOWN_WORDS]])
