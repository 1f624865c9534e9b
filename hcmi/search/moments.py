"""The moment in a video that answers a text: the run of frames that match its words best.

A model whose score uses the sentence alone, such as a checkpoint that nothing was trained on, has learned nothing about
single words. Frames are then compared with the sentence (`by_words` is False).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hcmi.types import TextTokens, VideoTokens

BASELINE_VIDEOS = 256       # other videos that a text is matched with to measure its baseline
MIN_BASELINE_VIDEOS = 32    # fewer do not show what is usual
WHOLE_CLIP = 1.5            # [ours] standard deviations: when the other frames exceed it too, the moment is the clip
# [ours] What a run's length counts, beside its rise. 0.5 is the least-squares fit, which takes the errors of frames to
# be independent. Those of neighbours are not, so that short runs stand out by chance. Any number between 0 and 1 finds
# the run of relevance without errors.
LENGTH_POWER = 0.75


@dataclass(frozen=True)
class Baseline:
    """How relevant other videos are to one text at each frame position.

    A model that has learned the order of events binds the words of a text to positions: a text of one event prefers
    the first frames of any video. Relevance above the baseline is specific to a video (on Scenes, whose true moments
    are known, R@1 at IoU 0.5 rose from 53 to 63 on the validation split). [ours]
    """

    mean_T: np.ndarray
    std_T: np.ndarray


def measure_baseline(text: TextTokens, videos: VideoTokens, by_words: bool = True) -> Baseline | None:
    """The baseline of one text over `videos`; None when there are fewer than MIN_BASELINE_VIDEOS.

    A position at which fewer of them have a frame has the baseline of all frames.
    """
    if len(videos) < MIN_BASELINE_VIDEOS:
        return None
    mask_VT = videos.frame_weights_BT > 0
    sims_VT = (videos.frames_BTD @ _asked(text, by_words)).float()
    count_T = mask_VT.sum(0)
    mean_T = (sims_VT * mask_VT).sum(0) / count_T
    variance_T = ((sims_VT - mean_T).square() * mask_VT).sum(0) / count_T
    every, few_T = sims_VT[mask_VT], count_T < MIN_BASELINE_VIDEOS
    return Baseline(torch.where(few_T, every.mean(), mean_T).numpy(),
                    torch.where(few_T, every.std(correction=0), variance_T.sqrt()).clamp(min=1e-6).numpy())


def frame_word_matrix(text: TextTokens, video: VideoTokens) -> Tensor:
    """[T, W] cosines between the frames of one video and the words of one text; both hold one row."""
    return video.frames_BTD[0] @ text.words_BWD[0].T


def _asked(text: TextTokens, by_words: bool) -> Tensor:
    """[D] what frames are compared with: the words, weighted as the model weights them, or the sentence."""
    if by_words:
        return (text.words_BWD[0] * text.word_weights_BW[0][:, None]).sum(0)
    return text.sentence_BD[0] / text.sentence_BD[0].norm()


def frame_relevance(text: TextTokens, video: VideoTokens, baseline: Baseline | None = None, by_words: bool = True
                    ) -> np.ndarray:
    """[T] how well each frame matches the text: its words, weighted as the model weights words, or its sentence. [ours]

    With a baseline: in standard deviations above the mean of other videos at the same position.
    """
    relevance_T = (video.frames_BTD[0] @ _asked(text, by_words)).float().numpy()
    return relevance_T if baseline is None else (relevance_T - baseline.mean_T) / baseline.std_T


def find_moment(text: TextTokens, video: VideoTokens, times_T: np.ndarray, start_s: float, end_s: float,
                baseline: Baseline | None = None, by_words: bool = True) -> tuple[float, float]:
    """Start and end, in seconds into the file, of the part of one video that answers one text best.

    `start_s` and `end_s` are those of the clip. Padding frames are left out.
    """
    valid_T = (video.frame_weights_BT[0] > 0).numpy()
    if not valid_T.any():
        return start_s, end_s
    return best_run(frame_relevance(text, video, baseline, by_words)[valid_T], times_T[valid_T], start_s, end_s,
                    np.inf if baseline is None else WHOLE_CLIP)


def best_run(relevance_T: np.ndarray, times_T: np.ndarray, start_s: float, end_s: float,
             whole_above: float = np.inf) -> tuple[float, float]:
    """Start and end of the run of frames that stands out most. [ours]

        (mean inside - mean outside) * (frames inside * frames outside)^LENGTH_POWER

    `times_T`: seconds of each frame, ascending. A frame covers the time up to half-way to its neighbours; the first
    and the last frame reach to `start_s` and `end_s`. A file of few frames repeats some, and no run is of one time
    alone. The result is the whole clip when all frames are alike, and when the mean of the frames outside the run
    exceeds `whole_above`.
    """
    num_frames = len(times_T)
    if num_frames < 2 or np.ptp(relevance_T) < 1e-6:
        return start_s, end_s
    total_T = np.concatenate([[0], np.cumsum(relevance_T, dtype=np.float64)])
    first, last = np.triu_indices(num_frames)
    length = last - first + 1
    edges = np.concatenate([[start_s], (times_T[1:] + times_T[:-1]) / 2, [end_s]])
    possible = (length < num_frames) & (edges[last + 1] > edges[first])
    if not possible.any():
        return start_s, end_s
    first, last, length = first[possible], last[possible], length[possible]
    inside = total_T[last + 1] - total_T[first]
    outside = (total_T[-1] - inside) / (num_frames - length)
    step = inside / length - outside
    best = int((step * (length * (num_frames - length)) ** LENGTH_POWER).argmax())
    if outside[best] > whole_above:
        return start_s, end_s
    return float(edges[first[best]]), float(edges[last[best] + 1])
