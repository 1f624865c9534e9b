"""What each part of HCMI is worth: one part changed at a time, against the shipped configuration, paired by seed.

- each level alone, and each left out
- label denoising positive, mask and off, at 0, 20 and 40 % duplicates in the training set, with its precision and
  recall against the truth, epoch by epoch; and by the true duplicates, which is the most that denoising can gain
- the loss on the sum of the levels, off; the coarser levels' gradients in words and frames, whole
- marginal sample enhancement on and off, and theta
- number of clips and phrases; slots filled by soft assignment against learned queries

Three seeds on a smaller budget than heads.py (half the epochs, said in the table). Intervals are Student's t over
seeds. Writes results/ablation.json, ablation.md and denoise.png. Finished runs are kept in results/runs.jsonl and never
made twice: start it again after an interruption.

    python benchmarks/ablation.py [--quick] [--seeds N] [--device cuda] [--jobs N]
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import RESULTS, markdown, table, write_result
from panels import panels
from runs import Spec, arguments, interval, run_all

EPOCHS = {"train.epochs": 5}
LEVELS = ("frame_word", "clip_phrase", "video_sentence")
WEIGHT = "train.loss.level_weights."
NOISE = (0, 20, 40)
# Name in the table -> how training denoises. The last one knows the true duplicates: more than that no rule can gain.
MODES: dict[str, dict] = {**{mode: {"train.loss.denoise": mode} for mode in ("off", "positive", "mask")},
                          "positive, true pairs": {"train.loss.denoise": "positive", "train.loss.denoise_by": "tag"}}
GALLERIES = ("main", "attribute", "order")

SUM_OFF = {"train.loss.sum_weight": 0.0}
MARGIN_OFF = {"train.loss.margin_weight": 0.0}

# Name in the table -> what differs from params.yaml. The margin loss is on video_sentence: where that level is left
# out, so is the margin; a level alone is its own sum.
VARIANTS: dict[str, dict] = {
    "shipped": {},
    **{f"{level} alone": {**{WEIGHT + other: 0.0 for other in LEVELS if other != level}, **SUM_OFF,
                          **({} if level == "video_sentence" else MARGIN_OFF)} for level in LEVELS},
    "without frame_word": {WEIGHT + "frame_word": 0.0},
    "without clip_phrase": {WEIGHT + "clip_phrase": 0.0},
    "without video_sentence": {WEIGHT + "video_sentence": 0.0, **MARGIN_OFF},
    "no loss on the sum": SUM_OFF,
    "coarse gradients whole": {"model.coarse_gradient": 1.0},
    "MSE off": {**MARGIN_OFF, "train.loss.marginal_group": 1},
    "MSE: margin loss off": MARGIN_OFF,
    "MSE: batches of random clips": {"train.loss.marginal_group": 1},
    "theta 0.1": {"train.loss.margin": 0.1},
    "theta 0.4": {"train.loss.margin": 0.4},
    "2 clips, 4 phrases": {"model.num_clips": 2, "model.num_phrases": 4},
    "8 clips, 16 phrases": {"model.num_clips": 8, "model.num_phrases": 16},
    "learned queries": {"model.aggregation": "queries"},
}


def variant_specs(seeds: int) -> dict[tuple[str, int], Spec]:
    return {(name, seed): Spec("standard", seed, {**EPOCHS, **changes})
            for seed in range(seeds) for name, changes in VARIANTS.items()}


def noise_specs(seeds: int) -> dict[tuple[int, str, int], Spec]:
    return {(rate, mode, seed): Spec(f"noise_{rate}", seed, {**EPOCHS, **changes})
            for seed in range(seeds) for rate in NOISE for mode, changes in MODES.items()
            if rate or changes.get("train.loss.denoise_by") != "tag"}       # with no duplicates that is `off`


def difference(ours: Sequence[dict], others: Sequence[dict], gallery: str) -> tuple[float, list[float] | None]:
    """Mean and interval of R@1 of `ours` minus `others`, paired by seed."""
    lead = np.array([a["r1"][gallery] - b["r1"][gallery] for a, b in zip(ours, others, strict=True)])
    return float(lead.mean()), interval(lead)


def denoise_curve(records: Sequence[dict], name: str) -> np.ndarray:
    """Mean over seeds of what training logged of denoising, an entry an epoch."""
    return np.mean([record["curves"][f"train/denoise_{name}"] for record in records], axis=0)


def draw(by_rate: dict[int, Sequence[dict]], path: Path) -> None:
    """Precision, recall and firing rate per epoch, a line for each rate of duplicates."""
    shown = {"precision": "precision", "recall": "recall", "fired": "extra positives a clip"}
    figure, row = panels(list(shown.values()), "epoch", 9, 2.8)
    for axes, name in zip(row, shown, strict=True):
        for rate, records in by_rate.items():
            values = denoise_curve(records, name)
            first = EPOCHS["train.epochs"] - len(values) + 1
            axes.plot(first + np.arange(len(values)), values, marker="o", markersize=3, label=f"{rate} % duplicates")
        if name != "fired":
            axes.set_ylim(0, 1.02)
    row[-1].legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    options = arguments(__doc__, "2 seeds, denoising and MSE only", seeds=3)
    seeds = options.seeds
    wanted = {key: spec for key, spec in variant_specs(seeds).items()
              if not options.quick or key[0] in ("shipped", "MSE off")} | noise_specs(seeds)
    found = dict(zip(wanted, run_all(list(wanted.values()), options.device, options.jobs), strict=True))

    def of(*name) -> list[dict]:
        return [found[(*name, seed)] for seed in range(seeds)]

    rows, figures = [], {"seeds": seeds, "epochs": EPOCHS["train.epochs"]}
    for name in dict.fromkeys(key[0] for key in wanted if isinstance(key[0], str)):
        for gallery in GALLERIES:
            mean = float(np.mean([record["r1"][gallery] for record in of(name)]))
            gain, gain_ci = difference(of("shipped"), of(name), gallery)
            rows.append((name, gallery, mean, gain, gain_ci))
            if gallery == "main" and name != "shipped":
                figures["gain_over_" + name.replace(" ", "_").replace(",", "").replace(":", "")] = gain
    figures["mse_gain_attribute"], figures["mse_gain_attribute_ci95"] = difference(of("shipped"), of("MSE off"),
                                                                                  "attribute")
    noise_rows = []
    for rate in NOISE:
        for mode in (name for name in MODES if (rate, name, 0) in wanted):
            gain, gain_ci = difference(of(rate, mode), of(rate, "off"), "main")
            mean = float(np.mean([record["r1"]["main"] for record in of(rate, mode)]))
            measured = [None] * 2 if mode == "off" else [
                float(denoise_curve(of(rate, mode), name)[-1]) for name in ("precision", "recall")]
            noise_rows.append((f"{rate} %", mode, mean, gain, None if mode == "off" else gain_ci, *measured))
            name = {"positive": "ald_gain", "positive, true pairs": "ald_gain_true_pairs"}.get(mode)
            if rate and name:
                figures[f"{name}_{rate}"], figures[f"{name}_{rate}_ci95"] = gain, gain_ci
    figures["ald_precision"], figures["ald_recall"] = (
        float(denoise_curve(of(20, "positive"), name)[-1]) for name in ("precision", "recall"))
    headers = ["variant", "gallery", "R@1", "shipped minus this", "95 % interval"]
    noise_headers = ["duplicates", "denoise", "R@1", "minus off", "95 % interval", "precision", "recall"]
    print(table(headers, rows), table(noise_headers, noise_rows), table(["figure", "value"], figures.items()),
          sep="\n\n")
    path = write_result("ablation", figures, options.quick)
    if not options.quick:
        (RESULTS / "ablation.md").write_text(markdown(headers, rows) + "\n" + markdown(noise_headers, noise_rows),
                                             encoding="utf-8")
        draw({rate: of(rate, "positive") for rate in NOISE}, RESULTS / "denoise.png")
    print(path)


if __name__ == "__main__":
    main()
