"""Find videos, and the moments in them, for a text or a video: FAISS first, then exact three-level re-ranking."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from hcmi.config import WindowsConfig
from hcmi.errors import DataError, shown
from hcmi.files import from_project, project_of
from hcmi.index import Filter, MilvusIndex, SearchIndex, is_milvus
from hcmi.model import HcmiModel, encode_texts, load_retriever, load_text_encoder, unread
from hcmi.runtime import one_thread
from hcmi.search.explain import Explanation, explain_hit
from hcmi.search.moments import BASELINE_VIDEOS, Baseline, find_moment, measure_baseline
from hcmi.search.query import check_number, check_query, check_tags, check_top, check_words
from hcmi.types import Clip, Hit, Moment, TextTokens, VideoTokens
from hcmi.wording import shortened

CANDIDATES = 200
MORE, MOST = 25, 10_000     # times as many candidates, and at most this many, among which other files are looked for
MOMENTS = 5             # of one file, at most
Index = SearchIndex | MilvusIndex


class Retriever:
    """A trained model and the videos it has indexed: in a folder, or in Milvus (a file ending in .db, or an address).

        retriever = Retriever("models/hcmi", "export/index")
        retriever.search("a red ring slides left", top=5)
        retriever.search("a dog", tags={"place": "beach"}, max_seconds=30)
        retriever.similar("video_0001")
        retriever.rank_captions("video_0001", ["a dog runs", "a cat sleeps"])

    `model` may also be a CLIP or SigLIP checkpoint, by its folder or its name on the hub (`load_retriever`). Each call
    finds the videos that have been added to the index so far. When the model is given as a folder or a name, only its
    text side is kept in memory. `precision` is what its towers are stored in: float32, bfloat16 or float16.

    Any number of threads may use one retriever. A call answers from one state of the index, even if other threads
    search or change it at the same time. Each call is computed by one thread, so that threads do not wait for each
    other. A forked child may use its parent's retriever over a folder, but not over Milvus, whose connection does not
    survive a fork.
    Raises: ModelError; SearchIndexError when there is no index, it is broken, or another model made it.
    """

    def __init__(self, model: str | Path | HcmiModel = "models/hcmi", index: str | Path = "export/index",
                 candidates: int = CANDIDATES, precision: str = "float32"):
        self.model_folder = Path(model) if isinstance(model, (str, Path)) else None
        self.model = load_text_encoder(model, precision=precision) if isinstance(model, (str, Path)) else model
        self.precision = precision
        self.index: Index = MilvusIndex(str(index)) if is_milvus(str(index)) else SearchIndex.open(index, load=True)
        self.project = Path.cwd() if is_milvus(str(index)) else project_of(index)
        self.candidates = candidates
        self.fingerprint = self.model.fingerprint
        self.index.check_model(self.fingerprint)
        self._follows = True        # look for a newer state of the index at each call
        self._baseline_videos: tuple[Index, VideoTokens | None] | None = None
        self.notes: list[str] = []      # what the user should know about the videos, one line each

    @classmethod
    def from_folder(cls, videos: str | Path, model: str | Path | HcmiModel = "models/hcmi",
                    candidates: int = CANDIDATES, cache: str | Path | None = None, precision: str = "float32",
                    windows: WindowsConfig | None = None) -> "Retriever":
        """A retriever over a folder of videos.

        `cache`: where embeddings are kept; default: $HCMI_CACHE, else hcmi in $XDG_CACHE_HOME, else ~/.cache/hcmi.
        `windows`: how long videos are divided; default: 4 s that overlap by 3 s, in videos of more than 30 s.

        Raises: ModelError; DataError when there is no such folder, or no usable video in it.
        """
        from hcmi.search.folder_index import WINDOWS, index_folder

        loaded = load_retriever(model, precision=precision) if isinstance(model, (str, Path)) else model
        found = index_folder(loaded, videos, cache, windows or WINDOWS)
        retriever = cls(loaded, found.path, candidates)
        retriever.notes = [*found.news.values(), *found.partial.values()]
        if len(found.skipped) > len(found.news):
            retriever.notes.append(f"{shown(videos)}: {len(found.skipped)} of {found.num_files} files cannot be "
                                   f"searched, such as {shown(next(iter(found.skipped)))}.")
        return retriever

    def search(self, query: str, top: int = 10, tags: dict[str, str] | None = None,
               min_seconds: float | None = None, max_seconds: float | None = None) -> list[Hit]:
        """Files that show what `query` says, best first, each with its best moments.

        Clips and windows of one file are one answer. Up to MOMENTS moments of it are given that share no second.
        The query may describe a part of a video: what else the video shows does not lower its score.
        Raises: ConfigError when the query cannot be understood, `top` is out of range, or a length is no number.
        """
        where = _filter(tags, min_seconds, max_seconds)
        return self.rank(self.encode_query(query), check_top(top), where)

    def similar(self, video_id: str, top: int = 10, tags: dict[str, str] | None = None,
                min_seconds: float | None = None, max_seconds: float | None = None) -> list[Hit]:
        """Files like an indexed video, best first. Its frames and clips are used as words and phrases. [ours]

        Other clips or windows of its own file are left out.

        Raises: ConfigError when `top` is out of range or a length is no number; DataError when no such video is
        indexed.
        """
        check_top(top)
        where = _filter(tags, min_seconds, max_seconds)
        index = self._newest()
        row = _row_of(index, video_id)
        video, own = index.tokens(row), index.clips(row)[0]
        text = TextTokens(video.video_BD, video.frames_BTD, video.clips_BCD, video.frame_weights_BT,
                          video.clip_weights_BC)
        return self._rank(index, text, top, where, [own.path])

    def rank_captions(self, video_id: str, captions: Sequence[str] | None = None, top: int = 10
                      ) -> list[tuple[str, float]]:
        """(caption, score), best first: how well each of `captions` describes this video.

        `captions`: default all captions in the index.
        Raises: ConfigError when `top` is out of range; DataError when no such video is indexed or there is no caption.
        """
        check_top(top)
        index = self._newest()
        if isinstance(captions, str):
            raise DataError(f"captions: need a list of captions, got the text {captions[:40]!r}. Put it into a list.")
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
        order = np.argsort(-np.array(scores), kind="stable")[:top]
        return [(captions[at], scores[at]) for at in order]

    def explain(self, query: str, hit: Hit) -> Explanation:
        """Why `hit` answers `query`, as data; `hcmi.search.explanation_plot` draws it.

        Raises: DataError when the video is no longer indexed.
        """
        text, index = self.encode_query(query), self._newest()
        row = _row_of(index, hit.video_id)
        with one_thread():
            return explain_hit(query, hit, text, index.tokens(row), index.times(row)[0], self.model,
                               self._baseline(index, text))

    def video(self, video_id: str) -> tuple[VideoTokens, Clip]:
        """The tokens of one indexed video, and its clip as in the manifest.

        Raises: DataError when no such video is indexed.
        """
        index = self._newest()
        row = _row_of(index, video_id)
        return index.tokens(row), index.clips(row)[0]

    def file_of(self, path: str) -> str:
        """The file at a path of the index. Such paths are relative to the project, which may be another folder."""
        return from_project(path, self.project)

    def encode_query(self, query: str) -> TextTokens:
        """The tokens of one query, which is checked first. Only the text tower runs.

        Raises: ConfigError when the query cannot be understood; ModelError when its tokens are not finite.
        """
        check_words(check_query(query), self.model)
        with one_thread():
            return encode_texts(self.model, [query])

    def query_notes(self, query: str) -> list[str]:
        """What the user should know about how the query is understood, one line each."""
        known, unknown = self.model.processor.known(query)
        words = [word for word in unknown if any(char.isalnum() for char in word)]
        notes = [f"left out, since no training caption has them: {', '.join(words)}."] if words else []
        if rest := unread(known, self.model.processor):
            notes.append(f"left out, since the model reads {self.model.processor.num_words} tokens: "
                         f"{shortened(f'{rest}.', 60)}")
        return notes

    def tag_notes(self, tags: dict[str, str] | None) -> list[str]:
        """Which of the tags that are asked for no video has, whatever its value; one line each."""
        index = self._newest()
        return [f"no video has the tag {name!r}." for name in check_tags(tags) if not index.has_tag(name)]

    def as_loaded(self) -> "Retriever":
        """A copy that stays with the index as it is now and reads its folders no more, so they may be deleted."""
        other = copy.copy(self)
        other._follows = False
        return other

    def with_index(self, index: Index) -> "Retriever":
        """A copy over another index of the same model.

        Raises: SearchIndexError when another model made it.
        """
        index.check_model(self.fingerprint)
        other = copy.copy(self)
        other.index = index
        return other

    def _newest(self) -> Index:
        """The index to answer one call from. Call it once per answer: other threads may replace `self.index`."""
        index = self.index
        newest = index.latest() if self._follows else index
        if newest is not index:
            newest.check_model(self.fingerprint)
            self.index = newest
        return newest

    def _baseline(self, index: Index, text: TextTokens) -> Baseline | None:
        """The text's baseline over some videos of the index, which are read again when the index has changed."""
        read = self._baseline_videos
        if read is None or read[0] is not index:
            rows = index.some_rows(BASELINE_VIDEOS)
            read = self._baseline_videos = index, index.tokens(rows) if len(rows) else None
        return None if read[1] is None else measure_baseline(text, read[1], self.model.uses_words)

    def rank(self, text: TextTokens, top: int, where: Filter) -> list[Hit]:
        """Answers to an encoded query: the first stage, then the exact score of each candidate from its tokens."""
        return self._rank(self._newest(), text, top, where)

    def _rank(self, index: Index, text: TextTokens, top: int, where: Filter, without: Sequence[str] = ()
              ) -> list[Hit]:
        rows, paths = self._candidates(index, text.sentence_BD[0].numpy(), top, where, without)
        if not len(rows):
            return []
        with one_thread():
            videos = index.tokens(rows)
            with torch.inference_mode():
                levels = self.model.similarities(text, videos)
                scores_V = self.model.combine(levels)[0]
            order = torch.argsort(scores_V, descending=True, stable=True).tolist()
            baseline = self._baseline(index, text)
            files: dict[str, list[int]] = {}        # path -> its candidates, best first
            for at in order:
                files.setdefault(paths[at], []).append(at)
            files = dict(list(files.items())[:top])
            chosen = [at for of_file in files.values() for at in of_file]
            moments: dict[int, Moment] = {}         # of each candidate of these files
            for at, clip, times_T in zip(chosen, index.clips(rows[chosen]), index.times(rows[chosen]), strict=True):
                start_s, end_s = find_moment(text, videos[at:at + 1], times_T, clip.start_s, clip.end_s, baseline,
                                             self.model.uses_words)
                moments[at] = Moment(clip.video_id, float(scores_V[at]), round(start_s, 3), round(end_s, 3))
        hits = []
        for rank, (path, of_file) in enumerate(files.items(), 1):
            best, *more = _apart(moments[at] for at in of_file)
            hits.append(Hit(rank, best.video_id, self.file_of(path), best.score, best.start_s, best.end_s,
                            {name: float(sims[0, of_file[0]]) for name, sims in levels.items()
                             if self.model.level_weights[name] > 0}, tuple(more)))
        return hits

    def _candidates(self, index: Index, query_D: np.ndarray, top: int, where: Filter, without: Sequence[str]
                    ) -> tuple[np.ndarray, list[str]]:
        """The rows that are ranked exactly, and their files, of which those in `without` are none. [ours]

        Where the windows of few files take all places, no file has more than its share of them while there are others:
        the best window of each of the `top` nearest files is among the rows.
        """
        count = max(self.candidates, 2 * top)
        rows = index.candidates(query_D, count, where, without)
        paths = index.paths(rows) if len(rows) else []
        if len(rows) < count or len(set(paths)) >= top:
            return rows, paths
        wide, share = max(count, min(MORE * count, MOST)), count // top
        rows, paths, seen = rows[:0], [], Counter[str]()
        while True:
            full = [path for path, num_rows in seen.items() if num_rows >= share]
            found = index.candidates(query_D, wide, where, [*without, *full])
            new = found[~np.isin(found, rows)]      # they are further away than `rows`
            rows, paths = np.concatenate([rows, new]), [*paths, *(index.paths(new) if len(new) else [])]
            seen = Counter(paths)
            if len(found) < wide or len(seen) >= top:
                break       # otherwise one more file is full: fewer than `top` files have `wide` rows
        before = Counter[str]()
        beyond = []         # whether a row comes after its file's share
        for path in paths:
            beyond.append(before[path] >= share)
            before[path] += 1
        chosen = np.sort(np.argsort(beyond, kind="stable")[:count])
        return rows[chosen], [paths[at] for at in chosen]


def _apart(moments: Iterable[Moment]) -> list[Moment]:
    """The first MOMENTS of `moments`, best first, without those that share time with one before them."""
    kept: list[Moment] = []
    for moment in moments:
        if all(moment.end_s <= other.start_s or other.end_s <= moment.start_s for other in kept):
            kept.append(moment)
            if len(kept) == MOMENTS:
                break
    return kept


def _filter(tags: dict[str, str] | None, min_seconds: float | None, max_seconds: float | None) -> Filter:
    return Filter(tuple(check_tags(tags).items()), check_number(min_seconds, "min_seconds"),
                  check_number(max_seconds, "max_seconds"))


def _row_of(index: Index, video_id: str) -> np.ndarray:
    """[1] row of one video.

    Raises: DataError when it is not indexed.
    """
    rows = index.rows_of("video_id", [video_id])
    if not len(rows):
        raise DataError(f"video {video_id!r}: need the video_id of an indexed video, got an unknown one. "
                        "videos.parquet lists them.")
    return rows[:1]
