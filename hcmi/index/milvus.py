"""The same index in Milvus, for more than one machine: videos and tokens in a file (Milvus Lite) or in a cluster.

Milvus keeps everything that a search needs (first-stage vectors, tokens, times, the manifest's columns), so a machine
that searches needs only the model folder and the address. Rows are keyed by the clip's content, so pushing twice
changes nothing.
"""

import base64
import hashlib
import io
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hcmi.errors import SearchIndexError
from hcmi.index.search_index import SearchIndex, check_fingerprint
from hcmi.index.segment import Filter
from hcmi.index.store import FILES, tokens_of
from hcmi.progress import track
from hcmi.types import CLIP_SCHEMA, Clip, VideoTokens, path_of_text, path_text

VIDEOS, MODEL = "hcmi", "hcmi_model"        # collections
BATCH = 256
TIMEOUT_S = 30.0
MAX_BYTES = 65_535                          # of a Milvus VARCHAR


def is_milvus(uri: str) -> bool:
    """Whether `uri` is Milvus: a file ending in .db, or an http(s) address."""
    return uri.endswith(".db") or uri.startswith(("http://", "https://"))


class MilvusIndex:
    """A Milvus collection with the methods of `SearchIndex`.

    Raises: SearchIndexError when pymilvus is not installed, the server does not answer, or nothing was pushed to it.
    """

    def __init__(self, uri: str):
        self.folder = uri
        if uri.endswith(".db") and not Path(uri).exists():
            raise SearchIndexError(f"{uri}: need a Milvus Lite file, got none. Run `hcmi export --push {uri}`.")
        self.client = _connect(uri)
        with _explained(uri):
            if not self.client.has_collection(MODEL):
                raise SearchIndexError(f"{uri}: need the collection {VIDEOS}, got none. "
                                       f"Run `hcmi export --push {uri}`.")
            self.client.load_collection(MODEL)
            self.client.load_collection(VIDEOS)
        self.model = self._card()

    def __len__(self) -> int:
        with _explained(self.folder):
            return self.client.query(VIDEOS, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def num_files(self) -> int:
        """The number of rows: Milvus does not count different values."""
        return len(self)

    def latest(self) -> "MilvusIndex":
        """This view, since Milvus itself serves the newest rows; a new one when another model's rows replaced them."""
        return self if self._card() == self.model else MilvusIndex(self.folder)

    def _card(self) -> dict[str, Any]:
        with _explained(self.folder):
            return self.client.get(MODEL, ids=[0], output_fields=["card"])[0]["card"]

    def check_model(self, fingerprint: str) -> None:
        """Raises: SearchIndexError when another model made the vectors."""
        check_fingerprint(self.folder, self.model, fingerprint)

    def candidates(self, query_D: np.ndarray, count: int, where: Filter | None = None, without: Collection[str] = ()
                   ) -> np.ndarray:
        """First stage: keys of the `count` videos nearest to `query_D`, of any length, best first.

        `without`: files that are left out.
        """
        with _explained(self.folder):
            hits = self.client.search(VIDEOS, [query_D.tolist()], limit=count,
                                      filter=_expression(where or Filter(), without), output_fields=["row"],
                                      search_params={"params": {"ef": 2 * count}})[0]
        return np.array([hit["row"] for hit in hits], np.int64)

    def tokens(self, rows: np.ndarray) -> VideoTokens:
        """Tokens of `rows` (at least one), in the order given."""
        return tokens_of(self._arrays(rows))

    def times(self, rows: np.ndarray) -> np.ndarray:
        """[N, T] seconds into each file of the frames that `tokens(rows)` holds."""
        return self._arrays(rows)["times_s"]

    def clips(self, rows: np.ndarray) -> list[Clip]:
        """The clips of `rows`, in the order given."""
        return [Clip.from_row(row) for row in self._get(rows, CLIP_SCHEMA.names)]

    def paths(self, rows: np.ndarray) -> list[str]:
        """The files of `rows`, in the order given."""
        return [path_of_text(row["path"]) for row in self._get(rows, ["path"])]

    def rows_of(self, column: str, values: Sequence[str]) -> np.ndarray:
        """Keys of the rows whose `column` (video_id, sha256, path) is one of `values`."""
        with _explained(self.folder):
            found = self.client.query(VIDEOS, filter=f"{column} in {_quoted(list(values))}", output_fields=["row"])
        return np.array([row["row"] for row in found], np.int64)

    def some_rows(self, count: int) -> np.ndarray:
        """At most `count` keys."""
        with _explained(self.folder):
            found = self.client.query(VIDEOS, filter="", limit=count, output_fields=["row"])
        return np.array([row["row"] for row in found], np.int64)

    def captions(self) -> list[str]:
        """Every caption once, sorted."""
        with _explained(self.folder):
            pages = self.client.query_iterator(VIDEOS, batch_size=1000, output_fields=["captions"])
            found: set[str] = set()
            while page := pages.next():
                found.update(text for row in page for text in row["captions"])
            return sorted(found)

    def has_tag(self, name: str) -> bool:
        """Whether any video has this tag, whatever its value."""
        with _explained(self.folder):
            return bool(self.client.query(VIDEOS, filter=f"exists tags[{_quoted(name)}]", limit=1))

    def _arrays(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        packed = [_unpack(row["tokens"]) for row in self._get(rows, ["tokens"])]
        return {name: np.stack([arrays[name] for arrays in packed]) for name in FILES}

    def _get(self, rows: np.ndarray, fields: list[str]) -> list[dict[str, Any]]:
        with _explained(self.folder):
            found = {row["row"]: row for row in self.client.get(VIDEOS, ids=[int(row) for row in rows],
                                                                output_fields=["row", *fields])}
        return [found[int(row)] for row in rows]


def push_export(export_dir: str | Path, uri: str) -> dict[str, Any]:
    """Copy the index of a finished export into Milvus.

    Raises: SearchIndexError when `uri` is not Milvus or there is no export; otherwise as `push`.
    """
    if not is_milvus(uri):
        raise SearchIndexError(f"{uri}: need a file ending in .db or an http address, got neither. "
                               "For example videos.db.")
    return push(SearchIndex.open(Path(export_dir) / "index"), uri)


def push(index: SearchIndex, uri: str) -> dict[str, Any]:
    """Copy an index folder's videos into Milvus. Equal clips in it are replaced; others stay.

    Raises: SearchIndexError when the server does not answer, holds another model's vectors, or the tokens of one video
    are larger than Milvus accepts.
    """
    client = _connect(uri)
    rows = index.live_rows()
    with _explained(uri):
        _create(client, index, uri)
        for start in track(range(0, len(rows), BATCH), "push", unit="batch"):
            some = rows[start:start + BATCH]
            stored = index.stored(some)
            client.upsert(VIDEOS, [_entity(clip, {name: array[at] for name, array in stored.items()}, vector_D, uri)
                                   for at, (clip, vector_D) in enumerate(zip(
                                       index.clips(some), index.tokens(some).video_BD.numpy(), strict=True))])
        client.flush(VIDEOS)
    return {"uri": uri, "videos": len(rows)}


def _create(client: Any, index: SearchIndex, uri: str) -> None:
    """Create both collections, unless they exist and belong to the same model."""
    from pymilvus import DataType

    if client.has_collection(MODEL):
        client.load_collection(MODEL)
        check_fingerprint(uri, client.get(MODEL, ids=[0], output_fields=["card"])[0]["card"],
                          index.model["fingerprint"])
        client.load_collection(VIDEOS)
        return
    schema = client.create_schema(auto_id=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=index.segments[0].store.dim)
    for name in ("video_id", "path", "split", "sha256", "tokens"):
        schema.add_field(name, DataType.VARCHAR, max_length=MAX_BYTES)
    for name in ("start_s", "end_s", "duration_s"):
        schema.add_field(name, DataType.DOUBLE)
    for name in ("captions", "tags"):
        schema.add_field(name, DataType.JSON)
    _make(client, VIDEOS, schema, "FLAT" if uri.endswith(".db") else "HNSW")
    schema = client.create_schema(auto_id=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)        # Milvus requires one in every collection
    schema.add_field("card", DataType.JSON)
    _make(client, MODEL, schema, "FLAT")
    client.upsert(MODEL, [{"row": 0, "vector": [0.0, 0.0], "card": index.model}])


def _make(client: Any, name: str, schema: Any, kind: str) -> None:
    indices = client.prepare_index_params()
    indices.add_index("vector", index_type=kind, metric_type="IP",
                      params={"M": 32, "efConstruction": 80} if kind == "HNSW" else {})
    client.create_collection(name, schema=schema, index_params=indices, consistency_level="Strong")


def _entity(clip: Clip, arrays: dict[str, np.ndarray], vector_D: np.ndarray, uri: str) -> dict[str, Any]:
    packed = _pack(arrays)
    if len(packed) > MAX_BYTES:
        raise SearchIndexError(f"{uri}: need at most {MAX_BYTES} bytes of tokens a video, got {len(packed)} for "
                               f"{clip.video_id}. Export with export.precision int8, or with fewer frames.")
    return {**clip.to_row(), "row": _key(clip), "vector": vector_D.tolist(), "tokens": packed}


def _key(clip: Clip) -> int:
    """A 63-bit hash of the clip's content."""
    digest = hashlib.blake2b(repr(clip.content_key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _pack(arrays: dict[str, np.ndarray]) -> str:
    buffer = io.BytesIO()
    for name in FILES:
        np.save(buffer, arrays[name])
    return base64.b64encode(buffer.getvalue()).decode()


def _unpack(text: str) -> dict[str, np.ndarray]:
    buffer = io.BytesIO(base64.b64decode(text))
    return {name: np.load(buffer, allow_pickle=False) for name in FILES}


def _expression(where: Filter, without: Collection[str]) -> str:
    parts = [f"tags[{_quoted(name)}] == {_quoted(value)}" for name, value in where.tags]
    if where.min_seconds is not None:
        parts.append(f"duration_s >= {float(where.min_seconds)!r}")
    if where.max_seconds is not None:
        parts.append(f"duration_s <= {float(where.max_seconds)!r}")
    if without:
        parts.append(f"path not in {_quoted([path_text(path) for path in without])}")
    return " and ".join(parts)


def _quoted(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _connect(uri: str) -> Any:
    """A client. Raises: SearchIndexError when pymilvus is not installed or no server answers at `uri`."""
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise SearchIndexError(f"{uri}: need the package pymilvus to search in Milvus, got none. "
                               "Run `pip install 'hcmi[milvus]'`.") from error
    for library in ("pymilvus", "milvus_lite"):     # they print tracebacks of the errors that they raise
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with _explained(uri):
        return MilvusClient(uri, timeout=TIMEOUT_S)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn Milvus's errors into one line. Raises: SearchIndexError."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        if uri.endswith(".db") and "Open local milvus failed" in str(error.message):
            raise SearchIndexError(f"{uri}: need a Milvus Lite file that no other process has open, got one that "
                                   f"cannot be opened. Stop the other process, such as `hcmi serve`, or use a Milvus "
                                   f"server.") from error
        raise SearchIndexError(f"{uri}: need Milvus to answer, got: {' '.join(str(error.message).split())[:200]} "
                               "Start it, or correct search.uri.") from error
