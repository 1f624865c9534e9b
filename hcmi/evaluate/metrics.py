"""Retrieval metrics that are right with ties, NaN, several right answers and rectangular galleries. Pure numpy.

A query's rank is that of its best-scored right answer. Ties are resolved as if by a fair coin, and every figure is the
exact expectation of that: nothing depends on the order of the gallery, and a model that gives every pair the same score
gets what chance gets, not 100.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hcmi.errors import DataError

RECALL_AT = (1, 5, 10, 50)
Relevant = NDArray | Sequence[int] | Sequence[Sequence[int]] | Sequence[NDArray]
_ROWS = 512     # rows of the score matrix that are compared at a time, so that temporary arrays stay in cache


@dataclass(frozen=True)
class Ranks:
    """The rank of each query's best-scored right answer, one entry per query.

    `tied` wrong answers have the same score as the best right answer. `winners` right answers have it, itself included.
    """

    greater: NDArray[np.int64]      # [Q] answers with a strictly higher score, all of them wrong
    tied: NDArray[np.int64]         # [Q]
    winners: NDArray[np.int64]      # [Q] at least 1

    def __post_init__(self) -> None:
        assert self.greater.shape == self.tied.shape == self.winners.shape, "one entry per query in each array"

    def __len__(self) -> int:
        return len(self.greater)

    def __getitem__(self, rows) -> "Ranks":
        return Ranks(self.greater[rows], self.tied[rows], self.winners[rows])

    @property
    def expected(self) -> NDArray[np.float64]:
        """[Q] mean rank under random tie-breaking: 1 + greater + half the ties, if one answer is right."""
        return self.greater + (self.tied + self.winners + 1) / (self.winners + 1)

    def hits_at(self, k: int) -> NDArray[np.float64]:
        """[Q] chance that a right answer is among the first `k` under random tie-breaking; 0 or 1 without ties."""
        total = self.tied + self.winners
        places = np.clip(k - self.greater, 0, total)    # how many of the tied group are within the first k
        missed = np.ones(len(self))
        for step in range(int(self.winners.max(initial=0))):    # chance that `places` draws give wrong answers only
            open_ = step < self.winners
            missed[open_] *= np.maximum(total - places - step, 0)[open_] / (total - step)[open_]
        return 1 - missed


def ranks(sims_QV: NDArray, relevant: Relevant) -> Ranks:
    """Rank the answers of each query by descending score. Ties are counted, not broken.

    `relevant`: the right answer of each query, or a list of right answers per query, or a boolean matrix [Q, V].

    Raises: DataError when a score is NaN, a query has no right answer, or the shapes disagree.
    Source: rank = 1 + strictly greater scores + half the ties; ours for several tied right answers.
    """
    sims_QV = np.asarray(sims_QV)
    query, answer = _relevant_pairs(relevant, sims_QV)
    greater, equal = (np.empty(len(sims_QV), np.int64) for _ in range(2))
    own = sims_QV[query, answer]
    starts = np.searchsorted(query, np.arange(len(sims_QV)))
    best_Q = np.maximum.reduceat(own, starts)
    for start in range(0, len(sims_QV), _ROWS):
        rows = slice(start, start + _ROWS)
        _refuse_nan(sims_QV[rows], start)
        greater[rows] = np.count_nonzero(sims_QV[rows] > best_Q[rows, None], axis=1)
        equal[rows] = np.count_nonzero(sims_QV[rows] == best_Q[rows, None], axis=1)
    winners = np.add.reduceat((own == best_Q[query]).astype(np.int64), starts)
    return Ranks(greater, equal - winners, winners)


def average_precision(sims_QV: NDArray, relevant: Relevant) -> NDArray[np.float64]:
    """[Q] average precision of each query, from 0 to 1; the mean over queries is mAP.

    At each right answer, count the share of right ones among the answers up to it; the mean of these shares is the
    average precision. With one right answer it is 1 / rank. `relevant` and ties are as for `ranks`.

    Raises: DataError as `ranks` does. Source: the usual definition without interpolation; ours for ties.
    """
    sims_QV = np.asarray(sims_QV)
    query, answers_N = _relevant_pairs(relevant, sims_QV)
    harmonic_V = np.concatenate([[0], np.cumsum(1 / np.arange(1, sims_QV.shape[1] + 1))])
    precision_Q = np.empty(len(sims_QV))
    for row, answers in enumerate(np.split(answers_N, np.searchsorted(query, np.arange(1, len(sims_QV))))):
        _refuse_nan(sims_QV[row:row + 1], row)
        # one entry for each different score of a right answer: right ones with this score, and answers above it
        own, winners = np.unique(sims_QV[row, answers], return_counts=True)
        ascending_V = np.sort(sims_QV[row])
        above = sims_QV.shape[1] - np.searchsorted(ascending_V, own, "right")
        total = sims_QV.shape[1] - np.searchsorted(ascending_V, own, "left") - above
        winners_above = len(answers) - np.cumsum(winners)
        # Places above + 1 ... above + total are equally likely for each of the tied answers. At the p-th of them stands
        # a right one with chance winners / total, and then a share of the p - 1 before it is right too.
        share = (winners - 1) / np.maximum(total - 1, 1)
        inverse = harmonic_V[above + total] - harmonic_V[above]         # sum of 1 / place
        sums = (winners_above + 1) * inverse + share * (total - (above + 1) * inverse)
        precision_Q[row] = (winners / total * sums).sum() / len(answers)
    return precision_Q


def _refuse_nan(block: NDArray, first_row: int) -> None:
    if np.issubdtype(block.dtype, np.floating) and np.isnan(block).any():
        row, column = np.argwhere(np.isnan(block))[0]
        raise DataError(f"scores, query {first_row + row}: need numbers, got NaN for gallery item {column}. "
                        "The model or its inputs are broken; do not trust any score of this run.")


def _relevant_pairs(relevant: Relevant, sims_QV: NDArray) -> tuple[NDArray, NDArray]:
    """(query, answer) pairs, each once and sorted by query. Every query has at least one."""
    if sims_QV.ndim != 2 or 0 in sims_QV.shape:
        raise DataError(f"scores: need a matrix of queries by gallery, got shape {sims_QV.shape}. Check the inputs.")
    num_queries, num_items = sims_QV.shape
    if isinstance(relevant, np.ndarray) and relevant.dtype == bool:
        if relevant.shape != (num_queries, num_items):
            raise DataError(f"right answers: need a boolean matrix of shape {(num_queries, num_items)}, "
                            f"got {relevant.shape}. Pass one row per query.")
        query, answer = np.nonzero(relevant)
    else:
        if len(relevant) != num_queries:
            raise DataError(f"right answers: need one entry for each of {num_queries} queries, got {len(relevant)}. "
                            "Pass one entry per row of scores.")
        lists = [np.atleast_1d(np.asarray(entry)) for entry in relevant]
        wrong = next((entry for entry in lists if len(entry) and entry.dtype.kind not in "iu"), None)
        if wrong is not None:
            raise DataError(f"right answers: need row numbers of the gallery, or a boolean array, got {wrong.dtype} in "
                            f"a list. Pass np.array(mask) for a mask.")
        answer = np.concatenate(lists).astype(np.int64)
        query = np.repeat(np.arange(num_queries), [len(entry) for entry in lists])
        if num_items > 2 and all(len(entry) == num_items for entry in lists) and set(answer) <= {0, 1}:
            raise DataError(f"right answers: need row numbers of the gallery, or a boolean array, got {num_items} "
                            f"zeros and ones for each query. Pass mask.astype(bool) for a mask.")
        pairs = np.unique(np.stack([query, answer]), axis=1)
        query, answer = pairs
    counts = np.bincount(query, minlength=num_queries)
    if (counts == 0).any():
        raise DataError(f"query {int(np.argmin(counts))}: need at least one right answer, got none. "
                        "Remove the query or give its answer.")
    if answer.min() < 0 or answer.max() >= num_items:
        raise DataError(f"right answers: need numbers from 0 to {num_items - 1}, "
                        f"got {int(answer.min())} to {int(answer.max())}. Check the order of the gallery.")
    return query, answer


def by_item(relevant: Sequence[int] | NDArray, num_items: int) -> list[NDArray]:
    """For each gallery item, the queries whose one right answer it is."""
    relevant = np.asarray(relevant, np.int64)
    order = np.argsort(relevant, kind="stable")
    return np.split(order, np.cumsum(np.bincount(relevant, minlength=num_items))[:-1])


def summary(found: Ranks, generator: np.random.Generator, samples: int = 1000, groups: NDArray | None = None) -> dict:
    """The figures of one direction, as `metrics/evaluate.json` has them. R@K is in per cent.

    `R@1_tie_range` is R@1 with every tie lost and with every tie won. `R@1_ci95` is a bootstrap interval over queries,
    or over `groups` of queries (captions of one video are not independent).
    """
    first = 100 * found.hits_at(1)
    figures: dict = {f"R@{k}": float(100 * found.hits_at(k).mean()) for k in RECALL_AT}
    expected = found.expected
    figures |= {
        "MdR": float(np.median(expected)), "MnR": float(expected.mean()), "n": len(found),
        "R@1_ci95": bootstrap_interval(first, generator, samples, groups),
        "R@1_tie_range": [float(100 * ((found.greater == 0) & (found.tied == 0)).mean()),
                          float(100 * (found.greater == 0).mean())]}
    return {key: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 4)
            for key, value in figures.items()}


def bootstrap_interval(values: NDArray, generator: np.random.Generator, samples: int = 1000,
                       groups: NDArray | None = None) -> list[float]:
    """[low, high]: the middle 95 % of the mean of `values` when queries, or whole groups of them, are resampled."""
    _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group)
    means = np.empty(samples)
    for sample in range(samples):
        drawn = generator.integers(0, len(sums), len(sums))
        means[sample] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def paired_difference(values_a: NDArray, values_b: NDArray, generator: np.random.Generator, samples: int = 1000,
                      groups: NDArray | None = None) -> dict:
    """Mean of b - a over the same queries, with a bootstrap interval of this mean."""
    assert len(values_a) == len(values_b), f"need the same queries, got {len(values_a)} and {len(values_b)}"
    difference = np.asarray(values_b, np.float64) - np.asarray(values_a, np.float64)
    return {"difference": float(difference.mean()), "ci95": bootstrap_interval(difference, generator, samples, groups)}


def wilson(hits: float, total: int) -> list[float]:
    """95 % interval of a rate (Wilson 1927), which holds for small samples and for rates near 0 and 1."""
    if not total:
        return [0.0, 1.0]
    z, rate = 1.96, hits / total
    middle, half = rate + z * z / (2 * total), z * (rate * (1 - rate) / total + z * z / (4 * total**2)) ** 0.5
    return [round(max((middle - half) / (1 + z * z / total), 0.0), 4),
            round(min((middle + half) / (1 + z * z / total), 1.0), 4)]


def difference_of_rates(hits_a: float, total_a: int, hits_b: float, total_b: int) -> list[float]:
    """95 % interval of rate b minus rate a of two independent samples. Source: Newcombe 1998, method 10."""
    rate_a, rate_b = hits_a / total_a, hits_b / total_b
    (low_a, high_a), (low_b, high_b) = wilson(hits_a, total_a), wilson(hits_b, total_b)
    difference = rate_b - rate_a
    return [difference - ((rate_b - low_b) ** 2 + (high_a - rate_a) ** 2) ** 0.5,
            difference + ((high_b - rate_b) ** 2 + (rate_a - low_a) ** 2) ** 0.5]
