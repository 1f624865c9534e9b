"""Why a video answers a query: what each word adds to the score in its best frame, and each phrase in its best clip."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hcmi.model import TOLD_SHARE, HcmiModel
from hcmi.search.moments import Baseline, frame_relevance, frame_word_matrix
from hcmi.types import Hit, TextTokens, VideoTokens, path_text

FUNCTION_WORDS = frozenset(("a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "into", "is", "it", "of",
                            "on", "or", "that", "the", "then", "to", "while", "with"))


@dataclass(frozen=True)
class PhraseMatch:
    """One phrase of the query, named by the words nearest to it, and the clip that matches it best."""

    words: tuple[str, ...]
    weight: float           # of the phrase in the query
    clip: int
    time_s: float           # of the frame nearest to that clip
    cosine: float
    share: float            # what it adds to the score


@dataclass(frozen=True)
class Explanation:
    """The parts that the score of one hit is made of.

    With the head `hcmi`, the score is the sum of the shares of words, marks and phrases, and of the weighted level
    `video_sentence`. A word's share is what it adds in its best frame, and what the frames add whose best word it is;
    how much each of the two counts depends on how much of a video the query tells (`Hcmi`). Other heads do not compute
    a sum over words: `word_shares_W` is then empty.

    Where the sentence alone makes the score, as for a checkpoint that nothing was trained on, single words mean
    nothing: the query as a whole is the only word, and its cosines are those of frame and sentence.
    """

    query: str
    hit: Hit
    level_weights: dict[str, float]
    words: tuple[str, ...]
    word_weights_W: np.ndarray
    word_frames_W: np.ndarray       # the frame that matches each word best, as its place in `times_s`
    word_cosines_W: np.ndarray      # with that frame
    word_shares_W: np.ndarray       # what each word adds to the score
    marks_share: float              # the same for the marks at the start and the end of the text, which are tokens too
    times_s: np.ndarray             # [T] seconds into the file
    frame_word_TW: np.ndarray       # cosines
    relevance_T: np.ndarray         # of each frame to the query; the moment is found in it
    baseline: bool                  # whether that is in standard deviations above other videos, and no cosine
    phrases: tuple[PhraseMatch, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        lists = {name.split("_T")[0].split("_W")[0]: value.round(5).tolist() for name, value in vars(self).items()
                 if isinstance(value, np.ndarray)}
        hit = asdict(self.hit) | {"path": path_text(self.hit.path)}
        return {"query": self.query, "hit": hit, "level_weights": self.level_weights, "words": self.words, **lists,
                "marks_share": self.marks_share, "baseline": self.baseline,
                "phrases": [vars(phrase) for phrase in self.phrases]}


def explain_hit(query: str, hit: Hit, text: TextTokens, video: VideoTokens, times_T: np.ndarray, model: HcmiModel,
                baseline: Baseline | None = None) -> Explanation:
    """The explanation of one hit. `text` and `video` hold one row: the encoded query and the tokens of the hit.

    The weight of a word of several tokens is the sum of theirs, and its cosine is their mean by weight. Each token
    counts in its own best frame, as in the score. Padding frames are left out.
    """
    valid_T = (video.frame_weights_BT[0] > 0).numpy()
    relevance_T = frame_relevance(text, video, baseline, model.uses_words)[valid_T]
    if not model.uses_words:
        cosines_T1 = frame_relevance(text, video, by_words=False)[valid_T][:, None]
        return Explanation(query, hit, model.level_weights, (query,), np.ones(1), cosines_T1.argmax(0),
                           cosines_T1.max(0), np.zeros(0), 0.0, times_T[valid_T], cosines_T1, relevance_T,
                           baseline is not None, ())
    words = query_words(model.processor.tokenizer, model.processor.known(query)[0], model.processor.num_words)
    cosines_TN = frame_word_matrix(text, video).float().numpy()[valid_T]    # of each token
    weights_N = text.word_weights_BW[0].float().numpy()
    weights_NW = np.zeros((len(weights_N), len(words)), np.float32)         # of each token in its word
    for word, (_, at) in enumerate(words):
        weights_NW[at, word] = weights_N[at]
    weights_W, best_N, level_weights = weights_NW.sum(0), cosines_TN.max(0), model.level_weights
    cosines_W, frame_word_TW = best_N @ weights_NW / weights_W, cosines_TN @ weights_NW / weights_W
    shares_W, marks_share = np.zeros(0), 0.0
    if model.config.head == "hcmi":
        shares_N = level_weights["frame_word"] * _shares(text, cosines_TN.T, weights_N,
                                                         video.frame_weights_BT[0].numpy()[valid_T])
        shares_W = shares_N @ (weights_NW > 0)
        marks_share = float(shares_N.sum() - shares_W.sum())
    return Explanation(
        query, hit, level_weights, tuple(word for word, _ in words), weights_W, frame_word_TW.argmax(0), cosines_W,
        shares_W, marks_share, times_T[valid_T], frame_word_TW, relevance_T, baseline is not None,
        _phrase_matches(text, video, times_T, words, level_weights.get("clip_phrase", 0.0)))


def _shares(text: TextTokens, sims_NM: np.ndarray, weights_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """What each token of the text adds to a fine level: its best match, and the matches of which it is the best one.

    Tokens of weight 0 are padding and add nothing. The shares add up to the level's similarity.
    """
    told_share = TOLD_SHARE * float(text.sentence_BD[0].norm())
    sims_NM = np.where(weights_N[:, None] > 0, sims_NM, -np.inf)
    shown_N = np.where(weights_N > 0, weights_N * sims_NM.max(1), 0)
    told_N = np.bincount(sims_NM.argmax(0), weights_M * sims_NM.max(0), minlength=len(weights_N))
    return (1 - told_share) * shown_N + told_share * told_N


def _phrase_matches(text: TextTokens, video: VideoTokens, times_T: np.ndarray, words: list[tuple[str, list[int]]],
                    level_weight: float) -> tuple[PhraseMatch, ...]:
    """The phrases, largest weight first; none for heads without phrases or clips. Two words name a phrase. [ours]

    Punctuation and words such as "then" name a phrase only where the query has no other words.
    """
    if not text.phrases_BPD.shape[1] or not video.clips_BCD.shape[1] or not words:
        return ()
    phrases_PD, clips_CD = text.phrases_BPD[0], video.clips_BCD[0]
    sims_PC = (phrases_PD @ clips_CD.T).float().numpy()
    named = [word for word in words if _tells(word[0])] or words
    names_PW = np.stack([(phrases_PD @ text.words_BWD[0].T).float().numpy()[:, at].max(1) for _, at in named], 1)
    frame_of_clip = (clips_CD @ video.frames_BTD[0].T).float().numpy()
    frame_of_clip[:, (video.frame_weights_BT[0] <= 0).numpy()] = -np.inf
    shares_P = level_weight * _shares(text, sims_PC, text.phrase_weights_BP[0].float().numpy(),
                                      video.clip_weights_BC[0].float().numpy())
    found = []
    for phrase, weight in enumerate(text.phrase_weights_BP[0].tolist()):
        if weight > 0:
            clip = int(sims_PC[phrase].argmax())
            nearest = sorted(np.argsort(-names_PW[phrase])[:2])
            found.append(PhraseMatch(tuple(named[at][0] for at in nearest), weight, clip,
                                     float(times_T[frame_of_clip[clip].argmax()]), float(sims_PC[phrase, clip]),
                                     float(shares_P[phrase])))
    return tuple(sorted(found, key=lambda match: -match.weight))


def _tells(word: str) -> bool:
    return word.lower() not in FUNCTION_WORDS and any(char.isalnum() for char in word)


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
