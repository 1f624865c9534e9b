"""Videos of different splits that look like copies: encoded again, resized or in another container. [ours]"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product

MOST_BITS = 4           # of the 64 of two looks that may differ
BANDS = tuple((13 * band, (1 << (12 if band == 4 else 13)) - 1) for band in range(5))     # shift and mask
SECONDS = 0.5           # by which the lengths of two copies may differ
ORDER = ("train", "val", "test")        # what is in an earlier split must not look like what is in a later one
Video = tuple[str, str, float, int]     # path, split, seconds, and look (`hcmi.video.packets.look_of`)


@dataclass(frozen=True)
class NearDuplicate:
    """A video of one split that looks like one that is evaluated on: a line of near_duplicates.jsonl. Both are kept."""

    path: str
    split: str
    like: str
    like_split: str

    def to_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def near_duplicates(evaluated: Iterable[Video], videos: Iterable[Video]) -> Iterator[NearDuplicate]:
    """Pairs of videos of different splits whose first frames look alike and whose lengths are nearly equal.

    `evaluated` are those of val and test, which are kept in memory; `videos` are all. A video of train or val is named
    with the first like it of val or test. A copy that is trimmed or has another beginning is not found. If two looks
    differ in at most four bits, one of their five bands is equal; so only videos with an equal band are compared.
    """
    known: dict[tuple[int, int, int], list[Video]] = defaultdict(list)
    for video in evaluated:
        for band, value in enumerate(_bands(video[3])):
            known[band, value, int(video[2])].append(video)
    for path, split, duration_s, look in videos:
        for (band, value), second in product(enumerate(_bands(look)), (-1, 0, 1)):
            like = next((other for other in known.get((band, value, int(duration_s) + second), ())
                         if ORDER.index(split) < ORDER.index(other[1]) and abs(other[2] - duration_s) <= SECONDS
                         and _differing_bits(look, other[3]) <= MOST_BITS), None)
            if like is not None:
                yield NearDuplicate(path, split, like[0], like[1])
                break


def _bands(look: int) -> list[int]:
    return [look % 2**64 >> shift & mask for shift, mask in BANDS]


def _differing_bits(look: int, other: int) -> int:
    return ((look ^ other) % 2**64).bit_count()
