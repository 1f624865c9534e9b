"""Every head at half and twice the learning rate of params.yaml and at another batch size, on validation.

HCMI is trained in batches of 64 clips and the peers in batches of 128. This is what each head gives at other settings,
one change at a time and the same changes for all heads; where the best rate was the highest, twice that too. The rate
is that of the head and of the towers. A setting is better by its mean over the galleries of the split val; the test
galleries are shown beside them and decide nothing. heads.py trains each head as its best setting here (`TUNED`). Means
over seeds. Writes results/tuning.json and tuning.md. Finished runs are kept in results/runs.jsonl and never made twice.

    python benchmarks/tuning.py [--seeds N] [--device cuda] [--jobs N] [--so-far]
"""

from collections.abc import Mapping, Sequence

import numpy as np
from balance import CHOICE
from common import Figure, markdown, result_file, table, write_result
from heads import PEERS, RANDOM_BATCHES
from runs import Spec, arguments, mean_r1, measured_on, records_of

Setting = tuple[str, int, float]        # head, clips in a batch, learning rate
HEADS = ("hcmi", *PEERS)
SHOWN = ("main", "event", "order")
FIRST_SEED = 3          # the first with which all heads were run on a CPU, as the other settings were
HIGHER = {"wti": 4}     # heads whose best rate was the highest -> a further multiple of the rate


def settings(head: str, lr: float) -> list[Setting]:
    """The usual setting first, then the others."""
    batch, other = (64, 128) if head == "hcmi" else (RANDOM_BATCHES["train.batch_size"], 64)
    rates = [lr / 2, lr * 2, *([lr * HIGHER[head]] if head in HIGHER else [])]
    return [(head, batch, lr), (head, other, lr), *((head, batch, rate) for rate in rates)]


def specs(seeds: int) -> dict[Setting, list[Spec]]:
    """Setting -> its runs."""
    lr = Spec().resolved().train.lr
    return {(head, batch, rate): [Spec("standard", seed, {"model.head": head, "train.batch_size": batch,
                                                          "train.lr": rate, "train.backbone_lr": rate})
                                  for seed in range(FIRST_SEED, FIRST_SEED + seeds)]
            for name in HEADS for head, batch, rate in settings(name, lr)}


def rows(records: Mapping[Setting, Sequence[dict]]) -> dict[Setting, dict[str, float]]:
    """Setting -> the number of runs, the mean of the validation galleries, and the mean R@1 of each gallery."""
    return {setting: {"runs": len(runs), "val": float(np.mean([mean_r1(runs, name) for name in CHOICE])),
                      **{name: mean_r1(runs, name) for name in (*CHOICE, *SHOWN)}}
            for setting, runs in measured_on("val/order", records).items()}


def headline(found: Mapping[Setting, Mapping[str, float]]) -> dict[str, Figure]:
    """For each head its best batch and rate on validation, and by how much they beat the usual ones: 0 for the same.

    The usual setting of a head comes first in `found`. A head of which no other was run has no best.
    """
    figures: dict[str, Figure] = {}
    for head in dict.fromkeys(name for name, _, _ in found):
        own = {setting: row["val"] for setting, row in found.items() if setting[0] == head}
        if len(own) == 1:
            continue
        best = max(own, key=own.__getitem__)
        figures |= {f"{head}_best_batch": best[1], f"{head}_best_lr": best[2],
                    f"{head}_gain_of_best": own[best] - next(iter(own.values()))}
    return figures


def main() -> None:
    options = arguments(__doc__, "one seed, as without it", seeds=1)
    records = records_of(specs(options.seeds), options)
    found = rows(records)
    headers = ["head", "batch", "learning rate", "runs", "mean of val", *CHOICE, *SHOWN]
    lines = [(*setting, *row.values()) for setting, row in found.items()]
    print(table(headers, lines))
    figures = headline(found)
    print(table(["figure", "value"], figures.items()))
    path = write_result("tuning", figures, options.quick, measured=next(iter(records.values()))[0])
    if not options.quick:
        result_file("tuning.md").write_text(markdown(headers, lines), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
