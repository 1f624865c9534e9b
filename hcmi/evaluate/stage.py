"""Stage `evaluate`: how well the model finds held-out clips by their captions, and captions by their clips.

It writes `metrics/evaluate.json` (raw figures first, then post-processed ones), `headline.json` beside it with a few of
these figures, and `plots/`: tables, pictures, and the files `ranks.parquet` and `run.json`, with which
`hcmi evaluate --compare` pairs two runs query by query.
"""

import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hcmi.config import Params
from hcmi.encode import EncodedSplit, captions_of, count_captioned, encode_split, require_captions, save_split
from hcmi.errors import ConfigError
from hcmi.evaluate.plots import write_plots
from hcmi.evaluate.postprocess import FEWEST_CLIPS
from hcmi.evaluate.split_metrics import SplitMetrics, chance, choose_scales, post_processed, shared_captions
from hcmi.files import ask_to_write, atomic_dir, atomic_file, project_path
from hcmi.model import (
    HcmiModel,
    check_square,
    encode_precision,
    encode_texts,
    is_trained,
    load_retriever,
    score,
    warn_of_foreign,
)
from hcmi.runtime import pick_device, tune_allocator
from hcmi.shards import ShardReader
from hcmi.types import TextTokens

BANK_SEED = 0               # of the choice of training captions: the same in all runs that are compared
SELECTION_SPLIT = "val"     # chooses the best epoch and the level weights (stage `train`), and here the scales
HEADLINE_FILE = "headline.json"
HEADLINE = {"t2v": ("R@1", "R@5", "R@10"), "v2t": ("R@1",)}     # more would not fit 100 columns of `dvc exp show`


def evaluate(*, model_dir: str | Path, shards_dir: str | Path, out_json: str | Path, plots_dir: str | Path,
             params: Params, encoded_file: str | Path | None = None) -> dict:
    """Measure the model on `evaluate.split`. Returns the report that it writes to `out_json`.

    A checkpoint as `model_dir` gives the baseline that training must beat.
    `encoded_file`: where the tokens of the split are kept for `export`; None keeps none.
    Each output appears as a whole or not at all.
    Raises: ModelError when the model folder does not load; DataError when the split is empty, has no captions, or the
    model gives NaN; ConfigError when `plots_dir`, which is replaced, would hold another output; MachineError when an
    output cannot be written. The last two are checked before the work.
    """
    if Path(out_json).name == HEADLINE_FILE:
        raise ConfigError(f"{out_json}: need another name, because {HEADLINE_FILE} is written beside it. Name it "
                          f"evaluate.json.")
    for path in (out_json, *([encoded_file] if encoded_file else [])):
        if Path(path).resolve().is_relative_to(Path(plots_dir).resolve()):
            raise ConfigError(f"{path}: need a place outside {plots_dir}, which is replaced, got one inside. Write "
                              f"{Path(path).name} beside that folder.")
    ask_to_write(folders={plots_dir: "run.json"}, files=[out_json, *([encoded_file] if encoded_file else [])])
    tune_allocator()
    model = load_retriever(model_dir, pick_device("auto"))
    reader = ShardReader(shards_dir, params.evaluate.split)
    check_square(model.processor.square, reader.square, shards_dir)
    require_captions(reader)
    if model.config.backbone != "scratch":
        warn_of_foreign(model.processor.tokenizer, captions_of(reader), model.config.backbone)
    encoded = encode_split(model, reader, params.evaluate.batch_size, processes=params.train.num_processes,
                           model_dir=model_dir)
    if encoded_file:
        save_split(encoded, encoded_file, model, reader)
    levels = score(model, encoded.texts, encoded.videos)
    sims_QV = model.combine(levels).numpy()
    bank = bank_texts(model, shards_dir, params.evaluate.bank_size)
    split = SplitMetrics(encoded.caption_video, len(reader), params.evaluate.bootstrap_samples)
    protocol = protocol_card(model, model_dir, reader, encoded, params)
    report = {"protocol": protocol, "raw": split.both(sims_QV), "chance": chance(split),
              "levels": {name: split.both(level_QV.numpy()) for name, level_QV in levels.items()},
              "post": post_processed(split, sims_QV / sum(model.level_weights.values()),
                                     None if bank is None else mean_scores(model, bank, encoded),
                                     validation_scales(model, shards_dir, bank, params))}
    if shared := shared_captions(split, encoded.captions, sims_QV):
        report["shared_captions"] = shared
    if len(encoded.captions) > len(split.captioned):
        report["v2t_by_clip"] = split.v2t_summary(split.v2t_ranks_by_clip(sims_QV.T))
    with atomic_dir(plots_dir) as folder:
        write_plots(folder, reader, encoded, sims_QV, {"t2v": split.t2v_ranks(sims_QV),
                                                       "v2t": split.v2t_ranks(sims_QV.T)})
        _write_json(folder / "run.json", run_card(model, shards_dir, protocol, params))
        with atomic_file(out_json) as path:
            _write_json(path, report)
        with atomic_file(Path(out_json).with_name(HEADLINE_FILE)) as path:
            _write_json(path, headline(report))
    return report


def headline(report: dict) -> dict:
    """The few raw figures that DVC shows for each experiment and compares."""
    return {direction: {name: report["raw"][direction][name] for name in names}
            for direction, names in HEADLINE.items()}


def report_text(report: dict) -> str:
    """The figures as text: raw, chance, each level, after post-processing; at the end what to do next."""
    card = report["protocol"]
    kind = "" if card["trained"] else f", zero-shot of {card['backbone']}"
    lines = [f"{card['dataset']}, split {card['split']}: {card['num_texts']} captions, {card['num_videos']} clips, "
             f"head {card['head']}, model {card['model']}{kind}",
             f"{'':36}{'R@1':>7}{'95 % interval':>16}{'R@5':>7}{'R@10':>7}{'MdR':>7}{'MnR':>8}"]
    rows = {"raw": report["raw"], **{f"level {name}": entry for name, entry in report["levels"].items()}}
    if "shared_captions" in report:
        rows["any clip with the same caption"] = report["shared_captions"]
    if "v2t_by_clip" in report:
        rows["each clip by its best caption"] = {"v2t": report["v2t_by_clip"]}
    for name, entry in report["post"].items():
        rows[f"{name}, {'deployable' if entry['deployable'] else 'sees all queries'}"] = entry
    for name, entry in rows.items():
        for direction in ("t2v", "v2t"):
            if figures := entry.get(direction):
                low, high = figures["R@1_ci95"]
                lines.append(f"{direction}  {name:31}{figures['R@1']:7.1f}{f'{low:.1f} to {high:.1f}':>16}"
                             f"{figures['R@5']:7.1f}{figures['R@10']:7.1f}{figures['MdR']:7.1f}{figures['MnR']:8.2f}")
        if name == "raw":
            lines += [f"{direction}  {'by chance':31}{figures['R@1']:7.1f}{'':16}{figures['R@5']:7.1f}"
                      f"{figures['R@10']:7.1f}" for direction, figures in report["chance"].items()]
    return "\n".join([*lines, next_step(report)])


def next_step(report: dict) -> str:
    """One line: whether this is better than chance, and what to do with it."""
    low, _ = report["raw"]["t2v"]["R@1_ci95"]
    if low <= report["chance"]["t2v"]["R@1"]:
        other = ("train on a pretrained checkpoint: presets/laptop.yaml" if report["protocol"]["backbone"] == "scratch"
                 else "search with another checkpoint")
        return f"next: these clips do not tell the model from chance. Caption more videos, or {other}."
    if not report["protocol"]["trained"]:
        return "next: this is what training has to beat. `hcmi train --plan` says what it would take."
    return "next: `hcmi export`, then `hcmi search QUERY`."


def protocol_card(model: HcmiModel, model_dir: str | Path, reader: ShardReader, encoded: EncodedSplit, params: Params
                  ) -> dict:
    """The conditions of a measurement. Figures can be compared only if these are equal."""
    per_video = [len(clip.captions) for clip in reader.clips]
    uneven = min(per_video) != max(per_video)
    return {"dataset": params.dataset.name, "split": params.evaluate.split, "num_videos": len(reader),
            "num_texts": len(encoded.captions),
            "captions_per_video": round(float(np.mean(per_video)), 2) if uneven else per_video[0],
            "split_sha256": split_sha256(reader), "videos_sha256": videos_sha256(reader),
            "selection_split": SELECTION_SPLIT,
            "decoder": "+".join(sorted({stored.decoder for stored in reader.stored})),
            "precision": encode_precision(model.device), "seed": params.train.seed,
            "head": model.config.head, "backbone": model.config.backbone,
            "model": project_path(model_dir), "trained": is_trained(model)}


def split_sha256(reader: ShardReader) -> str:
    """Hash of the split's video ids and captions, which does not depend on their order in the shards."""
    rows = sorted([clip.video_id, *clip.captions] for clip in reader.clips)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def videos_sha256(reader: ShardReader) -> str:
    """Hash of the split's video ids with the bytes of their files and the part of each that is shown."""
    rows = sorted([clip.video_id, *clip.content_key] for clip in reader.clips)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def bank_texts(model: HcmiModel, shards_dir: str | Path, size: int) -> TextTokens | None:
    """`size` training captions, encoded; None when there are none."""
    if not any(Path(shards_dir).glob("train-*.tar")):
        return None
    captions = sorted({caption for clip in ShardReader(shards_dir, "train").clips for caption in clip.captions})
    if not captions:
        return None
    chosen = np.random.default_rng(BANK_SEED).permutation(len(captions))[:size]
    return encode_texts(model, [captions[row] for row in sorted(chosen)])


def mean_scores(model: HcmiModel, texts: TextTokens, encoded: EncodedSplit) -> NDArray:
    """Means of the levels [N, V] of texts with the clips of a split."""
    return model.combine(score(model, texts, encoded.videos)).numpy() / sum(model.level_weights.values())


def validation_scales(model: HcmiModel, shards_dir: str | Path, bank: TextTokens | None,
                      params: Params) -> dict[str, dict[str, float]] | None:
    """Method -> direction -> scale, chosen on the validation split.

    None when validation is the split that is measured, or has fewer than `FEWEST_CLIPS` captioned clips.
    """
    if params.evaluate.split == SELECTION_SPLIT or not any(Path(shards_dir).glob(f"{SELECTION_SPLIT}-*.tar")):
        return None
    reader = ShardReader(shards_dir, SELECTION_SPLIT)
    if count_captioned(reader) < FEWEST_CLIPS:
        return None
    encoded = encode_split(model, reader, params.evaluate.batch_size)
    return choose_scales(encoded.caption_video, mean_scores(model, encoded.texts, encoded),
                         None if bank is None else mean_scores(model, bank, encoded))


def run_card(model: HcmiModel, shards_dir: str | Path, protocol: dict, params: Params) -> dict:
    """What a comparison of two runs checks for differences: parameters, model, data, code and versions."""
    code = {name: hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
            for name, module in sorted(sys.modules.items())
            if name.startswith("hcmi.") and name != "hcmi.cli" and getattr(module, "__file__", None)}
    index = Path(shards_dir, "index.parquet").read_bytes()
    return {"config": params.model_dump(mode="json", include={"dataset", "shards", "model", "train", "evaluate"}),
            "model": {"fingerprint": model.fingerprint, "level_weights": dict(model.level_weights)},
            "data": {"split_sha256": protocol["split_sha256"], "shards_sha256": hashlib.sha256(index).hexdigest()},
            "code": code,
            "versions": {"python": platform.python_version(),
                         **{name: version(name) for name in ("torch", "transformers", "numpy")}}}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
