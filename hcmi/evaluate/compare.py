"""Whether run B is better than run A, query by query, and what differs between the two runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmi.errors import DataError
from hcmi.evaluate.metrics import Ranks, paired_difference

SEED = 0
DIRECTIONS = ("t2v", "v2t")
CARD = ("config", "model", "data", "code", "versions")      # of run.json
COLUMNS = ["direction", "query", "video_id", "greater", "tied", "winners"]      # of ranks.parquet


class OtherRunError(ValueError):
    """`evaluate.json` and `plots/` are of different runs."""


def compare_runs(path_a: str | Path, path_b: str | Path, samples: int = 1000) -> dict:
    """Paired differences B minus A with 95 % intervals, and what differs in configuration, data, code and versions.

    Each path is a run's `evaluate.json`, or a folder with `metrics/evaluate.json` and `plots/`. R@K is in per cent.
    Raises: DataError when a file is missing or broken, `evaluate.json` and `plots/` are of different runs, or the two
    runs were not measured on the same queries and gallery.
    """
    runs = [_load(Path(path)) for path in (path_a, path_b)]
    (report_a, card_a, ranks_a), (report_b, card_b, ranks_b) = runs
    for key in ("split_sha256", "videos_sha256", "split"):
        values = [report["protocol"].get(key) for report in (report_a, report_b)]
        if values[0] != values[1] and not (None in values and key == "videos_sha256"):     # an older run
            raise DataError(f"{path_a} and {path_b}: need the same {key} to pair queries, got {values[0]} and "
                            f"{values[1]}. Evaluate both models on the same data.")
    return {"differences": {direction: _differences(ranks_a, ranks_b, direction, samples) for direction in DIRECTIONS},
            "changed": {"protocol": _changed(report_a["protocol"], report_b["protocol"]),
                        **{key: _changed(card_a.get(key, {}), card_b.get(key, {})) for key in CARD}}}


def compare_text(found: dict, path_a: str | Path, path_b: str | Path) -> str:
    """The comparison as text: a table of differences, then a list of what differs."""
    lines = [f"A: {path_a}", f"B: {path_b}", "", f"{'':8}{'':6}{'A':>9}{'B':>9}{'B - A':>9}   95 % interval"]
    for direction, figures in found["differences"].items():
        for name, row in figures.items():
            low, high = row["ci95"]
            mark = "" if low <= 0 <= high else "  *"
            lines.append(f"{direction:8}{name:6}{row['a']:9.2f}{row['b']:9.2f}{row['difference']:+9.2f}   "
                         f"[{low:+.2f}, {high:+.2f}]{mark}")
    lines += ["", "* the interval does not contain 0", "", "What differs (A -> B):"]
    for section, changes in found["changed"].items():
        for key, (a, b) in changes.items():
            lines.append(f"  {section} {key}: {_short(a)} -> {_short(b)}")
    return "\n".join(lines if any(found["changed"].values()) else [*lines, "  nothing"])


def _load(path: Path) -> tuple[dict, dict, pd.DataFrame]:
    report = here = path.absolute()     # a bare name has no folder above its own
    if here.is_dir():
        report = next((file for file in (here / "metrics" / "evaluate.json", here / "evaluate.json") if file.exists()),
                      here / "metrics" / "evaluate.json")
    folders = (report.parent / "plots", report.parent.parent / "plots")
    plots = next((folder for folder in folders if folder.is_dir()), folders[1])
    try:
        return read_run(report, plots)
    except (FileNotFoundError, OtherRunError) as error:
        got = f"no {error.filename}" if isinstance(error, FileNotFoundError) else error
        raise DataError(f"{path}: need evaluate.json with the folder plots/ of the same run, got {got}. Run "
                        "`hcmi evaluate --out DIR/metrics/evaluate.json --plots DIR/plots`, and name DIR.") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: need the complete output of `hcmi evaluate`, got: "
                        f"{' '.join(str(error).split())}. Run it again.") from error


def read_run(report: Path, plots: Path) -> tuple[dict, dict, pd.DataFrame]:
    """What evaluate.json, run.json and ranks.parquet of one run say.

    Raises: OSError; ValueError when one is broken; OtherRunError when `plots` is of another run than `report`.
    """
    figures, card = (json.loads(file.read_text(encoding="utf-8")) for file in (report, plots / "run.json"))
    if not isinstance(figures, dict) or not isinstance(figures.get("protocol"), dict):
        raise ValueError("no protocol in evaluate.json")
    if not isinstance(card, dict) or not all(isinstance(card.get(key, {}), dict) for key in CARD):
        raise ValueError("no card of a run in run.json")
    table = pd.read_parquet(plots / "ranks.parquet", columns=COLUMNS)
    _check_same_run(figures, table)
    return figures, card, table


def _check_same_run(figures: dict, table: pd.DataFrame) -> None:
    """Runs that share a folder plots/ overwrite each other's ranks, from which the figures can be computed again."""
    for direction in DIRECTIONS:
        found = _ranks(table[table["direction"] == direction])
        means = {name: round(float(values.mean()), 4) for name, values in _values(found).items()}
        for name, value in {"n": len(found), **means}.items():
            try:
                stated = figures["raw"][direction][name]
                same = abs(stated - value) < 2e-4       # both are rounded to four digits
            except (KeyError, TypeError) as error:
                raise ValueError("no figures in evaluate.json") from error
            if not same:
                raise OtherRunError(f"{direction} {name} {stated} in the file and {value} in plots/")


def _ranks(table: pd.DataFrame) -> Ranks:
    return Ranks(*(table[name].to_numpy() for name in ("greater", "tied", "winners")))


def _values(found: Ranks) -> dict[str, NDArray]:
    """Figure -> its value for each query; the figure is their mean."""
    return {**{f"R@{k}": 100 * found.hits_at(k) for k in (1, 5, 10)}, "MnR": found.expected}


def _differences(ranks_a: pd.DataFrame, ranks_b: pd.DataFrame, direction: str, samples: int) -> dict:
    chosen = [table[table["direction"] == direction].sort_values("query") for table in (ranks_a, ranks_b)]
    if chosen[0]["query"].tolist() != chosen[1]["query"].tolist():
        raise DataError(f"{direction}: need the same queries in both runs, got {len(chosen[0])} and {len(chosen[1])} "
                        "that do not agree. Evaluate both models on the same data.")
    groups = chosen[0]["video_id"].to_numpy()
    values_a, values_b = (_values(_ranks(table)) for table in chosen)
    found = {}
    for name in values_a:
        in_a, in_b = values_a[name], values_b[name]
        row: dict[str, Any] = {"a": float(in_a.mean()), "b": float(in_b.mean()),
                               **paired_difference(in_a, in_b, np.random.default_rng(SEED), samples, groups)}
        found[name] = {key: np.round(value, 4).tolist() for key, value in row.items()}
    return found


def _changed(a: dict, b: dict) -> dict[str, list]:
    """Dotted key -> [value in A, value in B] for each value that differs; None when a run does not have it."""
    flat_a, flat_b = _flat(a), _flat(b)
    return {key: [flat_a.get(key), flat_b.get(key)] for key in sorted(flat_a | flat_b)
            if flat_a.get(key) != flat_b.get(key)}


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text     # a hash
