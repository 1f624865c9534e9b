"""What each part of HCMI is worth: one part at a time is changed and compared with the shipped configuration by seed.

- each level alone, and each level left out
- label denoising `positive`, `mask` and `off`, with 0, 20 and 40 % duplicates in the training set, and its precision
  and recall against the truth in each epoch; and denoising by the true duplicates, the most that any rule can gain
- without the loss on the sum of the levels; without the balance of videos; with the whole gradient of the coarser
  levels in words and frames
- marginal sample enhancement on and off, and theta
- number of clips and phrases; slots filled by soft assignment or by learned queries

Three seeds and half the epochs of heads.py. Denoising stays at three seeds with more --seeds. Intervals are Student's t
over seeds. Writes results/ablation.json, ablation.md and denoise.png. Finished runs are kept in results/runs.jsonl and
never made twice: after an interruption, start the script again.

    python benchmarks/ablation.py [--quick] [--seeds N] [--device cuda] [--jobs N] [--so-far]
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import markdown, result_file, table, write_result
from panels import panels
from runs import BALANCE_OFF, MSE_OFF, Spec, arguments, gain, mean_r1, records_of

EPOCHS = {"train.epochs": 5}
LEVELS = ("frame_word", "clip_phrase", "video_sentence")
WEIGHT = "train.loss.level_weights."
NOISE = (0, 20, 40)
NOISE_SEEDS = 3
# Name in the table -> how training denoises. The last one knows the true duplicates: no rule can gain more.
MODES: dict[str, dict] = {**{mode: {"train.loss.denoise": mode} for mode in ("off", "positive", "mask")},
                          "positive, true pairs": {"train.loss.denoise": "positive", "train.loss.denoise_by": "tag"}}
GALLERIES = ("main", "event", "attribute", "order")

SUM_OFF = {"train.loss.sum_weight": 0.0}
MARGIN_OFF = {"train.loss.margin_weight": 0.0}

# Name in the table -> what differs from params.yaml. The margin loss is on video_sentence: a variant without that level
# has no margin loss. A level alone has no loss on the sum, which would be the same as its own.
VARIANTS: dict[str, dict] = {
    "shipped": {},
    **{f"{level} alone": {**{WEIGHT + other: 0.0 for other in LEVELS if other != level}, **SUM_OFF,
                          **({} if level == "video_sentence" else MARGIN_OFF)} for level in LEVELS},
    "without frame_word": {WEIGHT + "frame_word": 0.0},
    "without clip_phrase": {WEIGHT + "clip_phrase": 0.0},
    "without video_sentence": {WEIGHT + "video_sentence": 0.0, **MARGIN_OFF},
    "no loss on the sum": SUM_OFF,
    "no balance of videos": BALANCE_OFF,
    "coarse gradients whole": {"model.coarse_gradient": 1.0},
    "MSE off": MSE_OFF,
    "MSE: margin loss off": MARGIN_OFF,
    "MSE: batches of random clips": {"train.loss.marginal_group": 1},
    "theta 0.1": {"train.loss.margin": 0.1},
    "theta 0.4": {"train.loss.margin": 0.4},
    "2 clips, 4 phrases": {"model.num_clips": 2, "model.num_phrases": 4},
    "8 clips, 16 phrases": {"model.num_clips": 8, "model.num_phrases": 16},
    "learned queries": {"model.aggregation": "queries"},
}


def variant_specs(seeds: int) -> dict[str, list[Spec]]:
    return {name: [Spec("standard", seed, {**EPOCHS, **changes}) for seed in range(seeds)]
            for name, changes in VARIANTS.items()}


def noise_specs(seeds: int) -> dict[tuple[int, str], list[Spec]]:
    return {(rate, mode): [Spec(f"noise_{rate}", seed, {**EPOCHS, **changes}) for seed in range(seeds)]
            for rate in NOISE for mode, changes in MODES.items()
            if rate or changes.get("train.loss.denoise_by") != "tag"}       # without duplicates this equals `off`


def denoise_curve(records: Sequence[dict], name: str) -> np.ndarray:
    """Mean over seeds of the denoising figure `name` in the training log, one entry per epoch."""
    return np.mean([record["curves"][f"train/denoise_{name}"] for record in records], axis=0)


def draw(by_rate: dict[int, Sequence[dict]], path: Path) -> None:
    """Plot precision, recall and extra positives per epoch, with a line for each rate of duplicates.

    Without duplicates there is nothing to find, so only the extra positives are drawn.
    """
    shown = {"precision": "precision", "recall": "recall", "fired": "extra positives a clip"}
    figure, row = panels(list(shown.values()), "epoch", 9, 2.8)
    for axes, name in zip(row, shown, strict=True):
        for colour, (rate, records) in enumerate(by_rate.items()):
            if not rate and name != "fired":
                continue
            values = denoise_curve(records, name)
            epochs = EPOCHS["train.epochs"] - len(values) + 1 + np.arange(len(values))
            axes.plot(epochs, values, f"C{colour}", marker="o", markersize=3, label=f"{rate} % duplicates")
            axes.set_xticks(epochs)
        if name != "fired":
            axes.set_ylim(0, 1.02)
    row[-1].legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    options = arguments(__doc__, "2 seeds, denoising and MSE only", seeds=3)
    variants = {name: specs for name, specs in variant_specs(options.seeds).items()
                if not options.quick or name in ("shipped", "MSE off")}
    wanted: dict = {**variants, **noise_specs(min(options.seeds, NOISE_SEEDS))}
    found = records_of(wanted, options)
    shipped = found.get("shipped", [])
    rows = [(name, gallery, len(found[name]), mean_r1(found[name], gallery), *gain(shipped, found[name], gallery))
            for name in variants if name in found for gallery in GALLERIES]
    noise_rows = []
    for rate, mode in (name for name in found if name not in variants):
        runs = found[rate, mode]
        measured = [float(denoise_curve(runs, name)[-1]) for name in ("precision", "recall")
                    if rate and mode != "off"]
        noise_rows.append((f"{rate} %", mode, len(runs), mean_r1(runs, "main"),
                           *gain(runs, found.get((rate, "off"), []), "main"), *(measured or [None] * 2)))
    headers = ["variant", "gallery", "runs", "R@1", "shipped minus this", "95 % interval"]
    noise_headers = ["duplicates", "denoise", "runs", "R@1", "minus off", "95 % interval", "precision", "recall"]
    print(table(headers, rows), table(noise_headers, noise_rows), sep="\n\n")
    if options.so_far:
        return
    figures = {"seeds": options.seeds, "epochs": EPOCHS["train.epochs"],
               **{"gain_over_" + re.sub(r"\W+", "_", name): gain(shipped, runs, "main")[0]
                  for name, runs in found.items() if name in variants and name != "shipped"}}
    pairs = {"mse_gain_attribute": gain(shipped, found["MSE off"], "attribute"),
             **{f"{name}_{rate}": gain(found[rate, mode], found[rate, "off"], "main") for rate in NOISE if rate
                for name, mode in (("ald_gain", "positive"), ("ald_gain_true_pairs", "positive, true pairs"))}}
    for name, (mean, between) in pairs.items():
        figures |= {name: mean, f"{name}_ci95": between}
    for name in ("precision", "recall"):
        figures[f"ald_{name}"] = float(denoise_curve(found[20, "positive"], name)[-1])
    print(table(["figure", "value"], figures.items()))
    path = write_result("ablation", figures, options.quick, measured=shipped[0])
    if not options.quick:
        result_file("ablation.md").write_text(markdown(headers, rows) + "\n" + markdown(noise_headers, noise_rows),
                                             encoding="utf-8")
        draw({rate: found[rate, "positive"] for rate in NOISE}, result_file("denoise.png"))
    print(path)


if __name__ == "__main__":
    main()
