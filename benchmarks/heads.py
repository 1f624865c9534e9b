"""HCMI and its peers, every head on the same towers, data, epochs and seeds: mean, 95 % interval, paired lead.

The galleries of Scenes are for models trained on the standard set, but for `long`, which is for models trained on
clips of up to 6 events (32 frames, captions in paragraphs). On `event`, R@1 is the share of the queries whose first
answer shows the event; a second table has R@10 and mAP too. `moments` is R@1 at IoU 0.5 (moments.py). Intervals are
Student's t over seeds; differences are paired by seed. HCMI is trained as in params.yaml, the peers with the plain
loss, as in their papers. The last rows are HCMI without marginal sample enhancement and without the balance of videos,
on the standard set. A third table is of version 2 of Scenes: HCMI and the strongest peer, trained in the same way.

Writes results/heads.json, heads.md and heads.png; with --so-far too, and heads.json says how many runs of each head
there are. Finished runs are kept in results/runs.jsonl and never made twice: after an interruption, start the script
again. With --quick the leads of HCMI are too large, because the peers learn more slowly.

    python benchmarks/heads.py [--quick] [--seeds N] [--device cuda] [--jobs N] [--so-far]
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import Figure, markdown, result_file, table, write_result
from panels import panels
from runs import (
    BALANCE_OFF,
    GALLERIES,
    MSE_OFF,
    Spec,
    arguments,
    gain,
    interval,
    mean_of,
    mean_r1,
    measured_on,
    records_of,
    split_of,
)

PEERS = ("wti", "xclip", "seq_transf", "mean_pool")
LONG_EPOCHS = 5         # 32 frames instead of 12: about the time of the standard epochs on 12
QUICK = {"train.epochs": 6}
# HCMI's batches (64 clips, params.yaml) hold similar clips; random batches do better with more negatives. Long clips
# are the exception, because half as many steps are too few: there `wti` has 84 with batches of 64 and 81 with 128.
RANDOM_BATCHES = {"train.batch_size": 128}
# What else tuning.py chose for a head on validation, in place of params.yaml.
TUNED: dict[str, dict] = {"wti": {"train.lr": 8e-3, "train.backbone_lr": 8e-3}}
EVENT_FIGURES = {"r1": "R@1", "r10": "R@10", "map": "mAP"}      # name in a record -> in the table
SECOND_GALLERIES = GALLERIES["version_2"]
LEADS = ("event", "attribute", "long")      # beside `main`, where heads.json has hcmi's lead over the best other head


def specs(quick: bool, seeds: int) -> dict[str, list[Spec]]:
    """Name in the table -> the runs to make."""
    data: dict[str, dict] = {"quick": QUICK} if quick else {"standard": {}, "long": {"train.epochs": LONG_EPOCHS}}
    wanted = {head: [Spec(name, seed, {**more, "model.head": head, **(settings(head) if name != "long" else {})})
                     for name, more in data.items() for seed in range(seeds)] for head in ("hcmi", *PEERS)}
    if not quick:
        for part, changes in (("MSE", MSE_OFF), ("balance", BALANCE_OFF)):
            wanted[f"hcmi, {part} off"] = [Spec("standard", seed, {"model.head": "hcmi", **changes})
                                           for seed in range(seeds)]
    return wanted


def settings(head: str) -> dict:
    """How the training of a head differs from params.yaml."""
    return {} if head == "hcmi" else {**RANDOM_BATCHES, **TUNED.get(head, {})}


def second_specs(seeds: int) -> dict[str, list[Spec]]:
    """The runs on version 2 of Scenes: of HCMI and of the peer that is the strongest on version 1."""
    return {head: [Spec("version_2", seed, {"model.head": head, **settings(head)}) for seed in range(seeds)]
            for head in ("hcmi", "wti")}


def compare(records: Mapping[str, Sequence[dict]], gallery: str) -> list[tuple]:
    """Rows of the table: gallery, head, number of runs, mean, interval, the lead of hcmi and the lead's interval."""
    found = measured_on(gallery, records)
    ours = found.get("hcmi", [])
    return [(gallery, name, len(runs), mean_r1(runs, gallery), interval([run["r1"][gallery] for run in runs]),
             *gain(ours, runs, gallery)) for name, runs in found.items()]


def comparable(records: Mapping[str, Sequence[dict]], gallery: str) -> bool:
    """Whether hcmi and one of the peers were measured on the gallery."""
    found = measured_on(gallery, records)
    return "hcmi" in found and not found.keys().isdisjoint(PEERS)


def lead_over_best(records: Mapping[str, Sequence[dict]], gallery: str,
                   ) -> tuple[str, float, float | None, list[float] | None]:
    """The best peer, its mean, the paired lead of hcmi over it, and the interval of the lead."""
    found = measured_on(gallery, records)
    best = max((name for name in found if name in PEERS), key=lambda name: mean_r1(found[name], gallery))
    return best, mean_r1(found[best], gallery), *gain(found["hcmi"], found[best], gallery)


def event_rows(records: Mapping[str, Sequence[dict]]) -> list[tuple]:
    """Rows of the table of single events: head, number of runs, mean R@1, R@10 and mAP."""
    return [(name, len(runs), *(mean_of(runs, figure, "event") for figure in EVENT_FIGURES))
            for name, runs in measured_on("event", records).items()]


def cpu_minutes(runs: Sequence[dict]) -> float | None:
    """Median CPU minutes of the runs on a CPU that were made without an interruption; None where there is none."""
    minutes = [run["cpu_minutes"] for run in runs if run["device"] == "cpu" and run["cpu_minutes"] is not None]
    return float(np.median(minutes)) if minutes else None


def headline(records: Mapping[str, Sequence[dict]]) -> dict[str, Figure]:
    """The figures of heads.json that come from the runs: R@1 of hcmi, and its leads over the best other head."""
    def ours(gallery: str, figure: str = "r1") -> dict[str, Figure]:
        runs = measured_on(gallery, records).get("hcmi")
        return {f"{gallery}_{figure}": mean_of(runs, figure, gallery)} if runs else {}

    standard = measured_on("main", records)
    best_r1, lead, lead_ci = lead_over_best(records, "main")[1:]
    figures: dict[str, Figure] = {f"runs_{name}": len(standard.get(name, [])) for name in ("hcmi", *PEERS)}
    figures |= {"hcmi_t2v_r1": mean_r1(standard["hcmi"], "main"), "best_other_t2v_r1": best_r1, "gain_over_best": lead,
                "gain_over_best_ci95": lead_ci}
    for figure in EVENT_FIGURES:
        figures |= ours("event", figure)
    for gallery in ("attribute", "order", "paraphrase", "crowd", "moments"):
        figures |= ours(gallery)
    for gallery in LEADS:
        if comparable(records, gallery):
            figures[f"gain_{gallery}"], figures[f"gain_{gallery}_ci95"] = lead_over_best(records, gallery)[2:]
    return figures | {f"cpu_minutes_{head}": cpu_minutes(standard.get(head, [])) for head in ("hcmi", *PEERS)}


def second_headline(records: Mapping[str, Sequence[dict]]) -> dict[str, Figure]:
    """The figures of heads.json that come from the runs on version 2, gallery by gallery."""
    figures: dict[str, Figure] = {f"version_2_runs_{name}": len(runs) for name, runs in records.items()}
    for gallery in SECOND_GALLERIES:
        if comparable(records, gallery):
            figures[f"version_2_{gallery}_r1"] = mean_r1(records["hcmi"], gallery)
            _, figures[f"version_2_{gallery}_best_other"], lead, lead_ci = lead_over_best(records, gallery)
            figures |= {f"version_2_gain_{gallery}": lead, f"version_2_gain_{gallery}_ci95": lead_ci}
    return figures


def step_costs(device: str, towers: str, rounds: int) -> dict[str, float]:
    """Ratios of CPU (or GPU) time and peak memory of a training step, hcmi over mean_pool, measured in turn."""
    times: dict[str, list[float]] = {"hcmi": [], "mean_pool": []}
    peaks: dict[str, list[float]] = {"hcmi": [], "mean_pool": []}
    for _ in range(rounds):
        for head in times:
            done = subprocess.run([sys.executable, str(Path(__file__).with_name("step.py")), head, device, towers],
                                  check=True, capture_output=True, text=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            times[head].append(measured["seconds"])
            peaks[head].append(measured["peak_mb"])
    suffix = "" if towers == "small" else f"_{towers}"
    ratios = {f"step_time_ratio{suffix}": times, f"step_memory_ratio{suffix}": peaks}
    return {name: float(np.median(np.array(values["hcmi"]) / np.array(values["mean_pool"])))
            for name, values in ratios.items()}


def draw(rows: Sequence[tuple], path: Path) -> None:
    """Plot mean R@1 and interval of each head, one panel per gallery, all on the same scale from 0 to 100 %."""
    galleries, names = (list(dict.fromkeys(row[at] for row in rows)) for at in (0, 1))
    figure, row_of_panels = panels(galleries, "t2v R@1, %", 1.8 * len(galleries), 2.6)
    for panel, gallery in zip(row_of_panels, galleries, strict=True):
        for _, name, _, mean, between, *_ in (row for row in rows if row[0] == gallery):
            low, high = between or (mean, mean)
            panel.errorbar(mean, -names.index(name), xerr=[[mean - low], [high - mean]], fmt="o", capsize=3,
                           color="#1f77b4" if name == "hcmi" else "#888888")
        panel.set_yticks(range(0, -len(names), -1), names if gallery == galleries[0] else [""] * len(names))
        panel.set_ylim(0.5 - len(names), 0.5)
        panel.set_xlim(0, 100)
        panel.grid(axis="y", visible=False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    options = arguments(__doc__, "2 seeds, half the clips, fewer epochs, four galleries", seeds=5)
    records = records_of(specs(options.quick, options.seeds), options)
    shown = [name for name in GALLERIES["standard"] if split_of(name)[1] == "test"]
    galleries = [name for name in (*shown, "moments", "long") if measured_on(name, records)]
    rows = [row for gallery in galleries for row in compare(records, gallery)]
    headers = ["head", "runs", "R@1", "95 % interval", "hcmi's lead", "its 95 % interval"]
    second = {} if options.quick else records_of(second_specs(options.seeds), options)
    tables = [(["gallery", *headers], rows),
              (["head on event", "runs", *EVENT_FIGURES.values()], event_rows(records)),
              (["gallery of version 2", *headers], [row for name in SECOND_GALLERIES for row in compare(second, name)])]
    tables = [(names, found) for names, found in tables if found]
    print(*(table(*each) for each in tables), sep="\n\n")
    if options.so_far and not comparable(records, "main"):
        return
    print(f"\nbest other head on main: {lead_over_best(records, 'main')[0]}")
    figures = headline(records) | second_headline(second)
    figures |= step_costs(options.device, "small", 1 if options.quick else 5)
    if not (options.quick or options.so_far):       # many minutes on a CPU
        figures |= step_costs(options.device, "vit", 3)
    print(table(["figure", "value"], figures.items()))
    path = write_result("heads", figures, options.quick)
    if not options.quick:
        result_file("heads.md").write_text("\n".join(markdown(*each) for each in tables), encoding="utf-8")
        draw(rows, result_file("heads.png"))
    print(path)


if __name__ == "__main__":
    main()
