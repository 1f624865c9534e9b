"""Distances between two parts of pooled rows, for many splits at once. Pure.

`batch_PM`: bool [P, M]; row p says which of the M pooled rows form the batch in split p, and the rest is the reference.
`units_M`: rows of one number hang together. How near they are to each other says nothing about the two parts.
"""

import numpy as np

RIDGE = 0.1                 # of the classifier; less follows single clips [ours]


def wasserstein(values_M: np.ndarray, batch_PM: np.ndarray, units_M: np.ndarray | None = None) -> np.ndarray:
    """[P] Evidently's `wasserstein`: the distance divided by the reference's standard deviation (at least 0.001).

    Rows whose value is not finite are left out, as in Evidently. `units_M` makes no difference.
    """
    finite_M = np.isfinite(values_M)
    order = np.argsort(values_M[finite_M], kind="stable")
    sorted_M = values_M[finite_M][order] - np.median(values_M[finite_M])
    batch_PM = batch_PM[:, finite_M][:, order].astype(np.float64)
    batch_P, rest_PM = batch_PM.sum(1), 1 - batch_PM
    rest_P = rest_PM.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap_PM = np.abs(np.cumsum(batch_PM, 1) / batch_P[:, None] - np.cumsum(rest_PM, 1) / rest_P[:, None])
        distance_P = gap_PM[:, :-1] @ np.diff(sorted_M)
        mean_P = rest_PM @ sorted_M / rest_P
        variance_P = rest_PM @ sorted_M**2 / rest_P - mean_P**2
        return np.nan_to_num(distance_P / np.maximum(np.sqrt(np.maximum(variance_P, 0)), 1e-3))


def energy_distance(rows_MD: np.ndarray, batch_PM: np.ndarray, units_M: np.ndarray | None = None) -> np.ndarray:
    """[P] 2 E|X-Y| - E|X-X'| - E|Y-Y'| between the two parts, Euclidean; NaN rows are left out.

    It is zero only for equal distributions, and has no bandwidth to choose. Source: Szekely and Rizzo, Energy
    statistics, 2013.
    """
    finite_M = np.isfinite(rows_MD).all(1)
    rows_MD = rows_MD[finite_M].astype(np.float32)
    squares_M = (rows_MD**2).sum(1)
    gaps_MM = np.sqrt(np.maximum(squares_M[:, None] + squares_M - 2 * rows_MD @ rows_MD.T, 0))
    if units_M is not None:
        together_MM = units_M[finite_M][:, None] == units_M[finite_M]
        gaps_MM[together_MM] = gaps_MM[~together_MM].mean() if not together_MM.all() else 0
    np.fill_diagonal(gaps_MM, 0)
    batch_PM = batch_PM[:, finite_M].astype(np.float32)
    sums_PM = batch_PM @ gaps_MM
    inside_P = (sums_PM * batch_PM).sum(1, dtype=np.float64)
    between_P = sums_PM.sum(1, dtype=np.float64) - inside_P
    outside_P = gaps_MM.sum(dtype=np.float64) - inside_P - 2 * between_P
    batch_P = batch_PM.sum(1, dtype=np.float64)
    rest_P = finite_M.sum() - batch_P
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(2 * between_P / (batch_P * rest_P) - inside_P / batch_P**2 - outside_P / rest_P**2)


def classifier_gap(rows_MD: np.ndarray, batch_PM: np.ndarray, units_M: np.ndarray) -> np.ndarray:
    """[P] how far a classifier that is asked about rows it has not seen tells the two parts apart: 0 not, 1 wholly.

    It is kernel ridge regression with a Gaussian kernel. Its answers for a unit after a fit without that unit need no
    second fit: with the hat matrix H they are y - (I - H)^-1 (y - H y), restricted to the unit. The gap is the mean
    answer for the batch's rows minus that for the others. Source: Lopez-Paz and Oquab, Revisiting classifier two-sample
    tests, 2017; for the formula Hastie et al., The elements of statistical learning, 7.10.
    """
    rows_MD = np.nan_to_num(rows_MD).astype(np.float64)
    squares_M = (rows_MD**2).sum(1)
    gaps_MM = np.maximum(squares_M[:, None] + squares_M - 2 * rows_MD @ rows_MD.T, 0)
    kernel_MM = np.exp(-gaps_MM / max(float(np.median(gaps_MM)), 1e-12))
    size = len(kernel_MM)
    hat_MM = np.linalg.solve(kernel_MM + RIDGE * np.eye(size), kernel_MM)
    unseen_MM = hat_MM.astype(np.float32)
    for rows in _rows_of(units_M):
        own = hat_MM[np.ix_(rows, rows)]
        rest = hat_MM[rows]
        rest[:, rows] = 0
        unseen_MM[rows] = np.linalg.solve(np.eye(len(rows)) - own, rest)
    batch_PM = batch_PM.astype(np.float32)
    share_P1 = batch_PM.mean(1, keepdims=True)
    answers_PM = (batch_PM - share_P1) @ unseen_MM.T
    batch_P = batch_PM.sum(1)
    inside_P = (answers_PM * batch_PM).sum(1)
    return (inside_P / batch_P - (answers_PM.sum(1) - inside_P) / (size - batch_P)).astype(np.float64)


def _rows_of(units_M: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(units_M, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(units_M[order])) + 1)
