"""What every benchmark shares: where results go, what they were measured on, and a table for people.

A script in this folder does `from common import write_result, table` (Python puts a script's own folder on its path).
"""

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "numpy", "av", "decord", "webdataset", "faiss-cpu", "pandas", "dvc", "prefect",
            "evidently")
Figure = float | int | None | Sequence[float]


def machine() -> dict:
    """Processor, cores this process may use, memory in GiB, system, and GPU name where there is one."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory_gib, 1),
             "system": f"{platform.system()} {platform.machine()}", "gpu": None}
    torch = sys.modules.get("torch")    # a script that uses no GPU need not pay for the import
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Python and the packages whose release moves a figure; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_result(name: str, figures: dict[str, Figure], quick: bool, folder: Path = RESULTS,
                 measured: dict | None = None) -> Path:
    """Write `<folder>/<name>.json` (`<name>.quick.json` for a quick run, whose `figures` also say so).

    `measured`: the machine and versions behind the figures, where these are not from here and now.

    Raises: ValueError on a figure that is not a finite number, a pair of them, or None (not measured here).
    """
    for key, value in figures.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(n is not None and (isinstance(n, str) or not abs(float(n)) < float("inf")) for n in numbers):
            raise ValueError(f"figure {key}: need a finite number, a pair or None, got {value!r}.")
    measured = measured or {"machine": machine(), "versions": versions()}
    result = {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "machine": measured["machine"],
              "versions": measured["versions"], "command": _command(),
              "figures": {**figures, "quick": True} if quick else dict(figures)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.quick.json" if quick else f"{name}.json")
    path.write_text(json.dumps(result, indent=2, default=float) + "\n", encoding="utf-8")
    return path


def table(headers: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A plain-text table: text to the left, numbers to the right, floats to 4 significant digits."""
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
    """The same table in Markdown."""
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
    """The command as typed from the project's folder, without this machine's paths."""
    script = Path(sys.argv[0]).name
    return " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]])
