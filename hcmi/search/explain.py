"""Why a video answers a query: which frames match which words, and which clips match which phrases."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hcmi.search.moments import Baseline, frame_relevance, frame_word_matrix
from hcmi.types import Hit, TextTokens, VideoTokens


@dataclass(frozen=True)
class PhraseMatch:
    """One phrase of the query, named by the words nearest to it, and the clip that matches it best."""

    words: tuple[str, ...]
    weight: float           # of the phrase in the query
    clip: int
    time_s: float           # of the frame nearest to that clip
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """The parts that the score of one hit is made of."""

    query: str
    hit: Hit
    level_weights: dict[str, float]
    words: tuple[str, ...]
    word_weights_W: np.ndarray
    times_s: np.ndarray             # [T] seconds into the file
    frame_weights_T: np.ndarray
    frame_word_TW: np.ndarray       # cosines
    relevance_T: np.ndarray         # of each frame to all words, above the baseline; the moment is found in it
    phrases: tuple[PhraseMatch, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        lists = {name.split("_T")[0].split("_W")[0]: value.round(5).tolist() for name, value in vars(self).items()
                 if isinstance(value, np.ndarray)}
        return {"query": self.query, "hit": vars(self.hit), "level_weights": self.level_weights, "words": self.words,
                **lists, "phrases": [vars(phrase) for phrase in self.phrases]}


def explain_hit(query: str, hit: Hit, text: TextTokens, video: VideoTokens, times_T: np.ndarray,
                words: list[tuple[str, list[int]]], level_weights: dict[str, float],
                baseline: Baseline | None = None) -> Explanation:
    """The explanation of one hit. `words`: each word of the query and the positions of its tokens in the text.

    A word's cosine with a frame is the largest of its tokens' cosines; its weight is the sum of theirs. Padding frames
    are left out.
    """
    valid_T = (video.frame_weights_BT[0] > 0).numpy()
    pieces_TW = frame_word_matrix(text, video).float().numpy()[valid_T]
    weights_W = text.word_weights_BW[0].float().numpy()
    frame_word_TW = np.stack([pieces_TW[:, at].max(1) for _, at in words], 1) if words else np.zeros((valid_T.sum(), 0))
    return Explanation(
        query, hit, level_weights, tuple(word for word, _ in words),
        np.array([weights_W[at].sum() for _, at in words]), times_T[valid_T],
        video.frame_weights_BT[0].float().numpy()[valid_T], frame_word_TW,
        frame_relevance(text, video, baseline)[valid_T], _phrase_matches(text, video, times_T, words))


def _phrase_matches(text: TextTokens, video: VideoTokens, times_T: np.ndarray, words: list[tuple[str, list[int]]]
                    ) -> tuple[PhraseMatch, ...]:
    """The phrases, largest weight first; none for heads without phrases or clips. Two words name a phrase. [ours]"""
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
    encoded = tokenizer(query, verbose=False)       # without truncation, because the tokenizer would keep that setting
    word_ids = encoded.word_ids(0)
    num_ends = next((count for count, number in enumerate(reversed(word_ids)) if number is not None), 0)
    places: dict[int, list[int]] = {}
    for at, number in enumerate(word_ids[:num_tokens - num_ends]):
        if number is not None:
            places.setdefault(number, []).append(at)
    words = []
    for number, made_of in places.items():
        span = encoded.word_to_chars(0, number)
        word = query[span.start:span.end].strip() or tokenizer.decode(encoded["input_ids"][made_of[0]])
        words.append((word, made_of))
    return words
