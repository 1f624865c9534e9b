"""What this machine has, and what would end or spoil a run on it: one message for each problem."""

import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hcmi.config import Params
from hcmi.errors import ConfigError, shown
from hcmi.runtime import pick_device
from hcmi.video import is_text


def describe_machine() -> dict[str, Any]:
    """Cores, free memory and disk space in gigabytes, GPU, and whether decord is installed."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": len(os.sched_getaffinity(0)), "memory_free_gb": round(_free_memory_bytes() / 1e9, 1),
            "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1), "gpu": gpu,
            "decord": importlib.util.find_spec("decord") is not None}


def _free_memory_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def training_memory_bytes(params: Params) -> int:
    """The least memory that training takes: the batches of frames in the loader, and one as floats for the model.

    What the towers keep for the backward pass is not included; it depends on the towers.
    """
    numbers = params.train.batch_size * params.model.num_frames * params.shards.size**2 * 3
    workers = 1 if params.train.num_workers == "auto" else params.train.num_workers
    return numbers * (max(2, workers) + 2) + 4 * numbers


def find_problems(report: dict[str, Any], names: Iterable[str], params: Params) -> list[str]:
    """The problems of a report, of the names of its videos, and of the parameters; empty when all is well."""
    return _name_problems(names) + _run_problems(report, params) + _config_problems(params)


def _name_problems(names: Iterable[str]) -> list[str]:
    odd = [name for name in names if not is_text(name)]
    return odd and [f"names: need names in UTF-8, got {len(odd)} others, such as {shown(odd[0])}. Rename them: DVC "
                    f"stops at such a name."]


def _run_problems(report: dict[str, Any], params: Params) -> list[str]:
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
    return problems


def _config_problems(params: Params) -> list[str]:
    problems = []
    try:
        pick_device(params.train.device)
    except ConfigError as error:
        problems.append(str(error))
    if params.model.num_frames > params.shards.num_frames:
        problems.append(f"model.num_frames: need at most shards.num_frames={params.shards.num_frames}, got "
                        f"{params.model.num_frames}. Raise shards.num_frames.")
    if params.model.backbone == "scratch" and params.train.epochs == 0:
        problems.append("train.epochs: need 1 or more for model.backbone scratch, got 0. Name a checkpoint as "
                        "model.backbone, or raise train.epochs.")
    if params.model.backbone == "scratch" and params.shards.size % params.model.scratch.patch:
        problems.append(f"shards.size: need a multiple of model.scratch.patch={params.model.scratch.patch}, got "
                        f"{params.shards.size}. Change one of them.")
    return problems
