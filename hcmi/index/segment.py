"""One immutable segment of an index: its rows, the filter over them, and the FAISS index of its vectors."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hcmi.errors import SearchIndexError
from hcmi.index.store import TokenStore, read_videos
from hcmi.progress import track
from hcmi.types import path_text

HNSW_ROWS = 30_000      # with fewer rows a flat scan takes a few milliseconds
HNSW_LINKS = 32
HNSW_BUILD = 80         # efConstruction
SCAN_SHARE = 0.1        # HNSW would miss most rows that pass a stricter filter, so they are scanned exactly
AGAIN = "Run `hcmi export` again."


@dataclass(frozen=True)
class Filter:
    """Which videos may be found: those with equal values for all given tags and a duration within the bounds."""

    tags: tuple[tuple[str, str], ...] = ()
    min_seconds: float | None = None
    max_seconds: float | None = None

    def __bool__(self) -> bool:
        return bool(self.tags) or self.min_seconds is not None or self.max_seconds is not None


class Segment:
    """One immutable part of an index: rows of videos, tokens and vectors. Files are opened on first use."""

    def __init__(self, folder: Path, entry: dict[str, Any]):
        self.folder, self.entry, self.rows = folder, entry, entry["rows"]
        for name, size in entry["sizes"].items():
            path = folder / name
            try:
                got = f"{path.stat().st_size} bytes"
            except OSError:
                got = "no file"
            if got != f"{size} bytes":
                raise SearchIndexError(f"{path}: need {size} bytes as index.json says, got {got}. Copy the index "
                                       "again, with the export folder around it, or run `hcmi export`.")

    @cached_property
    def faiss_index(self) -> Any:
        try:
            return faiss.read_index(str(self.folder / self.entry["vectors"]))
        except RuntimeError as error:
            raise SearchIndexError(f"{self.folder / self.entry['vectors']}: need a FAISS index, got a broken file. "
                                   + AGAIN) from error

    @cached_property
    def videos(self) -> pa.Table:
        return read_videos(self.folder / self.entry["videos"])

    @cached_property
    def store(self) -> TokenStore:
        return TokenStore(self.folder / self.entry["embeddings"])

    @cached_property
    def alive(self) -> np.ndarray:
        """bool [rows]: False where a row was removed."""
        alive = np.ones(self.rows, bool)
        if self.entry["removed"]:
            path = self.folder / self.entry["removed"]
            try:
                alive[np.load(path)] = False
            except (OSError, ValueError, IndexError) as error:
                raise SearchIndexError(f"{path}: need the list of removed rows, got none or a broken one. "
                                       + AGAIN) from error
        return alive

    def load(self) -> None:
        """Open every file. The folder may then be changed or deleted."""
        _ = self.faiss_index, self.videos, self.store, self.alive

    def allowed(self, where: Filter) -> np.ndarray:
        """bool [rows]: rows that are alive and pass the filter."""
        keep = self.alive
        for name, value in where.tags:
            found = pc.equal(pc.map_lookup(self.videos["tags"], pa.scalar(name), "first"), value)
            keep = keep & found.fill_null(False).to_numpy()
        if where.min_seconds is not None:
            keep = keep & (self.videos["duration_s"].to_numpy() >= where.min_seconds)
        if where.max_seconds is not None:
            keep = keep & (self.videos["duration_s"].to_numpy() <= where.max_seconds)
        return keep

    def of_files(self, paths: Collection[str]) -> np.ndarray:
        """bool [rows]: rows of these files."""
        texts = pa.array([path_text(path) for path in paths], pa.string())
        return pc.is_in(self.videos["path"], texts).to_numpy()

    def nearest(self, query_D: np.ndarray, count: int, keep: np.ndarray | None, left_out: np.ndarray | None = None
                ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and inner products of the `count` nearest vectors that `keep` allows (None: all), best first.

        `left_out`: rows that are not wanted. Unlike those that `keep` forbids, they may all be near the query.
        """
        num_left_out = 0
        if left_out is not None and left_out.any():
            num_left_out = int(left_out.sum())
            keep = ~left_out if keep is None else keep & ~left_out
        kept = self.rows if keep is None else int(keep.sum())
        count = min(count, kept)
        if not count:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if keep is not None and kept < SCAN_SHARE * self.rows:
            rows = np.flatnonzero(keep)
            scores = self.store.vectors(rows) @ query_D
            best = np.argsort(-scores, kind="stable")[:count]
            return rows[best], scores[best]
        api: Any = faiss        # its type stubs lack selectors and HNSW
        selector = None if keep is None else api.IDSelectorBitmap(np.packbits(keep, bitorder="little"))
        flat = self.faiss_index
        if self.entry["kind"] == "hnsw":
            # HNSW visits the rows that are left out too, and with less than this would see no others
            breadth = max(2 * count, 64) + num_left_out
            if not num_left_out or 2 * HNSW_LINKS * breadth < self.rows:        # otherwise a scan reads fewer vectors
                rows, scores = _search(self.faiss_index, query_D, count,
                                       api.SearchParametersHNSW(efSearch=breadth, sel=selector))
                if len(rows) == count:
                    return rows, scores
            flat = api.downcast_index(self.faiss_index.storage)
        return _search(flat, query_D, count, api.SearchParameters(sel=selector))


def _search(index: Any, query_D: np.ndarray, count: int, options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and inner products that FAISS finds, at most `count`."""
    with _one_thread():
        scores, rows = index.search(query_D[None], count, params=options)
    found = rows[0] >= 0
    return rows[0][found], scores[0][found]


@contextmanager
def _one_thread() -> Iterator[None]:
    """`runtime.one_thread` for FAISS, which has its own copy of OpenMP: 0.5 ms instead of 27 on a busy machine."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build_vectors(store: TokenStore, path: Path) -> str:
    """Write the FAISS index of one segment. Returns its kind, flat or hnsw."""
    kind = "hnsw" if len(store) >= HNSW_ROWS else "flat"
    index: Any = faiss.IndexFlatIP(store.dim)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(store.dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
    batches = list(store.batches(10_000))
    for rows in track(batches, "index", unit="batch") if kind == "hnsw" else batches:
        index.add(store.vectors(rows))
    faiss.write_index(index, str(path))
    return kind
