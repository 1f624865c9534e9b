"""Time and peak memory of every stage with default parameters, then the time of a `dvc repro` with nothing to do.

It runs in a temporary copy of this checkout (`--keep DIR` keeps it), so it neither uses nor changes your own results.
Memory is the largest sum over the processes of a stage, with shared pages counted once.

    python benchmarks/pipeline.py [--quick] [--keep DIR]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from common import shipped_params, table, write_result
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("code", "dataset", "shards", "train", "evaluate", "export", "drift")
SHARE = 0.02            # of the time that a sample of the memory may take
QUICK = {"dataset.scenes.num_train": 64, "dataset.scenes.num_val": 16, "dataset.scenes.num_test": 24,
         "dataset.scenes.num_incoming": 24, "train.epochs": 1, "train.batch_size": 16,
         "evaluate.bootstrap_samples": 50}


def fresh_copy(folder: Path, changes: dict[str, object] | None = None) -> dict[str, str]:
    """Copy every file that git tracks or would add to `folder`, set `changes` in params.yaml, and make one commit.

    Returns: an environment in which commands use the code of the copy and the packages of this interpreter.
    """
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("metrics/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy2(shipped_params(), folder / "params.yaml")
    set_params(folder, changes or {})
    who = ["-c", "user.name=copy", "-c", "user.email=copy@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--no-verify", "-m", "copy"]):
        subprocess.run(["git", *who, *command], cwd=folder, check=True)
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "DO_NOT_TRACK": "1"}


def set_params(folder: Path, changes: dict[str, object]) -> None:
    """Set dotted keys in the params.yaml of the copy. Raises: KeyError when it has no such key."""
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for key, value in changes.items():
        *path, last = key.split(".")
        section = params
        for part in path:
            section = section[part]
        if last not in section:
            raise KeyError(key)
        section[last] = value
    yaml.dump(params, folder / "params.yaml")


class PeakMemory(threading.Thread):
    """The peak memory, in MB, of a process and all its descendants together, sampled up to four times a second.

    Counting shared pages once takes 40 ms for a training, and holds up its memory meanwhile: four times a second made
    it 13 % slower. So the samples take `SHARE` of the time at most.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.root, self.peak_mb, self.done = psutil.Process(pid), 0.0, threading.Event()

    def run(self) -> None:
        pause = 0.25
        while not self.done.wait(pause):
            began = time.perf_counter()
            try:
                total = sum(map(_memory, [self.root, *self.root.children(recursive=True)]))
            except psutil.Error:
                continue
            self.peak_mb = max(self.peak_mb, total / 1e6)
            pause = max(0.25, (time.perf_counter() - began) / SHARE)


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return getattr(full, "pss", full.rss)


def measure(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run `command` to its end. Returns seconds and peak MB. Raises: CalledProcessError."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=sys.stderr)
    memory = PeakMemory(process.pid)
    memory.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    memory.done.set()
    memory.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return seconds, memory.peak_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few dozen clips and one epoch")
    parser.add_argument("--keep", type=Path, help="an empty or new folder to work in and keep")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="hcmi-pipeline-"))
    try:
        environment = fresh_copy(folder, QUICK if options.quick else {})
        rows = [(stage, *measure(["dvc", "repro", "--single-item", stage], folder, environment)) for stage in STAGES]
        noop_seconds, _ = measure(["dvc", "repro"], folder, environment)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    figures = {"total_seconds": sum(seconds for _, seconds, _ in rows), "noop_seconds": noop_seconds,
               "peak_memory_mb": max(peak for *_, peak in rows)}
    figures |= {f"{stage}_seconds": seconds for stage, seconds, _ in rows}
    figures |= {f"{stage}_memory_mb": peak for stage, _, peak in rows}
    print(table(["stage", "seconds", "peak MB"], [*rows, ("total", figures["total_seconds"], figures["peak_memory_mb"]),
                                                  ("nothing to do", noop_seconds, None)]))
    print(write_result("pipeline", figures, options.quick))


if __name__ == "__main__":
    main()
