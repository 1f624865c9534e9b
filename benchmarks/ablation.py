"""What each part of HCMI is worth: one part at a time is changed and compared with the shipped configuration by seed.

- each level alone, and each level left out
- label denoising `positive`, `mask` and `off`, with 0, 20 and 40 % duplicates in the training set, and its precision
  and recall against the truth in each epoch; and denoising by the true duplicates, the most that any rule can gain;
  the same in batches of 512 and 1,024
- without the loss on the sum of the levels; without the balance of videos; with the whole gradient of the coarser
  levels in words and frames
- marginal sample enhancement on and off, and theta
- number of clips and phrases; slots filled by soft assignment or by learned queries

The shipped configuration is the one of heads.py, and its runs are shared. Denoising has three seeds, whatever --seeds
says. Intervals are Student's t over seeds. Writes results/ablation.json, ablation.md and denoise.png, with --so-far
too: of the runs that there are, and at least one is needed of the shipped configuration. Finished runs are kept in
results/runs.jsonl and never made twice: after an interruption, start the script again.

    python benchmarks/ablation.py [--quick] [--seeds N] [--device cuda] [--jobs N] [--so-far]
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import Figure, markdown, result_file, table, write_result
from panels import panels
from runs import BALANCE_OFF, MSE_OFF, Spec, arguments, gain, mean_r1, records_of

LEVELS = ("frame_word", "clip_phrase", "video_sentence")
WEIGHT = "train.loss.level_weights."
NOISE = (0, 20, 40)
NOISE_SEEDS = 3
# Batch size -> what else differs from params.yaml in the runs with duplicates. Larger batches need more memory and more
# epochs: these are 140 steps of 512 clips, and 135 of 1,024. A clip of these data has three captions.
LIGHTER = {"train.captions_per_clip": 2, "model.num_frames": 6}
BATCHES: dict[int, dict] = {64: LIGHTER, 512: {"train.batch_size": 512, "train.epochs": 20, **LIGHTER},
                            1024: {"train.batch_size": 1024, "train.epochs": 45, **LIGHTER}}
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
    return {name: [Spec("standard", seed, changes) for seed in range(seeds)] for name, changes in VARIANTS.items()}


def noise_specs(seeds: int) -> dict[tuple[int, int, str], list[Spec]]:
    """Batch size, per cent of duplicates and name of the mode -> the runs to make."""
    return {(size, rate, mode): [Spec(f"noise_{rate}", seed, {**batch, **changes}) for seed in range(seeds)]
            for size, batch in BATCHES.items() for rate in NOISE for mode, changes in MODES.items()
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
            epochs = len(records[0]["curves"]["train/loss"]) - len(values) + 1 + np.arange(len(values))
            axes.plot(epochs, values, f"C{colour}", marker="o", markersize=3, label=f"{rate} % duplicates")
            axes.set_xticks(epochs)
        if name != "fired":
            axes.set_ylim(0, 1.02)
    row[-1].legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def noise_rows(found: Mapping) -> list[tuple]:
    """Rows of the table of denoising: what denoising adds, and in the last epoch how well it agreed with the truth."""
    rows = []
    for (size, rate, mode), runs in found.items():
        agreement = [float(denoise_curve(runs, name)[-1]) if rate and mode != "off" else None
                     for name in ("precision", "recall")]
        rows.append((size, f"{rate} %", mode, len(runs), mean_r1(runs, "main"),
                     *gain(runs, found.get((size, rate, "off"), []), "main"), *agreement))
    return rows


def headline(variants: Mapping[str, list[dict]], noise: Mapping) -> dict[str, Figure]:
    """The figures of ablation.json, of what was run: gains in points of R@1, paired, with their intervals."""
    shipped = variants["shipped"]
    figures: dict[str, Figure] = {"runs_shipped": len(shipped)}
    figures |= {"gain_over_" + re.sub(r"\W+", "_", name): gain(shipped, runs, "main")[0]
                for name, runs in variants.items() if name != "shipped"}
    pairs = {}
    if "MSE off" in variants:
        pairs["mse_gain_attribute"] = gain(shipped, variants["MSE off"], "attribute")
    for name, mode in (("ald_gain", "positive"), ("ald_gain_true_pairs", "positive, true pairs")):
        for size, suffix in ((64, ""), (512, "_large_batch"), (1024, "_batch_1024")):
            for rate in filter(None, NOISE):
                if noise.keys() >= {(size, rate, mode), (size, rate, "off")}:
                    pairs[f"{name}_{rate}{suffix}"] = gain(noise[size, rate, mode], noise[size, rate, "off"], "main")
    for name, (mean, between) in pairs.items():
        figures |= {name: mean, f"{name}_ci95": between}
    if (64, 20, "positive") in noise:
        figures |= {f"ald_{name}": float(denoise_curve(noise[64, 20, "positive"], name)[-1])
                    for name in ("precision", "recall")}
    return figures


def main() -> None:
    options = arguments(__doc__, "2 seeds, denoising and MSE only", seeds=5)
    wanted: dict = {name: specs for name, specs in variant_specs(options.seeds).items()
                    if not options.quick or name in ("shipped", "MSE off")}
    found = records_of(wanted | noise_specs(min(options.seeds, NOISE_SEEDS)), options)
    variants = {name: runs for name, runs in found.items() if name in wanted}
    noise = {name: runs for name, runs in found.items() if name not in wanted}
    rows = [(name, gallery, len(runs), mean_r1(runs, gallery), *gain(variants.get("shipped", []), runs, gallery))
            for name, runs in variants.items() for gallery in GALLERIES]
    headers = ["variant", "gallery", "runs", "R@1", "shipped minus this", "95 % interval"]
    rows_of_noise = noise_rows(noise)
    headers_of_noise = ["batch", "duplicates", "denoise", "runs", "R@1", "minus off", "95 % interval", "precision",
                        "recall"]
    print(table(headers, rows), table(headers_of_noise, rows_of_noise), sep="\n\n")
    if "shipped" not in variants:
        return
    figures = headline(variants, noise)
    print(table(["figure", "value"], figures.items()))
    path = write_result("ablation", figures, options.quick, measured=variants["shipped"][0])
    if not options.quick:
        result_file("ablation.md").write_text(
            markdown(headers, rows) + "\n" + markdown(headers_of_noise, rows_of_noise), encoding="utf-8")
        if all((64, rate, "positive") in noise for rate in NOISE):
            draw({rate: noise[64, rate, "positive"] for rate in NOISE}, result_file("denoise.png"))
    print(path)


if __name__ == "__main__":
    main()
