"""Manifest in, shards out: the `shards` stage.

The output is a pure function of manifest, video bytes and parameters, whatever was there before and however often the
run was killed. Clips are known by a content key; what an earlier run has decoded is taken from its shards or from the
journal of the work folder (`<out>.work`), the rest is decoded into the journal, and at the end new shards are put
together beside the old ones, unchanged ones linked, and take their place at once.

A clip's shard depends on the hash of its name only: clips are the leaves of a binary tree over the bits of the hash,
and a leaf that holds more than `max_clips_per_shard` is split. So an added clip changes one shard and moves no other.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hcmi.atomic import atomic_file
from hcmi.config import ShardsConfig
from hcmi.data.frames import EncodeJob, JpegClip, encode_job
from hcmi.data.journal import Journal
from hcmi.data.manifest import SCHEMA, SPLITS, iter_manifest, write_skipped
from hcmi.data.pool import DecoderPool
from hcmi.data.tar import BLOCK, clip_members, end_of_tar
from hcmi.errors import DataError, DecodeError
from hcmi.progress import track
from hcmi.types import Clip

KEY_VERSION = 1         # raise it when the same video and parameters give other frames than before
KEY_CHARACTERS = 32
INDEX = pa.schema([
    ("split", pa.string()), ("shard", pa.string()), ("video_id", pa.string()),
    ("json_offset", pa.int64()), ("json_size", pa.int32()),
    ("frame_offsets", pa.list_(pa.int64())), ("frame_sizes", pa.list_(pa.int32())),
    ("num_bytes", pa.int64()),          # of all members, from json_offset - 512 on
    ("decoder", pa.string()),
    ("key", pa.string()),               # of the frames: video bytes, segment, parameters
    ("record", pa.string())])           # hash of what the manifest contributes to the JSON
_LIGHT = [name for name in INDEX.names if name not in ("frame_offsets", "frame_sizes")]


def write_shards(manifest_path: str | Path, out_dir: str | Path, config: ShardsConfig) -> dict[str, Any]:
    """Decode every clip of the manifest into `<out_dir>/<split>-%06d.tar`; returns a summary.

    Beside the tars: `index.parquet` (schema `INDEX`, one row a clip, shard by shard), `stats.json`, `skipped.jsonl`.

    Raises: DataError when another run is at it, the manifest is missing, or more than `max_skip_fraction` of the clips
    cannot be decoded; `out_dir` is then as it was.
    """
    started = time.monotonic()
    out_dir = Path(out_dir).resolve()
    work = out_dir.with_name(out_dir.name + ".work")
    plan = _Plan.read(Path(manifest_path), config)
    with _lock(work, out_dir):
        _finish_interrupted_swap(out_dir, work)
        old = _OldShards(out_dir)
        journal = Journal(work / "journal")
        try:
            decoded = _decode_missing(plan, old, journal, config)
            _check_skips(plan, work, out_dir, config)
            stats = _write_folder(work / "new", plan, old, journal, config)
        finally:
            journal.close()
        _swap(out_dir, work)
    seconds = round(time.monotonic() - started, 2)
    return {"out": str(out_dir), **stats, "decoded": decoded, "reused": stats["num_clips"] - decoded,
            "wall_seconds": seconds}


@contextmanager
def _lock(work: Path, out_dir: Path) -> Iterator[None]:
    """The kernel drops the lock when the process ends, however it ends."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise DataError(f"{out_dir}: need no other run that writes it, got process {file.read() or '?'}. "
                            "Wait for it or stop it.") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass
class _Plan:
    """The manifest as a table, and per row what has to happen to it; arrays, because there may be a million rows."""

    table: pa.Table
    keys: np.ndarray            # S32 [N], sorted and unique
    key_of_row: np.ndarray      # int [rows], into `keys`
    first_row: np.ndarray       # int [N]: one row that has the key
    shards: list[tuple[str, np.ndarray]]            # split and rows of each shard that may be written
    journal_at: np.ndarray      # int64 [N], -1: not in the journal
    failed: dict[int, DecodeError] = field(default_factory=dict)     # by index into `keys`

    @classmethod
    def read(cls, manifest_path: Path, config: ShardsConfig) -> "_Plan":
        next(iter_manifest(manifest_path), None)        # says in one line what is wrong with the file
        table = pq.read_table(manifest_path, columns=SCHEMA.names)
        keys, digests = [], []
        settings = f"{KEY_VERSION} {config.size} {config.num_frames} {config.quality}"
        for batch in table.select(["video_id", "sha256", "start_s", "end_s"]).to_batches(10_000):
            for video_id, *content in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                keys.append(hashlib.sha256(f"{content} {settings}".encode()).hexdigest()[:KEY_CHARACTERS].encode())
                digests.append(int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8], "big"))
        unique, first_row, key_of_row = np.unique(np.array(keys, f"S{KEY_CHARACTERS}"), return_index=True,
                                                  return_inverse=True)
        shards = []
        for split in SPLITS:
            rows = np.flatnonzero(pc.equal(table["split"], split))
            shards += [(split, leaf) for leaf in leaves(np.array(digests, np.uint64), rows, config.max_clips_per_shard)]
        return cls(table, unique, key_of_row, first_row, shards, np.full(len(unique), -1, np.int64))

    def clips(self, rows: np.ndarray) -> list[Clip]:
        fields = self.table.take(pa.array(rows)).to_pylist(maps_as_pydicts="strict")
        return [Clip(**{**row, "captions": tuple(row["captions"])}) for row in fields]

    def key(self, index: int) -> str:
        return self.keys[index].decode()


def leaves(digests: np.ndarray, rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Cut `rows` into groups of at most `most`, by the leading bits of `digests[row]` (uint64).

    The groups depend on the set of digests alone; one more row touches one group, or splits it. Rows of equal digest
    stay together. Each group keeps the order that `rows` has.
    """
    groups = []
    waiting = [(rows, 63)] if len(rows) else []
    while waiting:
        some, bit = waiting.pop()
        if len(some) <= most or bit < 0:
            groups.append(some)
            continue
        upper = (digests[some] >> np.uint64(bit) & np.uint64(1)).astype(bool)
        waiting += [(half, bit - 1) for half in (some[upper], some[~upper]) if len(half)]
    return groups


class _OldShards:
    """The shards that are there already, trusted as far as their files have the length that the index says."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: pq.ParquetFile | None = None
        self._keys = np.array([], f"S{KEY_CHARACTERS}")
        try:
            self._file = pq.ParquetFile(folder / "index.parquet")
            light = self._file.read(columns=_LIGHT)
        except (OSError, pa.ArrowException, KeyError):
            return
        if not self._file.schema_arrow.equals(INDEX):
            return
        names = light["shard"].to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.array([], int)
        ends = light["json_offset"].to_numpy() - BLOCK + light["num_bytes"].to_numpy()
        self._group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(names)]))
        self._first = starts
        last = np.r_[starts[1:], len(names)] - 1
        whole = np.array([_has_size(folder / names[row], int(ends[row])) for row in last], bool)
        keys = light["key"].to_numpy(zero_copy_only=False).astype(f"S{KEY_CHARACTERS}")
        good = np.flatnonzero(whole[self._group]) if len(names) else np.array([], int)
        order = good[np.argsort(keys[good], kind="stable")]
        self._keys, self._rows = keys[order], order

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Number of a shard that holds the key, and the row within it."""
        at = int(np.searchsorted(self._keys, np.bytes_(key)))
        if at == len(self._keys) or self._keys[at] != key:
            return None
        group = int(self._group[self._rows[at]])
        return group, int(self._rows[at] - self._first[group])

    def has(self, keys: np.ndarray) -> np.ndarray:
        if not len(self._keys):
            return np.zeros(len(keys), bool)
        return self._keys[np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)] == keys

    def shard(self, group: int) -> "_OldShard":
        assert self._file is not None
        table = self._file.read_row_group(group)
        return _OldShard(self.folder / table["shard"][0].as_py(), table.to_pylist(), table)


@dataclass
class _OldShard:
    path: Path
    rows: list[dict[str, Any]]
    table: pa.Table


def _has_size(path: Path, members: int) -> bool:
    try:
        return path.stat().st_size == members + len(end_of_tar(members))
    except OSError:
        return False


def _decode_missing(plan: _Plan, old: _OldShards, journal: Journal, config: ShardsConfig) -> int:
    """Bring every clip into the journal that neither it nor an old shard holds. Returns how many were decoded."""
    for key, offset in journal.scan():
        at = int(np.searchsorted(plan.keys, key.encode()))
        if at < len(plan.keys) and plan.keys[at] == key.encode():
            plan.journal_at[at] = offset
    missing = np.flatnonzero((plan.journal_at < 0) & ~old.has(plan.keys))
    missing = missing[np.argsort(plan.first_row[missing])]      # in the manifest's order: one video's clips together
    if not len(missing):
        return 0
    bar = track(None, "shards", len(missing), "clip")
    with bar:
        for job, result in _run(_jobs(plan, missing, config), config):
            if isinstance(result, JpegClip):
                plan.journal_at[job.key] = journal.append(plan.key(job.key), result)
            else:
                plan.failed[job.key] = result
            bar.update()
    return len(missing) - len(plan.failed)


def _run(jobs: Iterator[EncodeJob], config: ShardsConfig) -> Iterator[tuple[EncodeJob, JpegClip | DecodeError]]:
    with DecoderPool(config.num_workers, config.decode_timeout_s, encode_job) as pool:
        yield from pool.map(jobs)


def _jobs(plan: _Plan, missing: np.ndarray, config: ShardsConfig) -> Iterator[EncodeJob]:
    for start in range(0, len(missing), 1000):
        some = missing[start:start + 1000]
        for index, clip in zip(some.tolist(), plan.clips(plan.first_row[some]), strict=True):
            end_s = clip.end_s if clip.end_s > clip.start_s else None
            yield EncodeJob(index, clip.path, config.num_frames, config.size, clip.start_s, end_s,
                            quality=config.quality)


def _check_skips(plan: _Plan, work: Path, out_dir: Path, config: ShardsConfig) -> None:
    rows = _failed_rows(plan)
    total = plan.table.num_rows
    if len(rows) <= config.max_skip_fraction * total and len(rows) < total:
        return
    report = work / "skipped.jsonl"
    write_skipped(_skipped(plan), report)
    counts = Counter(plan.failed[int(index)].reason for index in plan.key_of_row[rows])
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    need = "at least one clip that can be decoded" if len(rows) == total else (
        f"at most {config.max_skip_fraction:.0%} of the clips skipped")
    raise DataError(f"{out_dir}: need {need}, got {len(rows)} of {total} skipped ({reasons}). "
                    f"See {report}; repair the files or raise shards.max_skip_fraction.")


def _failed_rows(plan: _Plan) -> np.ndarray:
    failed = np.zeros(len(plan.keys), bool)
    failed[list(plan.failed)] = True
    return np.flatnonzero(failed[plan.key_of_row])


def _skipped(plan: _Plan) -> Iterator[dict[str, str]]:
    rows = _failed_rows(plan)
    for start in range(0, len(rows), 1000):
        some = rows[start:start + 1000]
        for row, clip in zip(some, plan.clips(some), strict=True):
            error = plan.failed[int(plan.key_of_row[row])]
            yield {"video_id": clip.video_id, "path": clip.path, "stage": "shards", "reason": error.reason,
                   "detail": str(error)}


def _write_folder(new: Path, plan: _Plan, old: _OldShards, journal: Journal, config: ShardsConfig) -> dict[str, Any]:
    """Everything that `out_dir` is to hold, in the folder `new`. Returns the content of stats.json."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    failed = np.zeros(len(plan.keys), bool)
    failed[list(plan.failed)] = True
    clips, numbers, decoders = Counter[str](), Counter[str](), Counter[str]()
    seconds: defaultdict[str, float] = defaultdict(float)
    size_bytes = 0
    with pq.ParquetWriter(new / "index.parquet", INDEX, compression="zstd") as index:
        for split, leaf in track(plan.shards, "shard files", unit="shard"):
            rows = leaf[~failed[plan.key_of_row[leaf]]]
            if not len(rows):
                continue
            path = new / f"{split}-{numbers[split]:06d}.tar"
            numbers[split] += 1
            some = plan.clips(rows)
            table = _write_shard(path, some, plan.key_of_row[rows], plan, old, journal)
            index.write_table(table)
            size_bytes += path.stat().st_size
            clips[split] += len(some)
            seconds[split] += sum(clip.duration_s for clip in some)
            decoders.update(table["decoder"].to_pylist())
    write_skipped(_skipped(plan), new / "skipped.jsonl")
    reasons = Counter(plan.failed[int(index)].reason for index in plan.key_of_row[_failed_rows(plan)])
    stats = {"num_clips": clips.total(), "clips": dict(clips), "shards": dict(numbers), "bytes": size_bytes,
             "video_seconds": {split: round(value, 3) for split, value in seconds.items()},
             "skipped": dict(sorted(reasons.items())), "decoders": dict(sorted(decoders.items())),
             "size": config.size, "num_frames": config.num_frames, "quality": config.quality}
    with atomic_file(new / "stats.json") as temporary:
        temporary.write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    return stats


def _write_shard(path: Path, clips: list[Clip], key_indices: np.ndarray, plan: _Plan, old: _OldShards,
                 journal: Journal) -> pa.Table:
    """One tar and its rows of the index; a link when an old tar has just these clips."""
    keys = [plan.key(int(index)) for index in key_indices]
    records = [_record(clip) for clip in clips]
    hashes = [hashlib.sha256(json.dumps(record).encode()).hexdigest()[:KEY_CHARACTERS] for record in records]
    found = [old.find(key.encode()) for key in keys]
    shards = {group: old.shard(group) for group in sorted({place[0] for place in found if place})}
    for shard in shards.values():
        if [(row["video_id"], row["key"], row["record"]) for row in shard.rows] == [
                (clip.video_id, key, digest) for clip, key, digest in zip(clips, keys, hashes, strict=True)]:
            _link(shard.path, path)
            names = pa.array([path.name] * len(clips))
            return shard.table.set_column(INDEX.get_field_index("shard"), INDEX.field("shard"), names)
    rows: list[dict[str, Any]] = []
    position = 0
    files = {group: open(shard.path, "rb") for group, shard in shards.items()}      # noqa: SIM115  closed below
    try:
        with open(path, "wb") as tar:
            for clip, key, digest, record, place, index in zip(clips, keys, hashes, records, found, key_indices,
                                                               strict=True):
                row = {"split": clip.split, "shard": path.name, "video_id": clip.video_id, "key": key, "record": digest}
                if place:
                    content, more = _from_old(clip.video_id, record, digest, shards[place[0]].rows[place[1]],
                                              files[place[0]].fileno())
                else:
                    content, more = _pack(clip.video_id, record, journal.read(int(plan.journal_at[index])))
                tar.write(content)
                row |= more
                row["json_offset"] += position
                row["frame_offsets"] = [offset + position for offset in row["frame_offsets"]]
                rows.append(row)
                position += len(content)
            tar.write(end_of_tar(position))
            tar.flush()
            os.fsync(tar.fileno())
    finally:
        for file in files.values():
            file.close()
    return pa.Table.from_pylist(rows, INDEX)


def _record(clip: Clip) -> dict[str, Any]:
    """What the manifest contributes to a clip's JSON."""
    return {"video_id": clip.video_id, "captions": list(clip.captions), "path": clip.path, "start_s": clip.start_s,
            "end_s": clip.end_s, "tags": dict(sorted(clip.tags.items()))}


def _pack(video_id: str, record: dict[str, Any], clip: JpegClip) -> tuple[bytes, dict[str, Any]]:
    """A clip's members, and its part of the index with offsets from their start."""
    whole = {**record, "times_s": clip.times_s, "decoder": clip.decoder, "num_decodable": clip.num_decodable,
             "width": clip.width, "height": clip.height}
    encoded = json.dumps(whole, ensure_ascii=False).encode()
    content, offsets = clip_members(video_id, encoded, clip.jpegs)
    return content, {"json_offset": offsets[0], "json_size": len(encoded), "frame_offsets": offsets[1:],
                     "frame_sizes": [len(jpeg) for jpeg in clip.jpegs], "num_bytes": len(content),
                     "decoder": clip.decoder}


def _from_old(video_id: str, record: dict[str, Any], digest: str, row: dict[str, Any], handle: int
              ) -> tuple[bytes, dict[str, Any]]:
    """As `_pack`, from an old shard: the bytes as they are, or the frames with a new name or new captions."""
    start = row["json_offset"] - BLOCK
    if row["video_id"] == video_id and row["record"] == digest:
        part = {name: row[name] for name in ("json_size", "frame_sizes", "num_bytes", "decoder")}
        part["json_offset"] = BLOCK
        part["frame_offsets"] = [offset - start for offset in row["frame_offsets"]]
        return os.pread(handle, row["num_bytes"], start), part
    before = json.loads(os.pread(handle, row["json_size"], row["json_offset"]))
    jpegs = tuple(os.pread(handle, size, offset)
                  for size, offset in zip(row["frame_sizes"], row["frame_offsets"], strict=True))
    return _pack(video_id, record, JpegClip(jpegs, tuple(before["times_s"]), before["decoder"],
                                            before["num_decodable"], before["width"], before["height"]))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:         # another file system, or one without links
        shutil.copyfile(source, target)


def _swap(out_dir: Path, work: Path) -> None:
    if out_dir.exists():
        out_dir.rename(work / "old")
    (work / "new").rename(out_dir)
    shutil.rmtree(work / "old", ignore_errors=True)
    (work / "skipped.jsonl").unlink(missing_ok=True)
    (work / "journal").unlink(missing_ok=True)


def _finish_interrupted_swap(out_dir: Path, work: Path) -> None:
    """A run was killed between the two renames of `_swap`, or before it had tidied up."""
    if (work / "old").exists():
        if out_dir.exists():
            shutil.rmtree(work / "old")
        else:
            (work / "old").rename(out_dir)
