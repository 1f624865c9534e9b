"""Stage `shards`: manifest in, shards out.

The output is a pure function of the manifest, the bytes of the videos and the parameters. It does not depend on what
was there before or on how often a run was killed. Clips are known by a frames key. Frames that an earlier run decoded
are taken from its shards (`KeptShards`), or from the journal in the work folder (`<out>.work`). All others are decoded
into the journal. At the end new shards are written beside the old ones, unchanged shards are linked, and the new folder
takes the place of the old one at once.
"""

import functools
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hcmi.config import ShardsConfig
from hcmi.dataset import write_skipped
from hcmi.errors import ConfigError, DataError, DecodeError
from hcmi.files import ask_to_write, atomic_file, lock, writing
from hcmi.progress import track
from hcmi.shards.clip_table import ClipTable, Failures, assign_shards, read_clip_table
from hcmi.shards.existing_shards import ExistingShards
from hcmi.shards.journal import Journal
from hcmi.shards.kept_shards import KeptShards, note_checked
from hcmi.shards.shard_file import Jpegs, ShardEntry, write_shard
from hcmi.shards.shard_index import INDEX
from hcmi.types import Clip
from hcmi.video import CLIP_SQUARE, Decoded, DecoderPool, EncodeJob, Square, encode_job, map_on_ray

CHECKED = "checked"             # in the work folder: which shards `KeptShards` need not check again
JOURNAL = "journal-2"           # another name than that of versions that chose other frames


def write_shards(*, manifest_path: str | Path, out_dir: str | Path, config: ShardsConfig,
                 square: Square = CLIP_SQUARE) -> dict[str, Any]:
    """Decode every clip of the manifest into `<out_dir>/<split>-%06d.tar`; returns a summary.

    `square`: how frames become square, which `shards.fit` and `model.backbone` decide.

    Beside the tars: `index.parquet` (schema `INDEX`, one row a clip, shard by shard), `stats.json`, `skipped.jsonl`.

    Raises: DataError when another run writes `out_dir`, the manifest is missing, or more than `max_skip_fraction` of
    the clips cannot be decoded; MachineError when it cannot be written. `out_dir` is then as it was, and decoded clips
    are kept for the next run. ConfigError when `shards.size` does not hold whole frames.
    """
    started = time.monotonic()
    if square[0] == "whole" and config.size % 32:
        raise ConfigError(f"shards.size: need a multiple of 32 for frames that are whole, got {config.size}. 512 holds "
                          f"the 256 patches of SigLIP 2 NaFlex.")
    out_dir = Path(os.path.realpath(out_dir))
    ask_to_write(folders={out_dir: "index.parquet"})
    work = out_dir.with_name(out_dir.name + ".work")
    clip_table = read_clip_table(manifest_path, config, square)
    with writing(out_dir), _lock(work, out_dir):
        _finish_interrupted_swap(out_dir, work)
        existing = KeptShards(out_dir, work / CHECKED)
        with closing(Journal(work / JOURNAL)) as journal:
            offsets = _find_in_journal(clip_table, journal)
            missing = np.flatnonzero((offsets < 0) & ~existing.has(clip_table.keys))
            failures = Failures(clip_table, _decode(clip_table, missing, journal, offsets, config, square))
            _check_failures(failures, work, out_dir, config)
            try:
                stats = _write_folder(work / "new", clip_table, failures, existing, journal, offsets, config, square)
                note_checked(work / "new", work / CHECKED)
                _swap(out_dir, work)
            finally:        # half a folder would take room on a full disk
                shutil.rmtree(work / "new", ignore_errors=True)
    decoded = len(missing) - len(failures.errors)
    return {"out": str(out_dir), **stats, "decoded": decoded, "reused": stats["num_clips"] - decoded,
            "wall_seconds": round(time.monotonic() - started, 2)}


@contextmanager
def _lock(work: Path, out_dir: Path) -> Iterator[None]:
    """Hold the work folder alone. Raises: DataError when another run holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(work / "lock", wait=False))
        except BlockingIOError as error:
            holder = (work / "lock").read_text(encoding="utf-8") or "?"
            raise DataError(f"{out_dir}: need no other run that writes it, got process {holder}. "
                            "Wait for it or stop it.") from error
        yield


def _find_in_journal(clip_table: ClipTable, journal: Journal) -> np.ndarray:
    """For each frames key its offset in the journal, int64; -1 where the journal does not have it."""
    offsets = np.full(len(clip_table.keys), -1, np.int64)
    for key, offset in journal.scan():
        place = int(np.searchsorted(clip_table.keys, key.encode()))
        if place < len(clip_table.keys) and clip_table.keys[place] == key.encode():
            offsets[place] = offset
    return offsets


def _decode(clip_table: ClipTable, missing: np.ndarray, journal: Journal, offsets: np.ndarray, config: ShardsConfig,
            square: Square) -> dict[int, DecodeError]:
    """Decode the clips with the keys `missing` into the journal and write their places into `offsets`.

    Returns the errors of those that cannot be decoded.
    """
    errors: dict[int, DecodeError] = {}
    if not len(missing):
        return errors
    missing = missing[np.argsort(clip_table.first_row[missing])]   # manifest order keeps a video's clips together
    with track(None, "shards", len(missing), "clip") as bar:
        for job, result in _run(_jobs(clip_table, missing, config, square), config):
            if isinstance(result, Decoded):
                offsets[job.key] = journal.append(clip_table.key(job.key), result)
            else:
                errors[job.key] = result
            bar.update()
    return errors


def _run(jobs: Iterator[EncodeJob], config: ShardsConfig) -> Iterator[tuple[EncodeJob, Jpegs | DecodeError]]:
    if config.executor == "ray":
        yield from map_on_ray(jobs, config.decode_timeout_s, config.num_workers, config.ray_address)
    else:
        with DecoderPool(config.num_workers, config.decode_timeout_s, encode_job) as pool:
            yield from pool.map(jobs)


def _jobs(clip_table: ClipTable, keys: np.ndarray, config: ShardsConfig, square: Square) -> Iterator[EncodeJob]:
    for index, (_, clip) in zip(keys.tolist(), clip_table.iter_clips(clip_table.first_row[keys]), strict=True):
        end_s = clip.end_s if clip.end_s > clip.start_s else None
        yield EncodeJob(index, clip.path, config.num_frames, config.size, clip.start_s, end_s, square=square,
                        quality=config.quality)


def _check_failures(failures: Failures, work: Path, out_dir: Path, config: ShardsConfig) -> None:
    total, num_failed = len(failures.clip_table), len(failures.rows())
    if num_failed <= config.max_skip_fraction * total and num_failed < total:
        return
    report = work / "skipped.jsonl"
    write_skipped(failures.skips(), report)
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.reasons().most_common())
    need = "at least one clip that can be decoded" if num_failed == total else (
        f"at most {config.max_skip_fraction:.0%} of the clips skipped")
    raise DataError(f"{out_dir}: need {need}, got {num_failed} of {total} skipped ({reasons}). "
                    f"See {report}; repair the files or raise shards.max_skip_fraction.")


def _write_folder(new: Path, clip_table: ClipTable, failures: Failures, existing: ExistingShards, journal: Journal,
                  offsets: np.ndarray, config: ShardsConfig, square: Square) -> dict[str, Any]:
    """Write the folder `new` with all that `out_dir` will hold. Returns the content of stats.json."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    num_clips, numbers, decoders = Counter[str](), Counter[str](), Counter[str]()
    seconds: defaultdict[str, float] = defaultdict(float)
    size_bytes = 0
    shards = assign_shards(clip_table.table, config.max_clips_per_shard)
    on_disk: list[Future[None]] = []        # the disk writes one shard while the next is put together
    with ThreadPoolExecutor(1) as disk, pq.ParquetWriter(new / "index.parquet", INDEX, compression="zstd") as index:
        for split, all_rows in track(shards, "shard files", unit="shard"):
            rows = all_rows[~failures.failed(all_rows)]
            if not len(rows):
                continue
            path = new / f"{split}-{numbers[split]:06d}.tar"
            numbers[split] += 1
            clips = clip_table.clips(rows)
            table = write_shard(path, _entries(clips, clip_table, rows, journal, offsets), existing)
            on_disk.append(disk.submit(_sync, path))
            index.write_table(table)
            size_bytes += path.stat().st_size
            num_clips[split] += len(clips)
            seconds[split] += sum(clip.duration_s for clip in clips)
            decoders.update(table["decoder"].to_pylist())
    for written in on_disk:
        written.result()
    write_skipped(failures.skips(), new / "skipped.jsonl")
    stats = {"num_clips": num_clips.total(), "clips": dict(num_clips), "shards": dict(numbers), "bytes": size_bytes,
             "video_seconds": {split: round(value, 3) for split, value in seconds.items()},
             "skipped": dict(sorted(failures.reasons().items())), "decoders": dict(sorted(decoders.items())),
             "size": config.size, "num_frames": config.num_frames, "quality": config.quality,
             **({} if square == CLIP_SQUARE else {"square": list(square)})}
    with atomic_file(new / "stats.json") as temporary:
        temporary.write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    return stats


def _entries(clips: list[Clip], clip_table: ClipTable, rows: np.ndarray, journal: Journal, offsets: np.ndarray
             ) -> list[ShardEntry]:
    indices = clip_table.key_of_row[rows].tolist()
    return [ShardEntry(clip, clip_table.key(index), functools.partial(journal.read, int(offsets[index])))
            for clip, index in zip(clips, indices, strict=True)]


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
    for name in (JOURNAL, "journal"):
        (work / name).unlink(missing_ok=True)


def _finish_interrupted_swap(out_dir: Path, work: Path) -> None:
    """Repair what a run left that was killed between the two renames of `_swap`, or before it had tidied up."""
    if (work / "old").exists():
        if out_dir.exists():
            shutil.rmtree(work / "old")
        else:
            (work / "old").rename(out_dir)
