"""Videos and their tokens on disk: `videos.parquet`, and `.npy` files with the same rows, which can be memory-mapped.

Precision `float16` stores numbers directly. `int8` stores each vector's direction, which is all that a cosine needs, as
round(127 x / max|x|), in half the bytes. Both are read back as float32 vectors of length 1. Only the sentence of a
text keeps its length, which is a weight.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hcmi.errors import SearchIndexError
from hcmi.types import CLIP_SCHEMA, Clip, TextTokens, VideoTokens

FIELDS = {"video": "video_BD", "frames": "frames_BTD", "clips": "clips_BCD", "frame_weights": "frame_weights_BT",
          "clip_weights": "clip_weights_BC"}
FILES = (*FIELDS, "times_s")
PAGED_BELOW = 1024      # bytes per row: files of smaller rows are read from the mapping, of larger rows one by one
VIDEOS_SCHEMA = pa.schema([("row", pa.int64()), *CLIP_SCHEMA])


def videos_table(clips: Iterable[Clip]) -> pa.Table:
    """The manifest's columns plus `row`, in the order given."""
    return pa.Table.from_pylist([{"row": row, **clip.to_row()} for row, clip in enumerate(clips)], VIDEOS_SCHEMA)


def table_clips(table: pa.Table) -> list[Clip]:
    """The inverse of `videos_table`."""
    return [Clip.from_row(row) for row in table.to_pylist()]


def read_videos(path: str | Path) -> pa.Table:
    """The table of videos. Raises: SearchIndexError when the file is missing, truncated, or another table."""
    try:
        # one chunk: taking ten of a million rows takes 8 ms from a hundred chunks, and 0.3 ms from one
        return pq.read_table(path, memory_map=True).select(VIDEOS_SCHEMA.names).combine_chunks()
    except FileNotFoundError as error:
        raise SearchIndexError(f"{path}: need the table of indexed videos, got no file. Run `hcmi export`.") from error
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise SearchIndexError(f"{path}: need a complete Parquet table of videos, got a broken one. "
                               "Run `hcmi export` again.") from error


def pack_vectors(vectors: np.ndarray, precision: str) -> np.ndarray:
    """[..., D] floats as they are stored."""
    if precision == "float16":
        return vectors.astype(np.float16)
    peak = np.abs(vectors).max(-1, keepdims=True)
    return np.rint(127 * vectors / np.maximum(peak, 1e-12)).astype(np.int8)


def pack_weights(weights: np.ndarray) -> np.ndarray:
    """Weights as float16. One above 0 stays above 0, because exactly 0 marks padding."""
    return np.where(weights > 0, np.maximum(weights.astype(np.float16), np.float16(6e-8)), np.float16(0))


def unpack_vectors(stored: np.ndarray) -> np.ndarray:
    """Stored vectors as float32 of length 1; zero vectors (padding) stay zero."""
    vectors = stored.astype(np.float32)
    norms = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    vectors /= np.maximum(norms, 1e-12)
    return vectors


def round_trip(tokens: VideoTokens, precision: str) -> VideoTokens:
    """`tokens` as they would be read back after storing them, to measure what storing costs."""
    def through(name: str) -> Tensor:
        values = getattr(tokens, FIELDS[name]).float().numpy()
        if name.endswith("weights"):
            return torch.from_numpy(pack_weights(values).astype(np.float32))
        return torch.from_numpy(unpack_vectors(pack_vectors(values, precision)))
    return VideoTokens(*(through(name) for name in FIELDS))


def write_texts(folder: Path, texts: TextTokens) -> None:
    """Write texts_{sentence,words,phrases,word_weights,phrase_weights}.npy, float16, rows as in queries.parquet."""
    for field, values in vars(texts).items():
        stored = pack_weights(values.numpy()) if "weights" in field else values.numpy().astype(np.float16)
        array = new_array(folder / f"texts_{field.rsplit('_', 1)[0]}.npy", stored.dtype, stored.shape)
        array[:] = stored
        array.flush()


def read_texts(folder: Path) -> TextTokens:
    """What `write_texts` wrote, as float32; words and phrases have length 1, sentences the length they had."""
    def read(field: str) -> Tensor:
        stored = np.load(folder / f"texts_{field.rsplit('_', 1)[0]}.npy")
        as_stored = "weights" in field or field == "sentence_BD"
        return torch.from_numpy(stored.astype(np.float32) if as_stored else unpack_vectors(stored))
    return TextTokens(*(read(field) for field in TextTokens.__dataclass_fields__))


def tokens_of(stored: dict[str, np.ndarray]) -> VideoTokens:
    """Tokens from the arrays of the files."""
    def read(name: str) -> Tensor:
        values = stored[name]
        return torch.from_numpy(values.astype(np.float32) if name.endswith("weights") else unpack_vectors(values))
    return VideoTokens(*(read(name) for name in FIELDS))


def new_array(path: str | Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file to be filled, whose space on the disk is already allocated.

    Without the allocation, writing to the mapping when the disk is full ends the process with SIGBUS.
    Raises: OSError when there is not enough space.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate") and array.size:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return array


class TokenWriter:
    """Fills the `.npy` files of one folder batch by batch, so that memory does not grow with the number of videos."""

    def __init__(self, folder: str | Path, num_rows: int, precision: str = "float16"):
        self.folder, self.num_rows, self.precision, self.written = Path(folder), num_rows, precision, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.arrays: dict[str, np.memmap] = {}

    def append(self, tokens: VideoTokens, times_BT: np.ndarray) -> None:
        """Write the rows after those that were written. `times_BT`: seconds into the file of each frame."""
        self.write(self.written, tokens, times_BT)

    def write(self, first: int, tokens: VideoTokens, times_BT: np.ndarray) -> None:
        """As `append`, from row `first` on: batches may come in any order."""
        values = {name: getattr(tokens, field).detach().cpu().float().numpy() for name, field in FIELDS.items()}
        values["times_s"] = np.asarray(times_BT, np.float32)
        end = first + len(tokens)
        for name, value in values.items():
            if name in ("video", "frames", "clips"):
                value = pack_vectors(value, self.precision)
            elif name != "times_s":
                value = pack_weights(value)
            if name not in self.arrays:
                self.arrays[name] = new_array(self.folder / f"{name}.npy", value.dtype,
                                              (self.num_rows, *value.shape[1:]))
            self.arrays[name][first:end] = value
        self.written += len(tokens)

    def close(self) -> None:
        assert self.written == self.num_rows, f"{self.folder}: promised {self.num_rows} rows, wrote {self.written}"
        for array in self.arrays.values():
            array.flush()
        self.arrays.clear()


class TokenStore:
    """Read-only view of one folder of tokens, memory-mapped.

    Slices are read from the mapping. Scattered rows are read one by one, because each access to a mapping maps 16 pages
    around it: after some searches all of a million videos were resident.

    Raises: SearchIndexError when a file is missing, truncated, or has another number of rows than the others.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.arrays: dict[str, np.memmap] = {}
        self._files: dict[str, FileIO] = {}
        for name in FILES:
            self._files[name], self.arrays[name] = self._open(name)
        lengths = {len(array) for array in self.arrays.values()}
        if len(lengths) != 1:
            raise SearchIndexError(f"{folder}: need files of equal length, got {sorted(lengths)} rows. "
                                   "Copy the folder again, or run `hcmi export`.")

    def _open(self, name: str) -> tuple[FileIO, np.memmap]:
        """The file and its mapping."""
        path = self.folder / f"{name}.npy"
        try:
            return open(path, "rb", buffering=0), np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise SearchIndexError(f"{path}: need the embeddings, got no file. Run `hcmi export`.") from error
        except (ValueError, EOFError, OSError) as error:
            raise SearchIndexError(f"{path}: need a complete .npy file, got a broken one. "
                                   "Copy the folder again, or run `hcmi export`.") from error

    def __len__(self) -> int:
        return len(self.arrays["video"])

    @property
    def precision(self) -> str:
        return str(self.arrays["video"].dtype)

    @property
    def dim(self) -> int:
        return self.arrays["video"].shape[1]

    def vectors(self, rows) -> np.ndarray:
        """[N, D] video-level vectors, float32, length 1; `rows`: a slice or row numbers."""
        return unpack_vectors(self.arrays["video"][rows])

    def times(self, rows) -> np.ndarray:
        """[N, T] seconds into each file."""
        return np.asarray(self.stored(rows, ("times_s",))["times_s"])

    def tokens(self, rows) -> VideoTokens:
        """Tokens of `rows`, float32."""
        return tokens_of(self.stored(rows, FIELDS))

    def stored(self, rows, names: Collection[str] = FILES) -> dict[str, np.ndarray]:
        """The arrays of the files `names` at `rows`, by file."""
        if isinstance(rows, slice):
            return {name: self.arrays[name][rows] for name in names}
        places = {name: [self.arrays[name].offset + row * size for row in np.asarray(rows).tolist()] for name in names
                  if (size := self.arrays[name].strides[0]) >= PAGED_BELOW}
        if hasattr(os, "posix_fadvise"):    # Linux: request all at once; a cold search took 12 ms instead of 32
            for name, starts in places.items():
                file, size = self._files[name].fileno(), self.arrays[name].strides[0]
                for start in starts:
                    os.posix_fadvise(file, start, size, os.POSIX_FADV_WILLNEED)
        return {name: self._rows_at(name, places[name]) if name in places else np.asarray(self.arrays[name][rows])
                for name in names}

    def _rows_at(self, name: str, starts: list[int]) -> np.ndarray:
        file, array = self._files[name].fileno(), self.arrays[name]
        data = b"".join([os.pread(file, array.strides[0], start) for start in starts])
        return np.frombuffer(data, array.dtype).reshape(len(starts), *array.shape[1:])

    def batches(self, size: int = 4096) -> Iterator[slice]:
        """Slices that cover all rows."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def write_parquet(videos: pa.Table, store: TokenStore, path: str | Path) -> None:
    """Write the tokens as one Parquet file for Ray, Spark or DuckDB: lists of float32, 1024 videos per row group."""
    names = ["video_id", "start_s", "end_s"]
    with pq.ParquetWriter(path, _parquet_schema(videos, names, store), compression="zstd") as writer:
        for rows in store.batches(1024):
            columns = {name: videos[name][rows.start:rows.stop].combine_chunks() for name in names}
            for name, field in FIELDS.items():
                columns[name] = _nested(getattr(store.tokens(rows), field).numpy())
            columns["times_s"] = _nested(store.times(rows))
            writer.write_table(pa.table(columns))


def _parquet_schema(videos: pa.Table, names: list[str], store: TokenStore) -> pa.Schema:
    fields = [videos.schema.field(name) for name in names]
    return pa.schema([*fields, *(pa.field(name, _nested(np.zeros((1, *store.arrays[name].shape[1:]))).type)
                                 for name in FILES)])


def _nested(values: np.ndarray) -> pa.Array:
    """[N, ...] as lists of lists of float32."""
    array = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * values.shape[axis], array)
    return array
