"""Why a hit is a hit: which moment, which frames match which words, which clips match which phrases."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from hcmi.types import Hit, TextTokens, VideoTokens


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


@dataclass(frozen=True)
class PhraseMatch:
    """One phrase of the query, named by the words nearest to it, and the clip that answers it best."""

    words: tuple[str, ...]
    weight: float           # of the phrase in the query
    clip: int
    time_s: float           # of the frame nearest to that clip
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """Why a video answers a query: which frames match which words, which clips match which phrases."""

    query: str
    hit: Hit
    level_weights: dict[str, float]
    words: tuple[str, ...]
    word_weights_W: np.ndarray      # how much each word counts
    times_s: np.ndarray             # [T] seconds into the file
    frame_weights_T: np.ndarray
    frame_word_TW: np.ndarray       # cosines
    relevance_T: np.ndarray         # of each frame, over all words; the moment stands out in it
    phrases: tuple[PhraseMatch, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        lists = {name.split("_T")[0].split("_W")[0]: value.round(5).tolist() for name, value in vars(self).items()
                 if isinstance(value, np.ndarray)}
        return {"query": self.query, "hit": vars(self.hit), "level_weights": self.level_weights, "words": self.words,
                **lists, "phrases": [vars(phrase) for phrase in self.phrases]}


def explain_hit(query: str, hit: Hit, text: TextTokens, video: VideoTokens, times_T: np.ndarray,
                words: list[tuple[str, list[int]]], level_weights: dict[str, float]) -> Explanation:
    """`words`: each word of the query and which of the text's tokens it is made of; padding frames are left out.

    A word matches a frame as well as the best of its pieces does, and counts as much as all of them together.
    """
    valid_T = (video.frame_weights_BT[0] > 0).numpy()
    pieces_TW = frame_word_matrix(text, video).float().numpy()[valid_T]
    weights_W = text.word_weights_BW[0].float().numpy()
    frame_word_TW = np.stack([pieces_TW[:, at].max(1) for _, at in words], 1) if words else np.zeros((valid_T.sum(), 0))
    return Explanation(
        query, hit, level_weights, tuple(word for word, _ in words),
        np.array([weights_W[at].sum() for _, at in words]), times_T[valid_T],
        video.frame_weights_BT[0].float().numpy()[valid_T], frame_word_TW,
        frame_relevance(text, video)[valid_T], _phrase_matches(text, video, times_T, words))


def _phrase_matches(text: TextTokens, video: VideoTokens, times_T: np.ndarray, words: list[tuple[str, list[int]]]
                    ) -> tuple[PhraseMatch, ...]:
    """Phrases by weight; heads without phrases or clips have none. The two nearest words name a phrase. [ours]"""
    if not text.phrases_BPD.shape[1] or not video.clips_BCD.shape[1] or not words:
        return ()
    phrases_PD, clips_CD = text.phrases_BPD[0], video.clips_BCD[0]
    sims_PC = (phrases_PD @ clips_CD.T).float().numpy()
    names_PW = np.stack([(phrases_PD @ text.words_BWD[0].T).float().numpy()[:, at].max(1) for _, at in words], 1)
    frame_of_clip = (clips_CD @ video.frames_BTD[0].T).float().numpy()
    frame_of_clip[:, (video.frame_weights_BT[0] <= 0).numpy()] = -np.inf
    found = []
    for phrase, weight in enumerate(text.phrase_weights_BP[0].tolist()):
        if weight > 0:
            clip = int(sims_PC[phrase].argmax())
            nearest = sorted(np.argsort(-names_PW[phrase])[:2])
            found.append(PhraseMatch(tuple(words[at][0] for at in nearest), weight, clip,
                                     float(times_T[frame_of_clip[clip].argmax()]), float(sims_PC[phrase, clip])))
    return tuple(sorted(found, key=lambda match: -match.weight))


def query_words(tokenizer: Any, query: str, num_tokens: int) -> list[tuple[str, list[int]]]:
    """Each word of the query as it was typed, and the positions of its tokens among the model's `num_tokens`."""
    encoded = tokenizer(query, truncation=True, max_length=num_tokens)
    places: dict[int, list[int]] = {}
    for at, number in enumerate(encoded.word_ids(0)):
        if number is not None:
            places.setdefault(number, []).append(at)
    words = []
    for number, made_of in places.items():
        span = encoded.word_to_chars(0, number)
        word = query[span.start:span.end].strip() or tokenizer.decode(encoded["input_ids"][made_of[0]])
        words.append((word, made_of))
    return words
