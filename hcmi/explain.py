"""Why a hit is a hit: which moment, which frames match which words, which clips match which phrases."""

import numpy as np
from torch import Tensor

from hcmi.types import TextTokens, VideoTokens


def frame_word_matrix(text: TextTokens, video: VideoTokens) -> Tensor:
    """[T, W] cosines between the frames of one video and the words of one text; both hold one row."""
    return video.frames_BTD[0] @ text.words_BWD[0].T


def frame_relevance(text: TextTokens, video: VideoTokens) -> np.ndarray:
    """[T] how well each frame answers the words, weighted as the model weights words. [ours]"""
    return (frame_word_matrix(text, video) @ text.word_weights_BW[0]).float().numpy()


def best_moment(relevance_T: np.ndarray, times_T: np.ndarray, start_s: float, end_s: float) -> tuple[float, float]:
    """The run of frames that stands out most: the largest sum of relevance above the middle of its range. [ours]

    `times_T`: seconds of each frame, ascending; a frame stands for the time up to half-way to its neighbours, the
    first and last one up to `start_s` and `end_s`. Frames that are all alike give the whole clip.
    """
    low, high = float(relevance_T.min()), float(relevance_T.max())
    if high - low < 1e-6 or len(times_T) < 2:
        return start_s, end_s
    gain_T = relevance_T - (low + high) / 2
    best, first, last, run, run_first = -np.inf, 0, 0, 0.0, 0
    for at, gain in enumerate(gain_T):
        if run <= 0:
            run, run_first = 0.0, at
        run += float(gain)
        if run > best:
            best, first, last = run, run_first, at
    edges = np.concatenate([[start_s], (times_T[1:] + times_T[:-1]) / 2, [end_s]])
    return float(edges[first]), float(edges[last + 1])


def moment(text: TextTokens, video: VideoTokens, times_T: np.ndarray, start_s: float, end_s: float
           ) -> tuple[float, float]:
    """Seconds into the file where one video answers one text best; padding frames are left out."""
    valid_T = (video.frame_weights_BT[0] > 0).numpy()
    if not valid_T.any():
        return start_s, end_s
    return best_moment(frame_relevance(text, video)[valid_T], times_T[valid_T], start_s, end_s)
