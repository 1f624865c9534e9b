"""The pipeline with presets/laptop.yaml on a folder of captioned videos, from nothing to a search index.

The checkpoint has the shape of CLIP ViT-B/32 and random weights; this script makes it, so recall means nothing here.
Each stage is a process of its own, one after the other, with as many threads as `--cores`.

- `minutes`: of all stages; `cpu_minutes`: processor time, which other work on the machine disturbs less
- `peak_gb`: memory of the stage that takes most; `STAGE_s`: seconds of each
- `planned_gb`, `planned_minutes`: what `hcmi train --plan` says before training, and `train_gb` what training took

    python benchmarks/laptop.py --data FOLDER [--quick] [--cores N]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import shipped_params, table, write_result
from ruamel.yaml import YAML
from zero_shot import save_checkpoint

from hcmi.config import load_overrides

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("dataset", "shards", "train", "evaluate", "export")


def write_params(path: Path, changes: dict) -> None:
    """params.yaml of this project with other values."""
    raw = YAML(typ="safe", pure=True).load(shipped_params().read_text(encoding="utf-8"))
    for key, value in changes.items():
        *names, last = key.split(".")
        section = raw
        for name in names:
            section = section[name]
        section[last] = value
    YAML().dump(raw, path)


def run(verb: list[str], project: Path, cores: int) -> tuple[float, float, float, str]:
    """Wall seconds, processor seconds and peak gigabytes of a verb, and what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(cores),
                   "HCMI_CACHE": str(project / "cache")}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hcmi", *verb], cwd=project, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"hcmi {' '.join(verb)} failed: {printed[-500:]}")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with videos/ and captions.csv; default: films made here")
    parser.add_argument("--quick", action="store_true", help="9 short films, and 2 epochs")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        project = Path(place)
        save_checkpoint(project / "clip")
        changes = load_overrides([ROOT / "presets/laptop.yaml"], shipped_params())
        changes |= {"model.backbone": str(project / "clip"), "train.num_workers": 0}
        if options.quick:
            changes |= {"train.epochs": 2, "shards.num_frames": 12}
        changes["dataset.path"] = str(options.data.resolve() if options.data and not options.quick else
                                      make_films(project / "films", 9 if options.quick else 66))
        write_params(project / "params.yaml", changes)
        figures: dict = {}
        used = {}
        for stage in STAGES:
            if stage == "train":
                plan = json.loads(run(["train", "--plan", "--json"], project, options.cores)[3])
                figures |= {"planned_gb": plan["memory_gb"]["total"], "planned_minutes": 60 * plan["hours"]}
            used[stage] = run([stage, "--json"], project, options.cores)
    figures |= {"minutes": sum(wall for wall, *_ in used.values()) / 60,
                "cpu_minutes": sum(cpu for _, cpu, *_ in used.values()) / 60,
                "peak_gb": max(gigabytes for _, _, gigabytes, _ in used.values()), "train_gb": used["train"][2],
                **{f"{stage}_s": wall for stage, (wall, *_) in used.items()}}
    print(table(["figure", "value"], figures.items()))
    print(write_result("laptop", figures, options.quick))


def make_films(folder: Path, count: int) -> Path:
    """A folder of short films of random blocks, with a caption each."""
    from kept_features import write_film

    (folder / "videos").mkdir(parents=True)
    rows = ["video,caption"]
    for number in range(count):
        write_film(folder / "videos" / f"{number:03}.mp4", number)
        rows.append(f"{number:03}.mp4,film number {number}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
