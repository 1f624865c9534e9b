"""The profile of a set of clips as the retriever sees it, and whether two profiles differ by more than chance.

Pure: arrays in, arrays out. The rows of the batch and the reference are pooled and split at random many times. The
distances between the random parts are those without drift at exactly these sizes, so the stated false alarm rate holds
for small and large batches (a permutation test; ours).
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

MIN_CLIPS = 10              # of the batch and of the reference; with fewer there is no verdict [ours]
_BLOCK = 500                # permutations at a time: bounds the memory
QUERY_COLUMNS = ("rank", "own_score", "top1_score", "margin", "entropy", "caption_words")
CLIP_COLUMNS = ("duration_s", "width", "height", "brightness", "contrast", "saturation", "warmth", "sharpness",
                "motion")
EMBEDDINGS = ("video_embedding", "caption_embedding")


@dataclass(frozen=True)
class Profile:
    """A set of clips, one row each. The caption columns are NaN where a clip has no caption."""

    columns: pd.DataFrame                                                   # [V] of QUERY_COLUMNS and CLIP_COLUMNS
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)         # name -> [V, D]; NaN rows: none

    def __post_init__(self) -> None:
        for name, rows_VD in self.embeddings.items():
            assert len(rows_VD) == len(self.columns), f"{name}: {len(rows_VD)} rows, columns: {len(self.columns)}"

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True)
class Shift:
    """One comparison of the batch with the reference. It has drifted when `distance` reaches `threshold`."""

    name: str
    distance: float         # columns: Wasserstein distance in the reference's standard deviations; embeddings: energy
    threshold: float
    p_value: float          # adjusted: how often the largest of all comparisons is this large without drift
    reference: float        # median of the column; NaN for embeddings
    batch: float

    @property
    def drifted(self) -> bool:
        return self.distance >= self.threshold


def clip_columns(frames_THXC: np.ndarray) -> dict[str, float]:
    """Statistics of one clip's pixels (uint8 RGB) that a person would notice, in grey levels 0 to 255.

    `contrast` is the spread of grey within a frame, `saturation` max minus min over RGB, `warmth` red minus blue,
    `sharpness` the mean step between neighbouring pixels, `motion` the mean change from one given frame to the next.
    """
    frames = frames_THXC.astype(np.float32)
    grey_THX = frames @ np.array([0.299, 0.587, 0.114], np.float32)
    steps = [np.abs(np.diff(grey_THX, axis=axis)).mean() for axis in (1, 2) if grey_THX.shape[axis] > 1]
    return {"brightness": float(grey_THX.mean()),
            "contrast": float(grey_THX.std(axis=(1, 2)).mean()),
            "saturation": float((frames.max(-1) - frames.min(-1)).mean()),
            "warmth": float((frames[..., 0] - frames[..., 2]).mean()),
            "sharpness": float(np.mean(steps)) if steps else 0.0,
            "motion": float(np.abs(np.diff(grey_THX, axis=0)).mean()) if len(frames) > 1 else 0.0}


def query_columns(own_Q: np.ndarray, others_QG: np.ndarray, temperature: float) -> pd.DataFrame:
    """Rank, scores, margin and entropy of each query when its own clip competes with G others.

    Ranks, margins and entropies depend on which clips compete. The G others are therefore the same for the batch and
    the reference, and belong to neither. (With a part of the reference as the gallery, its similarity to the rest of
    the reference was reported as drift. With each reference clip among all the rest of the reference, there were 16 %
    false alarms instead of 5 % with 40 reference clips.) `rank` is 1 + the number of strictly better others; `margin`
    is the best score minus the second best; `entropy` is that of the softmax over the G + 1 scores, in nats.
    """
    all_QG = np.concatenate([own_Q[:, None], others_QG], axis=1).astype(np.float64)
    second_Q, first_Q = np.partition(all_QG, -2, axis=1)[:, -2:].T
    logits_QG = (all_QG - first_Q[:, None]) / temperature
    weights_QG = np.exp(logits_QG)
    total_Q = weights_QG.sum(1)
    entropy_Q = np.log(total_Q) - (weights_QG * logits_QG).sum(1) / total_Q
    return pd.DataFrame({"rank": 1.0 + (others_QG > own_Q[:, None]).sum(1), "own_score": own_Q.astype(np.float64),
                         "top1_score": first_Q, "margin": first_Q - second_Q, "entropy": entropy_Q})


def fit_temperature(sims_NN: np.ndarray) -> float:
    """The softmax temperature with the highest likelihood that query i finds video i.

    It makes entropies independent of the scale of the scores.
    """
    spread = float(sims_NN.std()) or 1.0
    own_N = np.diagonal(sims_NN).astype(np.float64)

    def loss(temperature: float) -> float:
        logits_NN = sims_NN / temperature
        peak_N = logits_NN.max(1)
        return float((np.log(np.exp(logits_NN - peak_N[:, None]).sum(1)) + peak_N - own_N / temperature).mean())

    return min((spread * step for step in np.geomspace(0.02, 2.0, 25)), key=loss)


def assignments(real_M: np.ndarray, groups_M: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """bool [1 + count, M]: which of the pooled rows form the batch in each split; row 0 is the real split `real_M`.

    Rows are exchanged only within their group. A group is the rows with the same columns missing, so that each column
    is always split into the same numbers of rows; otherwise 5 % false alarms became 20 %.
    """
    batch_PM = np.tile(real_M, (1 + count, 1))
    for group in np.unique(groups_M):
        rows = np.flatnonzero(groups_M == group)
        batch_PM[1:, rows] = generator.permuted(batch_PM[1:, rows], axis=1)
    return batch_PM


def wasserstein(values_M: np.ndarray, batch_PM: np.ndarray) -> np.ndarray:
    """[P] Evidently's `wasserstein`: the distance divided by the reference's standard deviation (at least 0.001).

    Rows whose value is not finite are left out, as in Evidently.
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


def energy_distance(rows_MD: np.ndarray, batch_PM: np.ndarray) -> np.ndarray:
    """[P] 2 E|X-Y| - E|X-X'| - E|Y-Y'| between the two parts, Euclidean; NaN rows are left out.

    It is zero only for equal distributions, and has no bandwidth to choose. Source: Szekely and Rizzo, Energy
    statistics, 2013.
    """
    finite_M = np.isfinite(rows_MD).all(1)
    rows_MD = rows_MD[finite_M].astype(np.float32)
    squares_M = (rows_MD**2).sum(1)
    gaps_MM = np.sqrt(np.maximum(squares_M[:, None] + squares_M - 2 * rows_MD @ rows_MD.T, 0))
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


def compare(reference: Profile, batch: Profile, false_alarm_rate: float, generator: np.random.Generator) -> list[Shift]:
    """One `Shift` for each column and embedding that both sets have; the batch has drifted when any of them has.

    Each distance is measured for the real split and for random ones, and scaled by its spread over the random splits.
    The distribution of the largest scaled distance over the random splits gives one limit for all (Westfall and Young's
    single-step maxT), so that all comparisons together report drift in a batch without drift at `false_alarm_rate`.
    """
    count = max(999, round(10 / false_alarm_rate) - 1)
    pools = _pools(reference, batch)
    if not pools:
        return []
    half = len(reference)
    missing = np.stack([~_finite(pool) for pool in pools.values()])
    groups_M = np.unique(missing, axis=1, return_inverse=True)[1].ravel()
    batch_PM = assignments(np.arange(half + len(batch)) >= half, groups_M, count, generator)
    distance_PS = np.concatenate([
        np.stack([wasserstein(pool, block) if pool.ndim == 1 else energy_distance(pool, block)
                  for pool in pools.values()], axis=1)
        for block in np.array_split(batch_PM, max(1, len(batch_PM) // _BLOCK))])
    middle_S = np.median(distance_PS, axis=0)
    scale_S = np.maximum(np.quantile(distance_PS, 0.99, axis=0) - middle_S, 1e-12)
    largest_P = ((distance_PS - middle_S) / scale_S).max(1)
    limit = np.sort(largest_P)[-max(1, int(false_alarm_rate * len(largest_P)))]
    # Slightly lower, so that rounding in Evidently's own distance cannot change the verdict.
    threshold_S = (middle_S + limit * scale_S) * (1 - 1e-6)
    real_S = (distance_PS[0] - middle_S) / scale_S
    return [Shift(name, float(distance_PS[0, s]), float(threshold_S[s]), float((largest_P >= real_S[s]).mean()),
                  *(_median(part) for part in (pool[:half], pool[half:])))
            for s, (name, pool) in enumerate(pools.items())]


def _pools(reference: Profile, batch: Profile) -> dict[str, np.ndarray]:
    """Name -> the rows of the reference, then of the batch, for what both have and what is not constant."""
    pools = {}
    for name in (*QUERY_COLUMNS, *CLIP_COLUMNS):
        if name in reference.columns and name in batch.columns:
            pools[name] = np.concatenate([reference.columns[name], batch.columns[name]]).astype(np.float64)
    for name in EMBEDDINGS:
        if name in reference.embeddings and name in batch.embeddings:
            pools[name] = np.concatenate([reference.embeddings[name], batch.embeddings[name]]).astype(np.float64)
    return {name: pool for name, pool in pools.items() if _comparable(pool, len(reference))}


def _comparable(pool: np.ndarray, half: int) -> bool:
    finite_M = _finite(pool)
    enough = min(finite_M[:half].sum(), finite_M[half:].sum()) >= MIN_CLIPS
    return bool(enough and np.ptp(pool[finite_M], axis=0).max() > 0)


def _finite(pool: np.ndarray) -> np.ndarray:
    return np.isfinite(pool) if pool.ndim == 1 else np.isfinite(pool).all(1)


def _median(part: np.ndarray) -> float:
    return float(np.nanmedian(part)) if part.ndim == 1 else float("nan")
