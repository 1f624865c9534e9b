"""What every benchmark uses: the result file, the record of the machine and versions, and a printed table.

A script here can do `from common import write_result, table`, because Python puts a script's folder on its path.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, SCRATCH = ROOT / "benchmarks/results", ROOT / ".bench"
PACKAGES = ("torch", "transformers", "numpy", "av", "decord", "webdataset", "faiss-cpu", "pandas", "dvc", "prefect",
            "evidently")
Figure = float | int | None | Sequence[float]


def machine() -> dict:
    """Processor, cores this process may use, memory in GiB, system, and GPU name where there is one."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory_gib, 1),
             "system": f"{platform.system()} {platform.machine()}", "gpu": None}
    torch = sys.modules.get("torch")    # a script that uses no GPU is spared the import
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a figure; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def result_file(name: str) -> Path:
    """Where a file of results belongs: in `results/`, but a file that is there is replaced only with KEEP=1.

    Otherwise it goes to `.bench/results/`: the committed figures belong to the documents that quote them.
    """
    kept = RESULTS / name
    path = kept if os.environ.get("KEEP") == "1" or not kept.exists() else SCRATCH / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def shipped_params() -> Path:
    """The params.yaml of the last commit, whatever experiment the workspace holds; without git, that of the folder."""
    done = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=RESULTS, capture_output=True)
    if done.returncode or done.stdout == (ROOT / "params.yaml").read_bytes():
        return ROOT / "params.yaml"
    SCRATCH.mkdir(exist_ok=True)
    (SCRATCH / "params.yaml").write_bytes(done.stdout)
    print("note: params.yaml has changes; the parameters of the last commit are measured", file=sys.stderr)
    return SCRATCH / "params.yaml"


def shipped(path: str) -> str:
    """The path of an output of the pipeline in the workspace, such as `models/hcmi`.

    The script ends with one line unless the parameters of the last commit made it and all that it was made from: which
    parameters did is in dvc.lock.
    """
    # not above: kernel.py runs where little more than torch is installed
    from ruamel.yaml import YAML

    from flows.stages import changed_outs

    yaml = YAML(typ="safe", pure=True)
    lock = ROOT / "dvc.lock"
    stages = yaml.load(lock.read_text(encoding="utf-8"))["stages"] if lock.exists() else {}
    makers = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs", [])}
    wanted, chain = [path], set[str]()
    while wanted:
        maker = makers.get(wanted.pop())
        if maker and maker not in chain:
            chain.add(maker)
            wanted += [dep["path"] for dep in stages[maker].get("deps", [])]
    values = yaml.load(shipped_params().read_text(encoding="utf-8"))
    changed = [f"{key}={value}" for name in sorted(chain) for key, value in
               stages[name].get("params", {}).get("params.yaml", {}).items() if _value(values, key) != value]
    if not chain or changed:
        got = f"one made with {', '.join(changed[:3])}" if changed else "none in dvc.lock"
        sys.exit(f"{path}: need what the parameters of the last commit make, got {got}. Run `make repro` with these "
                 "parameters, or name others by the options of this script.")
    other = changed_outs(*sorted(chain))
    if other:
        sys.exit(f"{', '.join(other)}: need what dvc.lock pins, got something else or nothing. Run `make repro` or "
                 "`dvc checkout`.")
    return path


def _value(values: dict, key: str) -> Any:
    """The value under a dotted key, or None."""
    for part in key.split("."):
        values = values.get(part, {}) if isinstance(values, dict) else {}
    return values


def write_result(name: str, figures: dict[str, Figure], quick: bool, folder: Path | None = None,
                 measured: dict | None = None) -> Path:
    """Write `<name>.json` to `folder`, by default as `result_file` says. A quick run writes `<name>.quick.json`, with
    `quick` among its `figures`.

    `measured`: the machine and versions of the figures, where they were measured elsewhere or earlier.

    Raises: ValueError on a figure that is not a finite number, a pair of finite numbers, or None (not measured).
    """
    for key, value in figures.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(n is not None and (isinstance(n, str) or not abs(float(n)) < float("inf")) for n in numbers):
            raise ValueError(f"figure {key}: need a finite number, a pair or None, got {value!r}.")
    measured = measured or {"machine": machine(), "versions": versions()}
    result = {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "machine": measured["machine"],
              "versions": measured["versions"], "command": _command(),
              "figures": {**figures, "quick": True} if quick else dict(figures)}
    file = f"{name}.quick.json" if quick else f"{name}.json"
    path = folder / file if folder else RESULTS / file if quick else result_file(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, default=float) + "\n", encoding="utf-8")
    return path


def table(headers: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A plain-text table: text is left-aligned, numbers are right-aligned, floats have 4 significant digits."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    numeric = [bool(cells) and all(re.fullmatch(r"[-+\d.e%x ,\[\]]*", row[i]) for row in cells)
               for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        parts = (text.rjust(width) if right else text.ljust(width)
                 for text, width, right in zip(row, widths, numeric, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, cells)])


def markdown(headers: Sequence[str], rows: Iterable[Sequence]) -> str:
    """The table of `table`, in Markdown."""
    lines = [list(headers), ["---"] * len(headers), *([_cell(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_cell(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else platform.processor()


def _command() -> str:
    """The command as typed in the project folder, without paths of this machine."""
    script, *given = sys.argv
    shown = [Path(word).name if Path(word).is_absolute() else word for word in given]
    return " ".join(["python", f"benchmarks/{Path(script).name}", *shown])
