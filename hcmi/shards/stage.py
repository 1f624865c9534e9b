"""Manifest in, shards out: the `shards` stage.

The output is a pure function of manifest, video bytes and parameters, whatever was there before and however often the
run was killed. Clips are known by a content key; what an earlier run has decoded is taken from its shards or from the
journal of the work folder (`<out>.work`), the rest is decoded into the journal, and at the end new shards are put
together beside the old ones, unchanged ones linked, and take their place at once.

A clip's shard depends on the hash of its name only: clips are the leaves of a binary tree over the bits of the hash,
and a leaf that holds more than `max_clips_per_shard` is split. So an added clip changes one shard and moves no other.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hcmi.config import ShardsConfig
from hcmi.dataset import iter_manifest, write_skipped
from hcmi.errors import DataError, DecodeError
from hcmi.files import ask_to_write, atomic_file, writing
from hcmi.progress import track
from hcmi.shards.journal import Journal
from hcmi.shards.shard_file import INDEX, KEY_CHARACTERS, Jpegs, OldShards, write_shard
from hcmi.types import CLIP_SCHEMA, SPLITS, Clip, Skip
from hcmi.video import Decoded, DecoderPool, EncodeJob, encode_job, map_on_ray

KEY_VERSION = 1         # raise it when the same video and parameters give other frames than before


def write_shards(*, manifest_path: str | Path, out_dir: str | Path, config: ShardsConfig) -> dict[str, Any]:
    """Decode every clip of the manifest into `<out_dir>/<split>-%06d.tar`; returns a summary.

    Beside the tars: `index.parquet` (schema `INDEX`, one row a clip, shard by shard), `stats.json`, `skipped.jsonl`.

    Raises: DataError when another run is at it, the manifest is missing, or more than `max_skip_fraction` of the clips
    cannot be decoded; MachineError when it cannot be written. `out_dir` is then as it was; what has been decoded is
    kept.
    """
    started = time.monotonic()
    out_dir = Path(os.path.realpath(out_dir))
    ask_to_write(folders=[out_dir])
    work = out_dir.with_name(out_dir.name + ".work")
    plan = _Plan.read(Path(manifest_path), config)
    with writing(out_dir), _lock(work, out_dir):
        _finish_interrupted_swap(out_dir, work)
        old = OldShards(out_dir)
        with closing(Journal(work / "journal")) as journal:
            decoded = _decode_missing(plan, old, journal, config)
            _check_skips(plan, work, out_dir, config)
            try:
                stats = _write_folder(work / "new", plan, old, journal, config)
                _swap(out_dir, work)
            finally:        # half a folder on a full disk would be in the way
                shutil.rmtree(work / "new", ignore_errors=True)
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
        table = pq.read_table(manifest_path, columns=CLIP_SCHEMA.names)
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
        fields = self.table.take(pa.array(rows)).to_pylist()
        return [Clip.from_row(row) for row in fields]

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


def _decode_missing(plan: _Plan, old: OldShards, journal: Journal, config: ShardsConfig) -> int:
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
            if isinstance(result, Decoded):
                plan.journal_at[job.key] = journal.append(plan.key(job.key), result)
            else:
                plan.failed[job.key] = result
            bar.update()
    return len(missing) - len(plan.failed)


def _run(jobs: Iterator[EncodeJob], config: ShardsConfig) -> Iterator[tuple[EncodeJob, Jpegs | DecodeError]]:
    if config.executor == "ray":
        yield from map_on_ray(jobs, config.decode_timeout_s, config.num_workers, config.ray_address)
    else:
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


def _skipped(plan: _Plan) -> Iterator[Skip]:
    rows = _failed_rows(plan)
    for start in range(0, len(rows), 1000):
        some = rows[start:start + 1000]
        for row, clip in zip(some, plan.clips(some), strict=True):
            error = plan.failed[int(plan.key_of_row[row])]
            yield Skip(clip.video_id, clip.path, "shards", error.reason, str(error))


def _write_folder(new: Path, plan: _Plan, old: OldShards, journal: Journal, config: ShardsConfig) -> dict[str, Any]:
    """Everything that `out_dir` is to hold, in the folder `new`. Returns the content of stats.json."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    failed = np.zeros(len(plan.keys), bool)
    failed[list(plan.failed)] = True
    clips, numbers, decoders = Counter[str](), Counter[str](), Counter[str]()
    seconds: defaultdict[str, float] = defaultdict(float)
    size_bytes = 0
    on_disk: list[Future[None]] = []        # the disk writes one shard while the next is put together
    with ThreadPoolExecutor(1) as disk, pq.ParquetWriter(new / "index.parquet", INDEX, compression="zstd") as index:
        for split, leaf in track(plan.shards, "shard files", unit="shard"):
            rows = leaf[~failed[plan.key_of_row[leaf]]]
            if not len(rows):
                continue
            path = new / f"{split}-{numbers[split]:06d}.tar"
            numbers[split] += 1
            some = plan.clips(rows)
            indices = plan.key_of_row[rows]
            offsets = map(int, plan.journal_at[indices])
            table = write_shard(path, some, [plan.key(index) for index in indices], old,
                                [functools.partial(journal.read, offset) for offset in offsets])
            on_disk.append(disk.submit(_sync, path))
            index.write_table(table)
            size_bytes += path.stat().st_size
            clips[split] += len(some)
            seconds[split] += sum(clip.duration_s for clip in some)
            decoders.update(table["decoder"].to_pylist())
    for written in on_disk:
        written.result()
    write_skipped(_skipped(plan), new / "skipped.jsonl")
    reasons = Counter(plan.failed[int(index)].reason for index in plan.key_of_row[_failed_rows(plan)])
    stats = {"num_clips": clips.total(), "clips": dict(clips), "shards": dict(numbers), "bytes": size_bytes,
             "video_seconds": {split: round(value, 3) for split, value in seconds.items()},
             "skipped": dict(sorted(reasons.items())), "decoders": dict(sorted(decoders.items())),
             "size": config.size, "num_frames": config.num_frames, "quality": config.quality}
    with atomic_file(new / "stats.json") as temporary:
        temporary.write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    return stats


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _swap(out_dir: Path, work: Path) -> None:
    if out_dir.exists():
        out_dir.rename(work / "old")
    try:
        (work / "new").rename(out_dir)
    except OSError:
        _finish_interrupted_swap(out_dir, work)
        raise
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
