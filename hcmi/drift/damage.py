"""Damage to the frames of clips, of several kinds and degrees: on it is learned how R@1 falls. Pure.

Each function takes frames [T, H, X, 3] in grey levels as float32, the degree, a random generator and the frames of
another clip, and gives frames that may lie outside 0 to 255.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

COPIES = 40                 # of each kind [ours]
WEAKEST = 0.1               # share of the strongest degree [ours]
Damage = Callable[[np.ndarray, float, np.random.Generator, np.ndarray], np.ndarray]


def _each(frames_THXC: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(frame)), np.float32)
                     for frame in frames_THXC.astype(np.uint8)])


def _covered(frames_THXC: np.ndarray, share: float, generator: np.random.Generator, _: np.ndarray) -> np.ndarray:
    """A grey square hides `share` of the height, at the same place in all frames."""
    high, wide = frames_THXC.shape[1:3]
    side = int(share * min(high, wide))
    top, left = generator.integers(0, high - side + 1), generator.integers(0, wide - side + 1)
    frames_THXC = frames_THXC.copy()
    frames_THXC[:, top:top + side, left:left + side] = 128
    return frames_THXC


def _zoomed(frames_THXC: np.ndarray, share: float, _: np.random.Generator, __: np.ndarray) -> np.ndarray:
    """The middle of the picture, without `share` of its height and width, at the size of the whole."""
    high, wide = frames_THXC.shape[1:3]
    y, x = int(high * share / 2), int(wide * share / 2)
    return _each(frames_THXC, lambda frame: frame.crop((x, y, wide - x, high - y)).resize((wide, high)))


# Kind -> the damage and its strongest degree. It is strong enough for R@1 of Scenes to fall by half at least.
DAMAGES: dict[str, tuple[Damage, float]] = {
    "brighter": (lambda frames, degree, *_: frames * (1 + degree), 1.0),
    "darker": (lambda frames, degree, *_: frames * (1 - degree), 0.5),
    "noisy": (lambda frames, degree, generator, _: frames + 255 * degree * generator.standard_normal(frames.shape),
              0.5),
    "paler": (lambda frames, degree, *_: (1 - degree) * frames + degree * frames.mean(-1, keepdims=True), 0.75),
    "blurred": (lambda frames, degree, *_: _each(frames, lambda frame: frame.filter(ImageFilter.GaussianBlur(degree))),
                5.0),
    "mixed": (lambda frames, degree, _, other: (1 - degree) * frames + degree * other, 0.45),
    "covered": (_covered, 0.35),
    "zoomed": (_zoomed, 0.5)}


def damage(frames_BTHXC: np.ndarray, kind: str, generator: np.random.Generator, degree: float | None = None
           ) -> np.ndarray:
    """The frames, uint8, with damage of `kind` in DAMAGES: each clip to the degree, or to a random one.

    The other clip of a clip is the one before it.
    """
    change, strongest = DAMAGES[kind]
    damaged_BTHXC = np.empty_like(frames_BTHXC)
    for row, frames_THXC in enumerate(frames_BTHXC):
        some = strongest * (WEAKEST + (1 - WEAKEST) * generator.random()) if degree is None else degree
        changed = change(frames_THXC.astype(np.float32), some, generator, frames_BTHXC[row - 1].astype(np.float32))
        damaged_BTHXC[row] = np.clip(changed, 0, 255)
    return damaged_BTHXC


def damaged_rows(count: int) -> dict[str, np.ndarray]:
    """Kind of damage -> the clips that get it, of `count` clips: at most COPIES of each kind, spread over all."""
    order = np.random.default_rng(0).permutation(count)
    return {kind: np.sort(order[number::len(DAMAGES)][:COPIES]) for number, kind in enumerate(DAMAGES)}
