"""What a long run over a folder of videos would meet, told in seconds from a sample of them."""

import importlib.util
import os
import random
import shutil
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hcmi.config import DatasetConfig, Params
from hcmi.dataset import SOURCES, files_by_bare_name, read_annotations, read_captions
from hcmi.errors import ConfigError, DataError, DecodeError, shown
from hcmi.evaluate import wilson
from hcmi.video import DecoderPool, EncodeJob, encode_job, find_videos, is_text, probe

TAR_BYTES = 768         # of a tar member besides its content: header, and padding on average
RECORD_BYTES = 1500     # of a clip's JSON and its row of the index
WORST = 10


@dataclass(frozen=True)
class Examined:
    """One file of the sample, treated as the `shards` stage would."""

    duration_s: float
    clip_bytes: int         # in the shards
    seconds: float          # of one process
    decoder: str


def examine(job: EncodeJob) -> Examined:
    """Decode and encode one whole video; runs in the processes of a `DecoderPool`. Raises: DecodeError."""
    started = time.perf_counter()
    info, clip = probe(job.path), encode_job(job)
    size = sum(len(jpeg) + TAR_BYTES for jpeg in clip.frames) + RECORD_BYTES
    return Examined(info.duration_s, size, time.perf_counter() - started, clip.decoder)


def doctor(folder: str | Path, params: Params, sample: int = 64, seconds: float = 20.0,
           seed: int = 0) -> dict[str, Any]:
    """Counts, durations, caption lengths, projected disk, time and failures, the worst files, what stands in the way.

    `folder` is in the `folder` format, a plain folder of videos, or that of the published data set which
    `params.dataset` names. At most `sample` files are decoded, and no new one is begun after `seconds`. `problems`
    lists what would end or spoil a run; it is empty when all is well.

    Raises: DataError when the folder or its captions are wrong, or it holds no video.
    """
    folder = Path(folder)
    videos, captions = _read_folder(folder, params.dataset)
    present = sorted(name for name, path in videos.items() if os.path.exists(path))
    missing = sorted(set(videos) - set(present))
    if not present:
        raise DataError(f"{folder}: need at least one video file, got {len(missing)} names without a file. "
                        f"Correct the folder or the names in its captions.")
    chosen = random.Random(seed).sample(present, min(sample, len(present)))
    good, bad, wall_s = _examine({name: videos[name] for name in chosen}, params, seconds)
    looked_at = len(good) + len(bad)
    clips = {name: len(captions[name]) or 1 for name in present}
    share = len(good) / max(looked_at, 1)
    num_clips = sum(clips.values())
    report = {
        "videos": {"files": len(present), "missing": len(missing), "clips": num_clips, "sampled": looked_at},
        "durations_s": _spread([one.duration_s for one in good.values()]),
        "captions": _caption_figures(captions),
        "projected": {
            "failure_rate": round(1 - share, 4), "failure_rate_ci95": wilson(len(bad), looked_at),
            "shards_mb": round(_mean([one.clip_bytes for one in good.values()]) * num_clips * share / 1e6, 1),
            "shards_minutes": round(wall_s / max(looked_at, 1) * num_clips / 60, 2)},
        "reasons": dict(Counter(error.reason for error in bad.values())),
        "decoders": dict(Counter(one.decoder for one in good.values())),
        "worst": _worst(missing, bad, good),
        "machine": _machine(),
        "memory_needed_gb": round(_memory_needed(params) / 1e9, 2)}
    report["problems"] = _name_problems(videos) + _problems(report, params)
    return report


def _read_folder(folder: Path, config: DatasetConfig) -> tuple[dict[str, Path], dict[str, dict[tuple, list[str]]]]:
    """Path of each video by name, and per video its captions by (start, end)."""
    if not os.path.isdir(folder):
        got = "a file" if os.path.exists(folder) else "nothing there"
        raise DataError(f"{folder}: need a folder of videos, got {got}. Name the folder that holds videos/ and "
                        f"captions.csv.")
    inside = folder / "videos" if os.path.isdir(folder / "videos") else folder
    captions: dict[str, dict[tuple, list[str]]] = defaultdict(lambda: defaultdict(list))
    if os.path.isfile(folder / "captions.csv"):
        for row in read_captions(folder / "captions.csv"):
            captions[row.video][row.start_s, row.end_s].append(row.caption or "")
        return {name: inside / name for name in captions}, captions
    if config.name in SOURCES and os.path.realpath(config.path) == os.path.realpath(folder):
        for row in read_annotations(config):
            captions[row.video][row.start_s, row.end_s].append(row.caption or "")
        files = files_by_bare_name(folder)
        return {name: Path(files.get(name, inside / name)) for name in captions}, captions
    return {path.relative_to(inside).as_posix(): path for path in find_videos(inside)}, captions


def _examine(videos: dict[str, Path], params: Params, seconds: float
             ) -> tuple[dict[str, Examined], dict[str, DecodeError], float]:
    """What became of each file looked at within `seconds`, and how long all took without the start of processes."""
    config, begun = params.shards, time.monotonic()
    good: dict[str, Examined] = {}
    bad: dict[str, DecodeError] = {}

    def jobs():
        for name, path in videos.items():
            if time.monotonic() - begun > seconds:
                return
            yield EncodeJob(name, str(path), config.num_frames, config.size, quality=config.quality)
    started = None
    with DecoderPool(config.num_workers, config.decode_timeout_s, examine) as pool:
        for job, result in pool.map(jobs()):
            if started is None:     # the pool's processes are up, and each has worked about as long as this one
                started = time.monotonic() - (result.seconds if isinstance(result, Examined) else 0.0)
            if isinstance(result, Examined):
                good[job.key] = result
            else:
                bad[job.key] = result
    return good, bad, time.monotonic() - (started or begun)


def _caption_figures(captions: dict[str, dict[tuple, list[str]]]) -> dict[str, Any] | None:
    texts = [text for clips in captions.values() for some in clips.values() for text in some]
    if not texts:
        return None
    return {"count": len(texts), "empty": sum(not text for text in texts),
            "words": _spread([len(text.split()) for text in texts])}


def _worst(missing: list[str], bad: dict[str, DecodeError], good: dict[str, Examined]) -> list[dict[str, str]]:
    """The files to look at first: those that fail, then those that are not there, then the slowest."""
    slowest = sorted(good, key=lambda name: -good[name].seconds)
    rows = [{"file": name, "why": error.reason} for name, error in bad.items()]
    rows += [{"file": name, "why": "missing"} for name in missing]
    rows += [{"file": name, "why": f"{good[name].seconds:.2f} s to decode"} for name in slowest]
    return [{"file": shown(row["file"]), "why": row["why"]} for row in rows[:WORST]]


def _machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": len(os.sched_getaffinity(0)), "memory_free_gb": round(_memory_free() / 1e9, 1),
            "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1), "gpu": gpu,
            "decord": importlib.util.find_spec("decord") is not None}


def _memory_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_needed(params: Params) -> int:
    """Bytes that training takes at the least: batches of frames that the loader holds, one as numbers for the model.

    What the towers keep for the backward pass comes on top; it depends on them.
    """
    numbers = params.train.batch_size * params.model.num_frames * params.shards.size**2 * 3
    return numbers * (max(2, params.train.num_workers) + 2) + 4 * numbers


def _name_problems(videos: dict[str, Path]) -> list[str]:
    odd = [name for name in videos if not is_text(name)]
    return odd and [f"names: need names in UTF-8, got {len(odd)} others, such as {shown(odd[0])}. Rename them: DVC "
                    f"stops at such a name."]


def _problems(report: dict[str, Any], params: Params) -> list[str]:
    machine, projected = report["machine"], report["projected"]
    problems = []
    if projected["failure_rate"] > params.shards.max_skip_fraction:
        problems.append(f"videos: need at most {params.shards.max_skip_fraction:.0%} that cannot be decoded, got "
                        f"{projected['failure_rate']:.0%} of the sample. Repair or remove them, or raise "
                        f"shards.max_skip_fraction.")
    if projected["shards_mb"] / 1e3 > machine["disk_free_gb"]:
        problems.append(f"disk: need {projected['shards_mb'] / 1e3:.1f} GB for the shards, got "
                        f"{machine['disk_free_gb']} GB. Free space, or lower shards.size or shards.num_frames.")
    if report["memory_needed_gb"] > machine["memory_free_gb"]:
        problems.append(f"memory: need {report['memory_needed_gb']} GB for batches, got {machine['memory_free_gb']} GB."
                        f" Lower train.batch_size or train.num_workers.")
    if report["captions"] is None:
        problems.append("captions: need captions.csv to train and evaluate, got none. Without it the videos can be "
                        "searched with a trained model: hcmi search QUERY --videos FOLDER.")
    return problems + _config_problems(params)


def _config_problems(params: Params) -> list[str]:
    from hcmi.runtime import pick_device

    problems = []
    try:
        pick_device(params.train.device)
    except ConfigError as error:
        problems.append(str(error))
    if params.model.num_frames > params.shards.num_frames:
        problems.append(f"model.num_frames: need at most shards.num_frames={params.shards.num_frames}, got "
                        f"{params.model.num_frames}. Raise shards.num_frames.")
    if params.model.backbone == "scratch" and params.shards.size % params.model.scratch.patch:
        problems.append(f"shards.size: need a multiple of model.scratch.patch={params.model.scratch.patch}, got "
                        f"{params.shards.size}. Change one of them.")
    return problems


def _spread(numbers: list) -> dict[str, float]:
    return {"min": min(numbers), "median": median(numbers), "max": max(numbers)} if numbers else {}


def _mean(numbers: list) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def report_text(report: dict[str, Any]) -> str:
    """For people; ends with the problems, or with the word that there are none."""
    videos, projected, machine, captions = (report[key] for key in ("videos", "projected", "machine", "captions"))
    low, high = projected["failure_rate_ci95"]
    told = "none" if captions is None else (
        f"{captions['count']}, {captions['empty']} of them empty; words: {_range(captions['words'])}")
    rows = {"videos": f"{videos['files']} files, {videos['missing']} missing; {videos['clips']} clips; "
                      f"{videos['sampled']} files looked at",
            "seconds": _range(report["durations_s"]),
            "captions": told,
            "cannot be read": f"{projected['failure_rate']:.0%} of those looked at ({low:.0%} to {high:.0%} of all)",
            "reasons": _counts(report["reasons"]),
            "decoders": _counts(report["decoders"]),
            "shards": f"about {projected['shards_mb']:.4g} MB, {projected['shards_minutes']:.2g} minutes",
            "this machine": f"{machine['cores']} cores, {machine['gpu'] or 'no GPU'}, memory free "
                            f"{machine['memory_free_gb']} GB, disk free {machine['disk_free_gb']} GB, "
                            f"decord {'installed' if machine['decord'] else 'missing: PyAV decodes'}",
            "training": f"at least {report['memory_needed_gb']} GB memory for batches"}
    lines = [f"{name:16}{value}" for name, value in rows.items()]
    lines += ["to look at first:", *(f"  {row['file']}: {row['why']}" for row in report["worst"])]
    lines += [f"problem: {problem}" for problem in report["problems"]] or ["ready: nothing stands in the way"]
    return "\n".join(lines)


def _range(spread: dict[str, float]) -> str:
    return "{min:.4g} to {max:.4g}, median {median:.4g}".format(**spread) if spread else "unknown"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
