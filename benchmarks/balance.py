"""What the weight of the balance of videos gives and costs, and the weight that is chosen, on validation galleries.

The balance finds the order of events at the cost of single events (docs/decisions/0028). The rule was set before the
runs: the least weight with which hcmi finds `NEEDED` of 100 captions of the gallery `order` of the split val. Means
over seeds; the test galleries are shown beside them and decide nothing. Writes results/balance.json. Finished runs are
kept in results/runs.jsonl and never made twice.

    python benchmarks/balance.py [--seeds N] [--device cuda] [--jobs N] [--so-far]
"""

from collections.abc import Mapping, Sequence

from common import Figure, table, write_result
from runs import Spec, arguments, mean_r1, measured_on, records_of

WEIGHTS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025)
NEEDED = 93.5
CHOICE = ("val/order", "val/event", "val/main")
SHOWN = ("order", "event", "main", "crowd", "attribute", "paraphrase")


def specs(seeds: int) -> dict[float, list[Spec]]:
    """Weight -> its runs."""
    return {weight: [Spec("standard", seed, {"model.head": "hcmi", "train.loss.balance_weight": weight})
                     for seed in range(seeds)] for weight in WEIGHTS}


def rows(records: Mapping[float, Sequence[dict]]) -> dict[float, dict[str, float]]:
    """Weight -> the mean R@1 of each gallery, and the number of runs."""
    return {weight: {name: mean_r1(runs, name) for name in (*CHOICE, *SHOWN)} | {"runs": len(runs)}
            for weight, runs in records.items()}


def chosen(found: Mapping[float, Mapping[str, float]]) -> float | None:
    """The least weight that finds enough orders on validation; None where no weight does."""
    return min((weight for weight, row in found.items() if row["val/order"] >= NEEDED), default=None)


def main() -> None:
    options = arguments(__doc__, "2 seeds", seeds=3)
    records = measured_on("val/order", records_of(specs(options.seeds), options))
    found = rows(records)
    print(table(["weight", *CHOICE, *SHOWN, "runs"], [(weight, *row.values()) for weight, row in found.items()]))
    figures: dict[str, Figure] = {"chosen": chosen(found)}
    for weight, row in found.items():
        figures |= {f"{name.replace('/', '_')}_{weight:g}".replace(".", "_"): value for name, value in row.items()}
    path = write_result("balance", figures, options.quick, measured=records[max(found)][0])
    print(f"\nchosen: {chosen(found)}", path, sep="\n")


if __name__ == "__main__":
    main()
