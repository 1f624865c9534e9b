"""What this machine has, and what would end or spoil a run on it: one message for each problem."""

import importlib.util
import shutil
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hcmi.config import Params, ShardsConfig
from hcmi.errors import HcmiError, shown
from hcmi.model import shards_square
from hcmi.runtime import count_cores, free_memory_bytes
from hcmi.train import Preflight, RunData, check_run
from hcmi.video import is_text
from hcmi.wording import plural


def describe_machine() -> dict[str, Any]:
    """Cores, free memory and disk space in gigabytes, GPU, and whether decord is installed."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": count_cores(), "memory_free_gb": round(free_memory_bytes() / 1e9, 1),
            "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1), "gpu": gpu,
            "decord": importlib.util.find_spec("decord") is not None}


def folder_problems(report: dict[str, Any], names: Iterable[str], config: ShardsConfig, outside: Collection[str] = (),
                    other_table: Path | None = None) -> list[str]:
    """The problems of a folder, whatever it is used for; empty when all is well. `outside`: links out of it.

    `other_table`: a file that may be its table of captions under a wrong name.
    """
    links = [f"videos: need files in the folder, got {plural(len(outside), 'link')} out of it, such as "
             f"{shown(min(outside))}. They are left out; copy the files."] if outside else []
    return _name_problems(names) + links + _run_problems(report, config, other_table)


def training_problems(data: RunData, params: Params) -> tuple[list[str], Preflight]:
    """The problems of training on the folder with these parameters, by the check that `hcmi train` itself makes."""
    try:
        square = shards_square(params.shards.fit, params.model.backbone)
        found = check_run(replace(data, square=square), params.model, params.train)
    except HcmiError as error:      # that the stage `shards` ends with
        found = Preflight([str(error)])
    problems = [*found.problems, *found.warnings]
    split = params.evaluate.split
    if split != "val" and not data.clips.get(split):        # the check has asked for the other splits
        problems.append(f"split {split}: need at least one clip for evaluate.split, got none. Give some videos the "
                        f"split {split!r}, or raise dataset.{split}_fraction.")
    if params.model.num_frames > params.shards.num_frames:
        problems.append(f"model.num_frames: need at most shards.num_frames={params.shards.num_frames}, got "
                        f"{params.model.num_frames}. Raise shards.num_frames.")
    return problems, found


def _name_problems(names: Iterable[str]) -> list[str]:
    odd = [name for name in names if not is_text(name)]
    return odd and [f"names: need names in UTF-8, got {plural(len(odd), 'other')}, such as {shown(odd[0])}. Rename "
                    f"them: DVC stops at such a name."]


def _run_problems(report: dict[str, Any], config: ShardsConfig, other_table: Path | None) -> list[str]:
    machine, projected = report["machine"], report["projected"]
    problems = []
    if projected["failure_rate"] == 1:
        problems.append("videos: need at least one that can be decoded, got none in the sample. Repair the files.")
    elif projected["skip_fraction"] > config.max_skip_fraction:
        problems.append(f"videos: need at most {config.max_skip_fraction:.0%} that can be opened but not decoded, got "
                        f"{projected['skip_fraction']:.0%} of those that can be opened. Repair or remove them, or "
                        f"raise shards.max_skip_fraction.")
    if projected["shards_mb"] / 1e3 > machine["disk_free_gb"]:
        problems.append(f"disk: need {projected['shards_mb'] / 1e3:.1f} GB for the shards, got "
                        f"{machine['disk_free_gb']} GB. Free space, or lower shards.size or shards.num_frames.")
    if report["captions"] is None:
        got = f"{shown(other_table)}. Save it as captions.csv in the folder itself." if other_table else "none."
        problems.append(f"captions: need captions.csv to train and evaluate, got {got} Without it the videos can be "
                        "searched with a checkpoint: hcmi search QUERY --videos FOLDER --model CHECKPOINT.")
    elif report["captions"]["empty"] == report["captions"]["count"]:
        problems.append(f"captions: need some to train and evaluate, got "
                        f"{plural(report['captions']['count'], 'empty cell')}. Fill them in.")
    return problems
