"""The search index: FAISS over video-level vectors for the first stage, tokens on disk for the second.

A folder with immutable segments and one `index.json` that names them:

    index.json                                  {"format", "generation", "model": {...}, "segments": [...]}
    <segment>/vectors.faiss                     flat, or HNSW from HNSW_ROWS rows on; inner product
    <segment>/videos.parquet, embeddings/*.npy  (of the first segment of an export: one folder up)
    <segment>/removed-<generation>.npy          row numbers no longer served

At any time a reader that opens the index finds one consistent generation. Readers never lock. The next generation is
written by `hcmi/index/writer.py`.
"""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hcmi.errors import SearchIndexError
from hcmi.index.segment import AGAIN, Filter, Segment
from hcmi.index.store import FIELDS, FILES, table_clips, tokens_of
from hcmi.runtime import single_after_fork
from hcmi.types import Clip, VideoTokens, path_of_text

FORMAT = 1
ENTRY = ("videos", "embeddings", "vectors", "kind", "rows", "digest", "removed", "sizes")     # of a segment


class SearchIndex:
    """A consistent view of an index folder at one generation; `latest()` returns a view of the newest.

    Rows are numbered through all segments; a row number is valid within one generation only. A view that was opened
    with `load` no longer needs its folder. Any number of threads may search one view.
    """

    def __init__(self, folder: Path, catalog: dict[str, Any], segments: list[Segment], loaded: bool = False):
        """Use `SearchIndex.open`."""
        single_after_fork(faiss.omp_set_num_threads)
        self.folder, self.catalog, self.segments, self.loaded = folder, catalog, segments, loaded
        self.model: dict[str, Any] = catalog["model"]
        self.starts = np.cumsum([0, *(segment.rows for segment in segments)])
        self._filtered: tuple[Filter, list[np.ndarray]] | None = None

    @classmethod
    def open(cls, folder: str | Path, known: Sequence[Segment] = (), load: bool = False) -> "SearchIndex":
        """The newest generation in `folder`. `known`: open segments, which are reused if they are unchanged.

        `load`: open every file now, so that the view no longer needs the folder. Otherwise files are opened on first
        use.
        Raises: SearchIndexError when the index is missing, half-copied or broken.
        """
        folder = Path(folder)
        reusable = {json.dumps(segment.entry): segment for segment in known}
        while True:
            catalog = read_catalog(folder)
            try:
                segments = [reusable.get(json.dumps(entry)) or Segment(folder, entry) for entry in catalog["segments"]]
                for segment in segments if load else ():
                    segment.load()
                if not load or read_catalog(folder) == catalog:       # otherwise the files may belong to two exports
                    return cls(folder, catalog, segments, load)
            except SearchIndexError:
                if read_catalog(folder) == catalog:       # otherwise a writer replaced it between the two reads
                    raise

    def __len__(self) -> int:
        return sum(int(segment.alive.sum()) if segment.entry["removed"] else segment.rows for segment in self.segments)

    def num_files(self) -> int:
        """The number of different files. Rows may be parts of one."""
        parts = [segment.videos["path"].filter(pa.array(segment.alive)) for segment in self.segments]
        chunks = [chunk for part in parts for chunk in part.chunks]
        return pc.count_distinct(pa.chunked_array(chunks, pa.string())).as_py()

    @property
    def generation(self) -> int:
        return self.catalog["generation"]

    def latest(self) -> "SearchIndex":
        """This view, or a new one when a writer has made a newer generation."""
        if read_catalog(self.folder) == self.catalog:
            return self
        return SearchIndex.open(self.folder, self.segments, self.loaded)

    def check_model(self, fingerprint: str) -> None:
        """Raises: SearchIndexError when another model made the index, because scores would then be meaningless."""
        check_fingerprint(self.folder, self.model, fingerprint)

    def candidates(self, query_D: np.ndarray, count: int, where: Filter | None = None, without: Collection[str] = ()
                   ) -> np.ndarray:
        """First stage: rows of the `count` videos nearest to `query_D`, of any length, best first.

        Fewer only where no others are left. `without`: files that are left out.
        """
        keeps: list[np.ndarray | None] = [s.alive if s.entry["removed"] else None for s in self.segments]
        if where:
            filtered = self._filtered       # read once: another thread may replace it at any time
            if filtered is None or filtered[0] != where:
                filtered = self._filtered = where, [segment.allowed(where) for segment in self.segments]
            keeps = list(filtered[1])
        left_out = [segment.of_files(without) for segment in self.segments] if without else [None] * len(self.segments)
        query_D = np.ascontiguousarray(query_D, np.float32)
        found = [segment.nearest(query_D, count, keep, out)
                 for segment, keep, out in zip(self.segments, keeps, left_out, strict=True)]
        if not found:
            return np.zeros(0, np.int64)
        rows = np.concatenate([part + start for (part, _), start in zip(found, self.starts, strict=False)])
        scores = np.concatenate([part for _, part in found])
        return rows[np.argsort(-scores, kind="stable")[:count]]

    def tokens(self, rows: np.ndarray) -> VideoTokens:
        """Tokens of `rows` (at least one), read from disk, in the order given."""
        return tokens_of(self.stored(rows, FIELDS))

    def times(self, rows: np.ndarray) -> np.ndarray:
        """[N, T] seconds into each file of the frames that `tokens(rows)` holds; at least one row."""
        return self.stored(rows, ("times_s",))["times_s"]

    def clips(self, rows: np.ndarray) -> list[Clip]:
        """The clips of `rows`, in the order given."""
        parts = self._gather(rows, lambda segment, local: table_clips(segment.videos.take(pa.array(local))))
        found = {int(at): clip for where, clips in parts for at, clip in zip(where, clips, strict=True)}
        return [found[at] for at in range(len(rows))]

    def paths(self, rows: np.ndarray) -> list[str]:
        """The files of `rows`, in the order given. Much faster than `clips`."""
        parts = self._gather(rows, lambda segment, local: segment.videos["path"].take(pa.array(local)).to_pylist())
        found = {int(at): path for where, paths in parts for at, path in zip(where, paths, strict=True)}
        return [path_of_text(found[at]) for at in range(len(rows))]

    def _gather(self, rows: np.ndarray, read: Callable[[Segment, np.ndarray], Any]) -> list[tuple[np.ndarray, Any]]:
        """For each segment that holds some of `rows`: (their positions in `rows`, what `read` returns for them)."""
        rows = np.asarray(rows, np.int64)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        return [(np.flatnonzero(owner == s), read(self.segments[s], rows[owner == s] - self.starts[s]))
                for s in np.unique(owner)]

    def rows_of(self, column: str, values: Sequence[str]) -> np.ndarray:
        """Rows, without removed ones, whose `column` (video_id, sha256, path) is one of `values`."""
        wanted = pa.array(list(values), pa.string())
        parts = [np.flatnonzero(pc.is_in(segment.videos[column], wanted).to_numpy() & segment.alive) + start
                 for segment, start in zip(self.segments, self.starts, strict=False)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def rows_of_clips(self, clips: Sequence[Clip]) -> np.ndarray:
        """Rows that already hold one of `clips`: the same bytes and part of the file, or the same video_id."""
        keys = {clip.content_key for clip in clips}
        rows = self.rows_of("sha256", [clip.sha256 for clip in clips])
        same = [row for row, clip in zip(rows, self.clips(rows), strict=True) if clip.content_key in keys]
        return np.union1d(np.array(same, np.int64), self.rows_of("video_id", [clip.video_id for clip in clips]))

    def some_rows(self, count: int) -> np.ndarray:
        """At most `count` rows that are not removed, spread over the index."""
        rows = self.live_rows()
        return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(int)]

    def captions(self) -> list[str]:
        """Every caption of the index once, sorted."""
        found: set[str] = set()
        for segment in self.segments:
            kept = segment.videos["captions"].filter(pa.array(segment.alive))
            found.update(pc.list_flatten(kept).unique().to_pylist())
        return sorted(found)

    def has_tag(self, name: str) -> bool:
        """Whether any video has this tag, whatever its value."""
        tags = (segment.videos["tags"].filter(pa.array(segment.alive)) for segment in self.segments)
        return any(pc.any(pc.is_valid(pc.map_lookup(some, pa.scalar(name), "first"))).as_py() for some in tags)

    def stored(self, rows: np.ndarray, names: Collection[str] = FILES) -> dict[str, np.ndarray]:
        """The arrays of the token files `names` at `rows` (at least one), by file, in the order given."""
        parts = self._gather(rows, lambda segment, local: segment.store.stored(local, names))
        if len(parts) == 1:
            return parts[0][1]
        order = np.argsort(np.concatenate([at for at, _ in parts]))
        return {name: np.concatenate([arrays[name] for _, arrays in parts])[order] for name in names}

    def live_rows(self) -> np.ndarray:
        """All rows that are not removed."""
        return np.concatenate([np.zeros(0, np.int64),
                               *(np.flatnonzero(s.alive) + start for s, start in zip(self.segments, self.starts,
                                                                                     strict=False))])


def read_catalog(folder: Path) -> dict[str, Any]:
    """What index.json of the newest generation says: the model and the segments.

    Raises: SearchIndexError when it is missing, truncated or of another format.
    """
    path = folder / "index.json"
    try:
        catalog = json.loads(path.read_text(encoding="utf-8"))
        if catalog["format"] != FORMAT:
            raise SearchIndexError(f"{path}: need index format {FORMAT}, got {catalog['format']}. {AGAIN}")
        catalog["generation"], catalog["model"]["fingerprint"]
        [entry[name] for entry in catalog["segments"] for name in ENTRY]
    except FileNotFoundError as error:
        raise SearchIndexError(f"{folder}: need a search index, got no index.json there. "
                               "Run `hcmi export`, or search a folder of videos directly.") from error
    except NotADirectoryError as error:
        raise SearchIndexError(f"{folder}: need a folder with a search index, got a file. Correct the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SearchIndexError(f"{path}: need a complete index.json, got a broken one. {AGAIN}") from error
    return catalog


def check_fingerprint(place: str | Path, model: dict[str, Any], fingerprint: str) -> None:
    """Raises: SearchIndexError when the vectors at `place` were made by another model than `fingerprint`."""
    if model["fingerprint"] != fingerprint:
        raise SearchIndexError(f"{place}: need an index made by this model ({fingerprint[:12]}), got one by "
                               f"{model['fingerprint'][:12]}. Run `hcmi export` with this model, or give the model "
                               "that made the index.")
