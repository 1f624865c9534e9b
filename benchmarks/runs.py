"""Training runs that several benchmarks share: make Scenes once, train a configuration, measure it, remember it.

Every finished run is a line of `results/runs.jsonl`: what was trained, on which machine, and the figures of each
gallery. A run with the same parameters, data, device and code is never made twice, and one that was stopped continues
from its last checkpoint, so an interrupted benchmark is started again with the same command. On two cores, two runs at
once with one thread each are quicker than one after the other.
"""

import argparse
import ast
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from common import RESULTS, machine, shipped_params, versions

from hcmi.config import Params, ScenesConfig, load_params
from hcmi.scenes import LONG, STANDARD

Name = TypeVar("Name")
ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".bench" / "scenes"
RUNS = RESULTS / "runs.jsonl"
QUICK = STANDARD.model_copy(update={"num_train": 1800, "num_val": 200})
# What can be trained on. Galleries are never trained on, whatever the data. With noise all captions describe the
# whole clip, because label denoising takes a clip's captions to mean the same.
DATA = {"standard": STANDARD, "version_2": STANDARD.model_copy(update={"version": 2}), "long": LONG, "quick": QUICK,
        **{f"noise_{rate}": STANDARD.model_copy(update={"duplicate_rate": rate / 100, "part_captions": 0,
                                               "event_captions": 0, "brief_captions": 0})
           for rate in (0, 20, 40)}}
# Those named val/ are of the split val, and are there to choose settings on.
_USUAL = ("main", "event", "brief", "attribute", "order", "count", "paraphrase")
_CHOICE = ("val/main", "val/event", "val/order")
GALLERIES = {**dict.fromkeys(DATA, _USUAL), "standard": (*_USUAL, "crowd", *_CHOICE), "version_2": (*_USUAL, "number"),
             "long": ("long",), "quick": ("main", "event", "attribute", "order")}
# These galleries ask other things of the same clips.
SAME_FILMS = {"event": "main", "brief": "main", "val/event": "val/main"}
# Galleries whose clips have several events, for each of which the moment is asked. No training sees `standard`'s.
MOMENTS = {"standard": ("main", "val/main")}
# Beyond params.yaml: clips of up to 6 events need more frames and words, and as many clips and phrases more.
LONG_PARAMS = {"shards.num_frames": 48, "model.num_frames": 32, "model.num_words": 96, "model.num_clips": 8,
               "model.num_phrases": 16}
# Parameters that decide where and how fast a run is computed, and not what it gives.
ELSEWHERE = ("device", "num_workers", "num_processes", "micro_batch", "compile", "activation_checkpointing")
MSE_OFF = {"train.loss.margin_weight": 0.0, "train.loss.marginal_group": 1}     # marginal sample enhancement
BALANCE_OFF = {"train.loss.balance_weight": 0.0}
# The code that decides what a run gives, and what it is trained and measured on. Comments and docstrings do not. Nor do
# the modules that only drive the steps, load checkpoints of other projects or encode in batches: tests hold that they
# change no result.
CODE = ("hcmi/shards/sampler.py",
        *(f"hcmi/train/{name}.py" for name in ("denoising", "loss", "objective", "optimizers")),
        *(f"hcmi/model/{name}.py"
          for name in ("aggregate", "heads", "interaction", "layers", "modeling", "peers", "stem", "towers")))
DATA_CODE = tuple(f"hcmi/scenes/{name}.py" for name in ("captions", "galleries", "render", "sampling", "vocabulary"))


@dataclass(frozen=True)
class Spec:
    """One run: parameters of params.yaml by their dotted names, on one of `DATA`, with one seed."""

    data: str = "standard"
    seed: int = 0
    params: dict[str, object] = field(default_factory=dict)

    def resolved(self) -> Params:
        base = load_params(shipped_params()).model_dump()
        changes = {**(LONG_PARAMS if self.data == "long" else {}), **self.params, "train.seed": self.seed}
        for name, value in changes.items():
            *path, key = name.split(".")
            section = base
            for part in path:
                section = section[part]
            assert key in section, f"params.yaml has no {name}"
            section[key] = value
        return Params.model_validate(base)

    def key(self, device: str) -> str:
        params = self.resolved()
        unused = {*ELSEWHERE, *(("loss",) if params.model.head != "hcmi" else ())}
        parts = [self.folder().name, params.model.model_dump(), params.train.model_dump(exclude=unused),
                 device.partition(":")[0], code_identity(CODE)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, gallery: str | None = None) -> Path:
        """The folder of the videos and shards that this run is trained on, or measured on; other data have another."""
        gallery = SAME_FILMS.get(gallery or "", gallery)
        shards = self.resolved().shards.model_dump(include={"size", "num_frames", "quality"})
        parts = [DATA[self.data].version if gallery else DATA[self.data].model_dump(), shards, code_identity(DATA_CODE)]
        identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
        return WORK / f"{f'gallery_{gallery}'.replace('/', '_') if gallery else self.data}-{identity}"


def _moments(gallery: str) -> str:
    """The name of a figure of moments among the R@1 of a run: `moments`, or `val/moments`."""
    return gallery.replace("main", "moments")


def split_of(gallery: str) -> tuple[str, str]:
    """The name and the split of one of `GALLERIES`."""
    split, _, name = gallery.rpartition("/")
    return name, split or "test"


def code_identity(names: Sequence[str]) -> str:
    """Hash of what the code does: of its syntax trees without docstrings."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(_behaviour((ROOT / name).read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


@cache      # every run of a benchmark asks for the same files
def _behaviour(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body.pop(0)
    return ast.dump(tree).replace(", type_params=[]", "")   # Python 3.12 has it, 3.11 has not: one key for both


def remembered() -> dict[str, dict]:
    """Key -> record of every finished run."""
    if not RUNS.exists():
        return {}
    records = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    return {record["key"]: record for record in records}


def records_of(wanted: dict[Any, list[Spec]], options: argparse.Namespace) -> dict[Any, list[dict]]:
    """Name -> the records of its specs, made where they are missing, the first seed of each before the second; with
    --so-far those that were run, on any device, and no name without any."""
    if not options.so_far:
        run_all(sorted(chain(*wanted.values()), key=lambda spec: spec.seed), options.device, options.jobs)
    devices = ("cpu", "cuda") if options.so_far else (options.device,)
    done = remembered()
    found = {name: [done[key] for spec in specs for device in devices if (key := spec.key(device)) in done]
             for name, specs in wanted.items()}
    return {name: records for name, records in found.items() if records}


def run_all(specs: Sequence[Spec], device: str, jobs: int) -> list[dict]:
    """The record of each spec, in order; what is not remembered yet is run, `jobs` at a time."""
    keys = [spec.key(device) for spec in specs]
    done = remembered()
    missing = {key: spec for key, spec in zip(keys, specs, strict=True) if key not in done}
    if missing:
        make_data({spec.data for spec in missing.values()})
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_run_process, spec, device, jobs): key for key, spec in missing.items()}
        for number, finished in enumerate(as_completed(running), 1):
            if finished.exception() is not None:
                pool.shutdown(wait=False, cancel_futures=True)      # the others would not be remembered
            record = finished.result()
            done[record["key"]] = record
            with open(RUNS, "a", encoding="utf-8") as file:     # one write of one line: whole or not at all
                file.write(json.dumps(record) + "\n")
            print(f"{number} of {len(missing)}: {record['data']} seed {record['seed']} {record['params']} "
                  f"{record['r1']} in {record['cpu_minutes'] or 'more than one go'} CPU minutes", file=sys.stderr,
                  flush=True)
    return [done[key] for key in keys]


def make_data(names: Iterable[str]) -> None:
    """Videos and shards of the training sets and their galleries, unless they are there."""
    from hcmi.dataset import write_manifest
    from hcmi.scenes import write_gallery, write_scenes
    from hcmi.shards import write_shards

    def shards(folder: Path, make, config) -> None:
        if not (folder / "shards" / "index.parquet").exists():
            write_manifest(make(folder / "films"), folder / "manifest.parquet")
            write_shards(manifest_path=folder / "manifest.parquet", out_dir=folder / "shards", config=config)

    RESULTS.mkdir(exist_ok=True)
    for name in sorted(names):
        spec = Spec(name)
        config, params = DATA[name].model_copy(update={"num_test": 1}), spec.resolved()     # tests are the galleries
        shards(spec.folder(), lambda folder, config=config: write_scenes(config, 0, folder), params.shards)
        for gallery in GALLERIES[name]:
            name, split = split_of(gallery)
            shards(spec.folder(gallery), partial(write_gallery, name, config=config, split=split), params.shards)


def _run_process(spec: Spec, device: str, jobs: int) -> dict:
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    done = subprocess.run([sys.executable, str(Path(__file__)), json.dumps(asdict(spec)), "--device", device],
                          env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{spec}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(spec: Spec, device: str) -> dict:
    """Train and measure, in this process."""
    from hcmi.model import load_retriever
    from hcmi.runtime import pick_device, pick_precision
    from hcmi.train import train

    started = time.monotonic()
    key = spec.key(device)
    params = spec.resolved()
    folder = ROOT / ".bench" / "runs" / key
    continued = (folder / "model").exists() or any(folder.glob("checkpoints/*/step_*"))
    config = params.train.model_copy(update={"device": device, "num_workers": 0, "micro_batch": 0})
    if not (folder / "model").exists():     # if it is there, the run was stopped before it was measured
        train(shards_dir=spec.folder() / "shards", model_dir=folder / "model", metrics_dir=folder / "metrics",
              checkpoint_dir=folder / "checkpoints", model_config=params.model, config=config)
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    model = load_retriever(folder / "model", device)
    figures = measure(model, {name: spec.folder(name) / "shards" for name in GALLERIES[spec.data]}, DATA[spec.data])
    for gallery in MOMENTS.get(spec.data, ()):
        figures["r1"][_moments(gallery)] = moments_r1(model, spec.folder(gallery), split_of(gallery)[1])
    logged = curves(folder / "metrics")
    return {"key": key, "data": spec.data, "seed": spec.seed, "params": spec.params, "device": device,
            **figures, "val_r1": round(max(logged["val/R@1"]), 2),
            "level_weights": model.level_weights, "curves": logged,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "cpu_minutes": round((cpu.ru_utime + cpu.ru_stime) / 60, 2) if not continued else None,
            "wall_minutes": round((time.monotonic() - started) / 60, 2),
            "precision": pick_precision(config.precision, pick_device(device)),
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "machine": machine(), "versions": versions()}


def measure(model: Any, shards: Mapping[str, Path], scenes: ScenesConfig = STANDARD) -> dict[str, dict]:
    """Figure -> gallery -> its value in per cent; for `levels_r1`, R@1 by the scores of each level alone.

    `shards`: gallery -> the folder of its shards; each folder is encoded once. `scenes` has the galleries'
    version. Where one answer is right, mAP is the mean of 1 / rank.
    """
    from hcmi.evaluate import average_precision, ranks
    from hcmi.model import encode_texts, encode_videos, score
    from hcmi.scenes import gallery_queries
    from hcmi.shards import ShardReader, eval_batches

    figures: dict[str, dict] = {name: {} for name in ("r1", "r5", "r10", "map", "levels_r1")}
    encoded: dict[Path, Any] = {}
    for gallery, folder in shards.items():
        name, split = split_of(gallery)
        reader = ShardReader(folder, split)
        if folder not in encoded:
            encoded[folder] = encode_videos(model, eval_batches(reader, 64, model.config.num_frames), len(reader))
        queries = gallery_queries(name, scenes, split)
        rows = {clip.video_id: row for row, clip in enumerate(reader.clips)}
        right = [[rows[video_id] for video_id in query.right] for query in queries]
        texts = encode_texts(model, [query.text for query in queries])
        scores = score(model, texts, encoded[folder])
        sims_QV = model.combine(scores).numpy()
        found = ranks(sims_QV, right)
        for k in (1, 5, 10):
            figures[f"r{k}"][gallery] = _per_cent(found.hits_at(k))
        figures["map"][gallery] = _per_cent(average_precision(sims_QV, right))
        figures["levels_r1"][gallery] = {level: _per_cent(ranks(level_sims_QV.numpy(), right).hits_at(1))
                                         for level, level_sims_QV in scores.items()}
    return figures


def moments_r1(model: Any, folder: Path, split: str) -> float:
    """R@1 at IoU 0.5 of the moments of single events, in per cent, where the clip is given (moments.py)."""
    import moments

    from hcmi.shards import ShardReader

    shown = moments.shown_events(folder / "films" / "annotation.jsonl", split)
    return round(float(np.mean(moments.measure(model, ShardReader(folder / "shards", split), shown)[0]["r1_iou50"])), 2)


def _per_cent(values: np.ndarray) -> float:
    return round(float(100 * values.mean()), 2)


def curves(metrics_dir: Path) -> dict[str, list[float]]:
    """Figure -> its value each epoch, as training logged them."""
    plots = metrics_dir / "plots" / "metrics"
    return {str(path.relative_to(plots).with_suffix("")): [round(float(line.split("\t")[-1]), 4) for line in
            path.read_text(encoding="utf-8").splitlines()[1:]] for path in sorted(plots.rglob("*.tsv"))}


def interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean over runs, by Student's t; None for less than three: that of two is 13 times as wide as
    they are apart."""
    from scipy.stats import t

    array = np.asarray(values, float)
    if len(array) < 3:
        return None
    half = t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return [float(array.mean() - half), float(array.mean() + half)]


def measured_on(gallery: str, records: Mapping[Name, Sequence[dict]]) -> dict[Name, list[dict]]:
    """Name -> its runs that were measured on the gallery; names without such a run are left out."""
    found = {name: [run for run in runs if gallery in run["r1"]] for name, runs in records.items()}
    return {name: runs for name, runs in found.items() if runs}


def mean_of(runs: Sequence[dict], figure: str, gallery: str) -> float:
    return float(np.mean([run[figure][gallery] for run in runs]))


def mean_r1(runs: Sequence[dict], gallery: str) -> float:
    return mean_of(runs, "r1", gallery)


def paired(ours: Iterable[dict], others: Iterable[dict], gallery: str) -> list[float]:
    """R@1 of `ours` minus that of `others` on a gallery, by seed and device, where both were run."""
    theirs = {(record["device"], record["seed"]): record["r1"][gallery] for record in others}
    ours = sorted(ours, key=lambda record: (record["device"], record["seed"]))
    return [record["r1"][gallery] - theirs[place] for record in ours
            if (place := (record["device"], record["seed"])) in theirs]


def gain(ours: Sequence[dict], others: Sequence[dict], gallery: str) -> tuple[float | None, list[float] | None]:
    """Mean and interval of R@1 of `ours` minus `others`, paired; nothing for runs against themselves."""
    found = paired(ours, others, gallery) if ours is not others else []
    return float(np.mean(found)) if found else None, interval(found)


def arguments(doc: str | None, quick: str, seeds: int) -> argparse.Namespace:
    """The options of a benchmark of training runs; `seeds` is the default of --seeds; with --quick it is 2."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--seeds", type=int, help=f"default {seeds}, with --quick 2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--so-far", action="store_true", help="no new runs: a table of those there are, any device")
    options = parser.parse_args()
    options.seeds = options.seeds or (2 if options.quick else seeds)
    return options


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One run; prints its record as JSON.")
    parser.add_argument("spec")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(json.dumps(run(Spec(**json.loads(options.spec)), options.device)))
