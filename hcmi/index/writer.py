"""Changing a search index while others search it.

A writer builds a new segment in a temporary folder, then replaces `index.json` in one system call. A reader therefore
finds the old generation or the new one. A crash leaves at most a folder that no index.json names, which a later writer
deletes. One writer at a time holds `.lock`.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hcmi.files import atomic_file, lock, writing
from hcmi.index.search_index import FORMAT, SearchIndex, read_catalog
from hcmi.index.segment import HNSW_ROWS, build_vectors
from hcmi.index.store import (
    FILES,
    TokenStore,
    TokenWriter,
    new_array,
    pack_vectors,
    table_clips,
    unpack_vectors,
    videos_table,
)
from hcmi.model import HcmiModel
from hcmi.types import Clip, VideoTokens

MAX_SEGMENTS = 8        # an addition that exceeds it also merges the small segments
GRACE_SECONDS = 3600    # how long the files of an older generation are kept for its readers


def model_card(model: HcmiModel) -> dict[str, Any]:
    """What an index records about the model that made its vectors."""
    return {"fingerprint": model.fingerprint, "head": model.config.head, "backbone": model.config.backbone,
            "levels": list(model.level_weights), "level_weights": dict(model.level_weights),
            "num_frames": model.config.num_frames, "dim": model.head.dim, "preprocessing": model.processor.describe()}


def create_index(folder: str | Path, model: dict[str, Any], data: str | None = None) -> SearchIndex:
    """A new index. `model`: what `model_card` returns.

    `data`: a folder, relative to the index, whose videos.parquet and embeddings/ become the first segment. It is not
    copied. None: the index has no videos yet.
    """
    folder = Path(folder)
    segments = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if data is not None:
            (folder / "base").mkdir(exist_ok=True)
            segments.append(_describe(folder, f"{data}/videos.parquet", f"{data}/embeddings", "base/vectors.faiss"))
        _commit(folder, {"format": FORMAT, "generation": -1, "model": model, "segments": segments})
    return SearchIndex.open(folder)


def add_videos(folder: str | Path, clips: Sequence[Clip], batches: Iterable[tuple[VideoTokens, np.ndarray]],
               precision: str | None = None) -> dict[str, int]:
    """Add clips while others search; `batches` holds their (tokens, times_BT) in the same order.

    `precision`: float16 or int8; None: that of the index, and float16 where it is empty.
    A clip replaces a row with the same bytes and part of the file (`sha256`, `start_s`, `end_s`) or the same video_id,
    so adding it twice changes nothing. After a crash the index is the old or the new one.
    """
    folder = Path(folder)
    with _writing(folder) as index, _staging(folder) as staging:
        own = index.segments[0].store.precision if index.segments else "float16"
        writer = TokenWriter(staging / "embeddings", len(clips), precision or own)
        for tokens, times_BT in batches:
            writer.append(tokens, times_BT)
        writer.close()
        pq.write_table(videos_table(clips), staging / "videos.parquet", compression="zstd")
        replaced = index.rows_of_clips(clips)
        entry = _publish(folder, index.generation + 1, staging)
        catalog = _without(index, replaced)
        catalog["segments"].append(entry)
        _commit(folder, catalog)
    if len(catalog["segments"]) > MAX_SEGMENTS:
        merge_small(folder)
    return {"added": len(clips), "replaced": len(replaced)}


def remove_videos(folder: str | Path, video_ids: Sequence[str]) -> int:
    """Remove these videos while others search. Returns how many of them were in the index."""
    with _writing(Path(folder)) as index:
        rows = index.rows_of("video_id", video_ids)
        if len(rows):
            _commit(index.folder, _without(index, rows))
    return len(rows)


def merge_small(folder: str | Path) -> None:
    """Merge all small segments into one, without removed rows, because each segment costs time in every search."""
    with _writing(Path(folder)) as index, _staging(index.folder) as staging:
        small = [segment for segment in index.segments if segment.rows < HNSW_ROWS]
        (staging / "embeddings").mkdir()
        for name in FILES:
            arrays = [segment.store.arrays[name] for segment in small]
            kept = [np.flatnonzero(segment.alive) for segment in small]
            merged = new_array(staging / "embeddings" / f"{name}.npy", arrays[0].dtype,
                               (sum(map(len, kept)), *arrays[0].shape[1:]))
            at = 0
            for array, rows in zip(arrays, kept, strict=True):
                kept_rows = array[rows]
                if kept_rows.dtype != merged.dtype:     # vectors of another precision
                    kept_rows = pack_vectors(unpack_vectors(kept_rows), str(merged.dtype))
                merged[at:at + len(rows)] = kept_rows
                at += len(rows)
            merged.flush()
        clips = [clip for segment in small for clip in table_clips(segment.videos.filter(pa.array(segment.alive)))]
        pq.write_table(videos_table(clips), staging / "videos.parquet", compression="zstd")
        entry = _publish(index.folder, index.generation + 1, staging)
        others = [segment.entry for segment in index.segments if segment not in small]
        _commit(index.folder, {**index.catalog, "segments": [*others, entry]})
        for segment in small:
            os.utime((index.folder / segment.entry["vectors"]).parent)      # their grace period starts now


@contextmanager
def _writing(folder: Path) -> Iterator[SearchIndex]:
    """The newest view, under a lock that one writer at a time holds. Deletes what crashed writers left.

    Raises: MachineError when the block cannot write; the index is then unchanged.
    """
    read_catalog(folder)
    with writing(folder), lock(folder / ".lock"):
        index = SearchIndex.open(folder)
        _sweep(index)
        yield index


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A temporary folder for a new segment, which is deleted after the block unless it was published."""
    (folder / "segments").mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder / "segments"))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(folder: Path, generation: int, staging: Path) -> dict[str, Any]:
    """Give a finished segment its final name. Returns its entry for index.json."""
    name = f"segments/{generation:06d}"
    if (folder / name).exists():        # left by a crash between this line and the commit
        shutil.rmtree(folder / name)
    staging.chmod(0o755)
    staging.rename(folder / name)
    return _describe(folder, f"{name}/videos.parquet", f"{name}/embeddings", f"{name}/vectors.faiss")


def _describe(folder: Path, videos: str, embeddings: str, vectors: str) -> dict[str, Any]:
    """Build a segment's FAISS index. Returns the segment's entry for index.json."""
    store = TokenStore(folder / embeddings)
    kind = build_vectors(store, folder / vectors)
    names = [videos, vectors, *(f"{embeddings}/{name}.npy" for name in FILES)]
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    for name in (videos, f"{embeddings}/video.npy"):
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {"videos": videos, "embeddings": embeddings, "vectors": vectors, "kind": kind, "rows": len(store),
            "digest": digest.hexdigest(), "removed": None,
            "sizes": {name: (folder / name).stat().st_size for name in names}}


def _without(index: SearchIndex, rows: np.ndarray) -> dict[str, Any]:
    """The index's catalog without `rows`. Writes the lists of removed rows that it names."""
    segments = []
    for segment, start in zip(index.segments, index.starts, strict=False):
        dead = rows[(rows >= start) & (rows < start + segment.rows)] - start
        entry = segment.entry
        if len(dead):
            name = f"{Path(entry['vectors']).parent}/removed-{index.generation + 1:06d}.npy"
            alive = segment.alive.copy()
            alive[dead] = False
            removed, numbers = np.flatnonzero(~alive), BytesIO()
            np.save(numbers, removed)       # numpy does not report why writing to a file failed
            with atomic_file(index.folder / name) as path:
                path.write_bytes(numbers.getbuffer())
            entry = {**entry, "removed": name}
        segments.append(entry)
    return {**index.catalog, "segments": segments}


def _commit(folder: Path, catalog: dict[str, Any]) -> None:
    catalog = {**catalog, "generation": catalog["generation"] + 1}
    with atomic_file(folder / "index.json") as path:
        path.write_text(json.dumps(catalog, indent=1), encoding="utf-8")


def _sweep(index: SearchIndex) -> None:
    """Delete segments that index.json does not name, once readers of older generations have had time to finish."""
    named = {Path(segment.entry["vectors"]).parent.name for segment in index.segments}
    for path in (index.folder / "segments").glob("*"):
        if path.name not in named and time.time() - path.stat().st_ctime > GRACE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
