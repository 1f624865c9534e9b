"""From a sentence, or a video, to videos and the moments in them: FAISS first, exact three-level re-ranking second."""

import copy
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hcmi.config import load_params
from hcmi.errors import ConfigError, DataError, shown
from hcmi.files import ask_to_write, atomic_file
from hcmi.index import Filter, MilvusIndex, SearchIndex, is_milvus
from hcmi.model import HcmiModel, encode_texts, load_retriever, load_text_encoder
from hcmi.runtime import one_thread
from hcmi.search.explain import Background, Explanation, Usual, background, explain_hit, moment, query_words
from hcmi.types import Clip, Hit, TextTokens, VideoTokens

CANDIDATES = 200
MAX_TOP = 1000
MAX_QUERY_CHARS = 2000
PART_HEADS = ("hcmi", "wti")    # those that compare words with frames from each side
PART_LEVELS = ("frame_word", "clip_phrase")
BACKGROUND_VIDEOS = 256     # tell what a query usually matches at each place of a video
Index = SearchIndex | MilvusIndex


class Retriever:
    """A trained model and the videos it has indexed: in a folder, or in Milvus (a file ending in .db, or an address).

        retriever = Retriever("models/hcmi", "export/index")
        retriever.search("a red ring slides left", top=5)
        retriever.search("a dog", tags={"place": "beach"}, max_seconds=30)
        retriever.search("a dog jumps into water", part=True)
        retriever.similar("video_0001")
        retriever.captions_of("video_0001", ["a dog runs", "a cat sleeps"])

    Videos added to the index by others are found from the next call on. Of a model given as a folder only the text side
    is kept in memory.

    Any number of threads may use one retriever: a call answers from one state of the index, whatever other threads ask
    or change meanwhile, and one thread alone computes it, so that threads do not wait for one another. A forked child
    may go on with its parent's retriever (over a folder, not over Milvus, whose connection does not survive a fork).
    Raises: ModelError, SearchIndexError (no index, a broken one, or one made by another model).
    """

    def __init__(self, model: str | Path | HcmiModel = "models/hcmi", index: str | Path = "export/index",
                 candidates: int = CANDIDATES):
        self.model_folder = Path(model) if isinstance(model, (str, Path)) else None
        self.model = load_text_encoder(model) if isinstance(model, (str, Path)) else model
        self.index: Index = MilvusIndex(str(index)) if is_milvus(str(index)) else SearchIndex.open(index, load=True)
        self.candidates = candidates
        self.fingerprint = self.model.fingerprint
        self.index.check_model(self.fingerprint)
        self._follows = True        # looks for a newer state of the index at each call
        self._background: tuple[Index, Background | None] | None = None
        self.notes: list[str] = []      # what the user should know of the videos, one line each

    @classmethod
    def from_folder(cls, videos: str | Path, model: str | Path | HcmiModel = "models/hcmi",
                    candidates: int = CANDIDATES, cache: str | Path | None = None) -> "Retriever":
        """Search a folder of videos directly. Embeddings are kept in `cache` ($HCMI_CACHE or ~/.cache/hcmi).

        Raises: ModelError, DataError (no such folder, no usable video in it).
        """
        from hcmi.search.folder_index import index_folder

        loaded = load_retriever(model) if isinstance(model, (str, Path)) else model
        found = index_folder(loaded, videos, cache)
        retriever = cls(loaded, found.path, candidates)
        retriever.notes = list(found.news.values())
        if len(found.skipped) > len(found.news):
            retriever.notes.append(f"{videos}: {len(found.skipped)} of {found.num_files} files cannot be searched, "
                                   f"such as {shown(next(iter(found.skipped)))}.")
        return retriever

    def search(self, query: str, top: int = 10, tags: dict[str, str] | None = None,
               min_seconds: float | None = None, max_seconds: float | None = None, part: bool = False) -> list[Hit]:
        """Videos that show what `query` says, best first, each with its best moment.

        `part`: the query tells a part of a video; what else the video shows does not count against it.
        Raises: ConfigError when the query cannot be understood, `top` is out of range or the model cannot tell parts.
        """
        text = self.encode_query(query)
        return self.rank(text, check_top(top), Filter(tuple((tags or {}).items()), min_seconds, max_seconds), part)

    def similar(self, video_id: str, top: int = 10, tags: dict[str, str] | None = None,
                min_seconds: float | None = None, max_seconds: float | None = None) -> list[Hit]:
        """Videos like an indexed one. Its frames and clips play the part of words and phrases. [ours]

        Raises: DataError when no such video is indexed.
        """
        index = self._newest()
        video = index.tokens(_row_of(index, video_id))
        text = TextTokens(video.video_BD, video.frames_BTD, video.clips_BCD, video.frame_weights_BT,
                          video.clip_weights_BC)
        where = Filter(tuple((tags or {}).items()), min_seconds, max_seconds)
        hits = self._rank(index, text, check_top(top) + 1, where)
        others = [hit for hit in hits if hit.video_id != video_id][:top]
        return [Hit(**{**vars(hit), "rank": rank}) for rank, hit in enumerate(others, 1)]

    def captions_of(self, video_id: str, captions: Sequence[str] | None = None, top: int = 10
                    ) -> list[tuple[str, float]]:
        """(caption, score), best first: which of `captions`, or of all captions in the index, tell this video.

        Raises: DataError when no such video is indexed or there are no captions.
        """
        index = self._newest()
        if captions is None:
            captions = index.captions()
        if not captions:
            raise DataError(f"{video_id}: need captions to choose from, got none. Give some.")
        video = index.tokens(_row_of(index, video_id))
        scores: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(captions), 256):
                texts = encode_texts(self.model, list(captions[start:start + 256]))
                scores += self.model.combine(self.model.similarities(texts, video))[:, 0].tolist()
        order = np.argsort(-np.array(scores), kind="stable")[:check_top(top)]
        return [(captions[at], scores[at]) for at in order]

    def explain(self, query: str, hit: Hit) -> Explanation:
        """Why `hit` answers `query`: data; `hcmi.search.picture.draw` makes a picture of it.

        Raises: DataError when the video is not indexed any more.
        """
        text, index = self.encode_query(query), self._newest()
        row = _row_of(index, hit.video_id)
        processor = self.model.processor
        words = query_words(processor.tokenizer, processor.known(query)[0], processor.num_words)
        with one_thread():
            return explain_hit(query, hit, text, index.tokens(row), index.times(row)[0], words,
                               self.model.level_weights, self._usual(index, text))

    def video(self, video_id: str) -> tuple[VideoTokens, Clip]:
        """Tokens of one indexed video, and the clip as the manifest had it.

        Raises: DataError when there is none.
        """
        index = self._newest()
        row = _row_of(index, video_id)
        return index.tokens(row), index.clips(row)[0]

    @property
    def tells_parts(self) -> bool:
        """Whether `part` can be asked for."""
        weights = self.model.level_weights
        return self.model.config.head in PART_HEADS and any(weights.get(level) for level in PART_LEVELS)

    def encode_query(self, query: str) -> TextTokens:
        """Tokens of one checked query. Only the text tower runs."""
        processor = self.model.processor
        ids_BW, mask_BW = processor.texts([check_query(query)])
        letters = [char for char in query if char.isalpha()]
        foreign = sum(not char.isascii() for char in letters)
        # Punctuation may take several tokens in any language, so only words are counted.
        words = "".join(char if char.isalpha() or unicodedata.category(char)[0] == "M" else " " for char in query)
        if 2 * foreign > len(letters) and len(processor.tokens(words)) > len(letters):
            raise ConfigError(f"query {shorten(query)!r}: need words of a language the model knows, got text its "
                              "tokenizer can only spell byte by byte. Ask in the language of the training captions.")
        if not processor.known(query)[0]:
            raise ConfigError(f"query {shorten(query)!r}: need a word that a training caption has, got none. "
                              "Ask in the words of the training captions.")
        with torch.inference_mode(), one_thread():
            return self.model.encode_texts(ids_BW, mask_BW)

    def query_notes(self, query: str) -> list[str]:
        """What the user should know of how a query is understood, one line each."""
        words = [word for word in self.model.processor.known(query)[1] if any(char.isalnum() for char in word)]
        return [f"left out, since no training caption has them: {', '.join(words)}."] if words else []

    def as_loaded(self) -> "Retriever":
        """This retriever over the index as it is now: it looks at its folders no more, so they may change or go."""
        other = copy.copy(self)
        other._follows = False
        return other

    def with_index(self, index: Index) -> "Retriever":
        """This retriever over another index of the same model.

        Raises: SearchIndexError when another model made it.
        """
        index.check_model(self.fingerprint)
        other = copy.copy(self)
        other.index = index
        return other

    def _newest(self) -> Index:
        """The index to answer one call from. Each call takes it once: other threads may move `self.index` on."""
        index = self.index
        newest = index.latest() if self._follows else index
        if newest is not index:
            newest.check_model(self.fingerprint)
            self.index = newest
        return newest

    def _usual(self, index: Index, text: TextTokens) -> Usual | None:
        """What this text usually matches, among some videos of the index; drawn again when the index has changed."""
        drawn = self._background
        if drawn is None or drawn[0] is not index:
            some = index.some_rows(BACKGROUND_VIDEOS)
            drawn = self._background = index, background(index.tokens(some)) if len(some) else None
        return drawn[1].usual(text) if drawn[1] else None

    def rank(self, text: TextTokens, top: int, where: Filter, part: bool = False) -> list[Hit]:
        """Answer an encoded query: first stage, then the exact score of each candidate from its tokens."""
        return self._rank(self._newest(), text, top, where, part)

    def _rank(self, index: Index, text: TextTokens, top: int, where: Filter, part: bool = False) -> list[Hit]:
        if part and not self.tells_parts:
            raise ConfigError(f"--part: need a model with head {' or '.join(PART_HEADS)} and weight on "
                              f"{' or '.join(PART_LEVELS)}, got {self.model.config.head} with "
                              f"{self.model.level_weights}. Leave it out.")
        rows = index.candidates(text.sentence_BD[0].numpy(), max(self.candidates, 2 * top), where)
        if not len(rows):
            return []
        with one_thread():
            videos = index.tokens(rows)
            with torch.inference_mode():
                levels = (part_similarities(text, videos, self.model.head.levels) if part
                          else self.model.similarities(text, videos))
                scores_V = self.model.combine(levels)[0]
            best = torch.argsort(scores_V, descending=True, stable=True)[:top].tolist()
            usual, hits = self._usual(index, text), []
            found = zip(best, index.clips(rows[best]), index.times(rows[best]), strict=True)
            for rank, (at, clip, times_T) in enumerate(found, 1):
                start_s, end_s = moment(text, videos[at:at + 1], times_T, clip.start_s, clip.end_s, usual)
                hits.append(Hit(rank, clip.video_id, clip.path, float(scores_V[at]), round(start_s, 3),
                                round(end_s, 3), {name: float(sims[0, at]) for name, sims in levels.items()}))
        return hits


def _row_of(index: Index, video_id: str) -> np.ndarray:
    """[1] the row of one video.

    Raises: DataError when it is not indexed.
    """
    rows = index.rows_of("video_id", [video_id])
    if not len(rows):
        raise DataError(f"video {video_id!r}: need the video_id of an indexed video, got an unknown one. "
                        "videos.parquet lists them.")
    return rows[:1]


def part_similarities(texts: TextTokens, videos: VideoTokens, levels: Iterable[str]) -> dict[str, Tensor]:
    """Level -> [Q, V], by the texts' side alone: frames and clips that no word asks for do not count.

        S = sum_w u_w max_t cos(w, t)

    Levels of whole videos are left out: one vector of a video tells all that it shows. Source: ours.
    """
    def by_text(tokens_QWD: Tensor, weights_QW: Tensor, others_VTD: Tensor, others_VT: Tensor) -> Tensor:
        sims_QWVT = torch.einsum("qwd,vtd->qwvt", tokens_QWD.float(), others_VTD.float())
        per_word_QWV = sims_QWVT.masked_fill(others_VT <= 0, -1).amax(3)
        return torch.einsum("qwv,qw->qv", per_word_QWV, weights_QW.float())

    sides = {"frame_word": (texts.words_BWD, texts.word_weights_BW, videos.frames_BTD, videos.frame_weights_BT),
             "clip_phrase": (texts.phrases_BPD, texts.phrase_weights_BP, videos.clips_BCD, videos.clip_weights_BC)}
    return {level: by_text(*sides[level]) for level in levels if level in PART_LEVELS}


def check_top(top: int) -> int:
    """Raises: ConfigError outside 1..MAX_TOP."""
    if not 1 <= top <= MAX_TOP:
        raise ConfigError(f"--top: need 1 to {MAX_TOP}, got {top}. Ask for fewer answers.")
    return top


def check_query(query: str) -> str:
    """The query, if a person could read it.

    Raises: ConfigError when it is empty, binary or longer than MAX_QUERY_CHARS.
    """
    if not query.strip():
        raise ConfigError("query: need some words, got none. Say what the video shows.")
    if any(unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") and char not in "\t\n\r" for char in query):
        raise ConfigError(f"query {shorten(query)!r}: need readable text in UTF-8, got control characters or bytes "
                          "that are not text. Say what the video shows in words.")
    if len(query) > MAX_QUERY_CHARS:
        raise ConfigError(f"query {shorten(query)!r}: need at most {MAX_QUERY_CHARS} characters, got {len(query)}. "
                          "Say it in a sentence or two.")
    return query


def shorten(text: str, length: int = 40) -> str:
    """For messages."""
    return text if len(text) <= length else text[:length] + "…"


def open_retriever(model: str, index: str | None, videos: str | None, params: str) -> Retriever:
    """What the command line asks for; params.yaml is optional, since searching a folder needs no pipeline."""
    uri, candidates = "export/index", CANDIDATES
    if os.path.exists(params):
        config = load_params(params).search
        uri, candidates = config.uri, config.candidates
    if videos is not None:
        if index is not None:
            raise ConfigError(f"--videos {videos}: need one place to search, got --index {index} too. Leave one out.")
        return Retriever.from_folder(videos, model, candidates)
    return Retriever(model, index or uri, candidates)


def check_picture(path: str | None) -> None:
    """Before any work is done. Raises: ConfigError when the ending names no kind of picture, MachineError when it
    cannot be written."""
    if path is None:
        return
    if Path(path).suffix.lower() not in (".json", ".png", ".svg", ".pdf"):
        raise ConfigError(f"--explain {path}: need a name ending in .png, .svg, .pdf or .json, got "
                          f"{Path(path).suffix or 'no ending'!r}. Rename the file.")
    ask_to_write(files=[path])


def write_explanation(explanation: Explanation, path: str) -> None:
    """As JSON or as a picture, by the ending of `path`.

    Raises: DecodeError when a picture is asked for and the video is gone or cannot be decoded.
    """
    if Path(path).suffix.lower() == ".json":
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(explanation.record(), indent=1, ensure_ascii=False), encoding="utf-8")
        return
    from hcmi.search.picture import draw

    draw(explanation, path)


def parse_tags(tags: Sequence[str]) -> dict[str, str]:
    """Raises: ConfigError when one is not NAME=VALUE."""
    for tag in tags:
        if not tag.partition("=")[0] or "=" not in tag:
            raise ConfigError(f"--tag: need NAME=VALUE, got {tag!r}. For example --tag place=beach.")
    return {tag.partition("=")[0]: tag.partition("=")[2] for tag in tags}


def missing_files(hits: Sequence[Hit]) -> list[str]:
    """One line per hit whose video was deleted or moved since it was indexed."""
    return [f"{hit.path}: the video is no longer on disk. Put it back, or export again without it."
            for hit in hits if not os.path.exists(hit.path)]


def hit_record(hit: Hit) -> dict[str, Any]:
    """For JSON: rank, video_id, path, score, start_s, end_s, and one key per level."""
    fields = {name: value for name, value in vars(hit).items() if name != "levels"}
    return {**fields, "levels": hit.levels}


def hits_text(hits: Sequence[Hit]) -> str:
    """A table for people."""
    if not hits:
        return "Nothing found: the index is empty, or no video passes the filters."
    paths = [shown_path(hit.path) for hit in hits]
    width = max(map(len, paths))
    lines = []
    for hit, path in zip(hits, paths, strict=True):
        levels = "  ".join(f"{name.replace('_', '-')} {value:.3f}" for name, value in hit.levels.items())
        lines.append(f"{hit.rank:3d}  {path:{width}}  {hit.start_s:7.1f} - {hit.end_s:.1f} s  score {hit.score:.3f}  "
                     f"({levels})")
    return "\n".join(lines)


def shown_path(path: str) -> str:
    """Relative to the working folder where the video is below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
