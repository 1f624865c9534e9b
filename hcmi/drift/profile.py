"""The profile of a set of clips as the retriever sees it. Pure: arrays in, arrays out."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

MIN_CLIPS = 10              # of the batch and of the reference; with fewer there is no verdict [ours]
QUERY_COLUMNS = ("rank", "own_score", "top1_score", "margin", "entropy", "caption_words", "unknown_words")
CLIP_COLUMNS = ("duration_s", "width", "height", "brightness", "contrast", "saturation", "warmth", "sharpness",
                "motion", "nearest_known")
VIDEO_LEVELS = ("video_embedding", "clip_embedding", "frame_embedding")
EMBEDDINGS = (*VIDEO_LEVELS, "caption_embedding")


@dataclass(frozen=True)
class Profile:
    """A set of clips, one row each. The caption columns are NaN where a clip has no caption."""

    columns: pd.DataFrame                                                   # [V] of QUERY_COLUMNS and CLIP_COLUMNS
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)         # name -> [V, D]; NaN rows: none
    groups: np.ndarray | None = None        # [V] clips of one number hang together; None: all are independent

    def __post_init__(self) -> None:
        for name, rows_VD in self.embeddings.items():
            assert len(rows_VD) == len(self.columns), f"{name}: {len(rows_VD)} rows, columns: {len(self.columns)}"

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def units(self) -> np.ndarray:
        """[V] `groups`, or a number of its own for each clip."""
        return np.arange(len(self)) if self.groups is None else self.groups


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


def unit(rows_VD: np.ndarray) -> np.ndarray:
    """The rows with length 1; rows of zeros stay so."""
    rows_VD = np.asarray(rows_VD, np.float32)
    return rows_VD / np.maximum(np.linalg.norm(rows_VD, axis=1, keepdims=True), 1e-12)
