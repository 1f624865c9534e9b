"""The losses as slow loops that follow the method term by term, and random input for them."""

import math

import numpy as np
import torch


def contrastive_by_loops(sims, scale, positives, mode) -> float:
    """The contrastive loss, term by term. Text q, a row, is of clip q % B; `positives[i][j]`: j is the same as i."""
    size = len(sims[0])
    clips = [q % size for q in range(len(sims))]
    if mode == "off":
        positives = [[i == j for j in range(size)] for i in range(size)]

    def term(scores, same, own) -> float:
        seen = [k for k in range(len(scores)) if own[k] or not same[k]] if mode == "mask" else range(len(scores))
        targets = [k for k in range(len(scores)) if (own[k] if mode == "mask" else same[k])]
        normaliser = math.log(sum(math.exp(scale * scores[k]) for k in seen))
        return -sum(scale * scores[k] - normaliser for k in targets) / max(len(targets), 1)

    v2t = sum(term([row[i] for row in sims], [positives[i][clip] for clip in clips], [clip == i for clip in clips])
              for i in range(size)) / size
    t2v = sum(term(row, [positives[i][clip] for i in range(size)], [clip == i for i in range(size)])
              for row, clip in zip(sims, clips, strict=True)) / len(sims)
    return (v2t + t2v) / 2


def same_by_loops(view1, view2) -> list[list[bool]]:
    """`same_meaning`, pair by pair."""
    def cos(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    def same(i, j):
        mean = sum(cos(one[i], other[j]) for one in (view1, view2) for other in (view1, view2)) / 4
        return mean >= cos(view1[i], view2[i])

    return [[i == j or same(i, j) for j in range(len(view1))] for i in range(len(view1))]


def margin_by_loops(sims, theta, positives=None) -> float:
    """The margin loss, text by text."""
    size, total = len(sims[0]), 0.0
    for q, row in enumerate(sims):
        i = q % size
        same = [bool(positives[i][j]) if positives is not None else i == j for j in range(size)]
        same_of_text = [bool(positives[j][i]) if positives is not None else i == j for j in range(size)]
        texts = [other[i] for k, other in enumerate(sims) if not same[k % size]]    # wrong texts of video i
        videos = [row[j] for j in range(size) if not same_of_text[j]]               # wrong videos of the text
        total += max(0.0, max(texts, default=-math.inf) - row[i] + theta)
        total += max(0.0, max(videos, default=-math.inf) - row[i] + theta)
    return total / len(sims) / 2


def balance_by_loops(sims, scale, positives=None) -> float:
    """The balance of videos, pair by pair."""
    size = len(sims[0])
    rounds = len(sims) // size

    def ahead(i, k):
        return max(sims[n * size + i][i] - sims[n * size + i][k] for n in range(rounds))

    def counts(i, k):
        return i != k and (positives is None or not (positives[i][k] or positives[k][i]))

    total = 0.0
    for i in range(size):
        others = [k for k in range(size) if counts(i, k)]
        nearness = {k: math.exp(-scale * (ahead(i, k) + ahead(k, i)) / 2) for k in others}
        for k in others:
            total += nearness[k] / sum(nearness.values()) * (scale * (ahead(i, k) - ahead(k, i))) ** 2
    return total / size


def drawn(seed: int, size: int | None = None, captions: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A similarity matrix that is not symmetric, and positives that are not either."""
    generator = np.random.default_rng(seed)
    size = size or int(generator.integers(1, 7))
    positives = (generator.random((size, size)) < 0.3) | np.eye(size, dtype=bool)
    return torch.from_numpy(generator.uniform(-1, 1, (captions * size, size))), torch.from_numpy(positives)
