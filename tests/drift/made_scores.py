"""Scores of a made-up search that works: texts, clips and a gallery are noisy copies of random meanings."""

import numpy as np

from hcmi.drift import Scores

DIM = 24
GALLERY = np.random.default_rng(99).normal(size=(150, DIM))        # the meanings of its clips


def cosines(texts: np.ndarray, clips: np.ndarray) -> np.ndarray:
    return (texts / np.linalg.norm(texts, axis=1)[:, None]) @ (clips / np.linalg.norm(clips, axis=1)[:, None]).T


def scores(count: int, generator: np.random.Generator, noise: float = 0.7, near: float = 0.0) -> Scores:
    """A share `near` of the clips show nearly the same as the clip before."""
    meaning = generator.normal(size=(count, DIM))
    for row in np.flatnonzero(generator.random(count - 1) < near) + 1:
        meaning[row] = meaning[row - 1] + 0.1 * meaning[row]
    texts, clips, others = (some + noise * generator.normal(size=some.shape) for some in (meaning, meaning, GALLERY))
    return Scores(cosines(texts, clips), cosines(texts, others))
