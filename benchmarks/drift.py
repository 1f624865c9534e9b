"""The drift report's verdicts, measured: false alarms, power for each kind of change, R@1 without labels, cost.

    python benchmarks/drift.py [--quick]

Needs a finished `make repro` on Scenes. New clips of other seeds are drawn and decoded once. They and the parts of the
result are kept in CACHE, so a run that was stopped goes on; what other code measured is measured again. Each batch is
judged as `hcmi drift` judges it, with all columns. A batch "as delivered" is made of whole groups: a clip comes with
all the clips that differ from it in one word or in their order, which are 30 % of what Scenes delivers. Each 25
unchanged batches are compared with a draw of the tested clips of their own: with one draw of two, whose clips moved
more than usual, 2.7 % of 150 batches were reported as changed, and with the other 1.3 %. Of the other batches half are
compared with one draw and half with another.

For power, the clips of a kind replace as many unchanged ones as make R@1 fall by 10 points in the mean. `hurt` and
`changed` count only the batches whose R@1 did fall by 8 to 12. Harmless are the kinds and degrees in HARMLESS, and
batches of one topic. Batches without captions are judged by an estimate that has not seen their kind of damage. The
figures are given for each kind: a mean over kinds, or that of the strongest, hides one that is never found.

A history has tested clips of its own, and 50 batches that have not changed; all are drawn from the same new clips.
"""

import argparse
import copy
import hashlib
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import markdown, shipped, shipped_params, table, write_result
from drift_clips import BATCH, CACHE, FRAMES, ODD_SEEDS, PLAIN_SEEDS, damaged, groups_of, load_clips, pixels_of

from hcmi.config import Params, load_params
from hcmi.drift import (
    DAMAGES,
    BatchReport,
    Clips,
    Reference,
    Sample,
    Scores,
    conclude,
    estimate_recall,
    recall_at_1,
)
from hcmi.drift.history import most_by_chance, point_of, slow_changes
from hcmi.evaluate import wilson
from hcmi.index import round_trip
from hcmi.model import concatenate, encode_texts
from hcmi.progress import track
from hcmi.project.code import stage_code
from hcmi.shards import ShardReader, pick_frames
from hcmi.types import Clip, VideoTokens

HARMFUL = {**{kind: strongest for kind, (_, strongest) in DAMAGES.items()}, "frozen": 0.55}
HISTORIES, HISTORY, TESTED, SMALL = 40, 50, 110, 36     # histories; batches of each; clips tested, and of a batch
HARMLESS = {"brighter": 0.05, "darker": 0.1, "blurred": 0.7, "noisy": 0.03, "paler": 0.1}
TOPICS = ("red", "star", "fades", "slides", "then")         # words; a batch of one topic has captions with one of them


class Pool:
    """Clips with everything that a batch can be made of: tokens, captions, texts, pixel columns and groups."""

    def __init__(self, clips: list[Clip], frames: np.ndarray, reference: Reference):
        self.clips = clips
        self.videos = round_trip(encode(frames, reference), reference.precision)
        self.captions = [clip.captions[0] for clip in clips]
        self.texts = encode_texts(reference.model, self.captions)
        self.pixels, self.middle = pixels_of(clips, frames)
        self.groups = groups_of(self.captions)

    def sample(self, rows: np.ndarray, with_captions: bool = True) -> Sample:
        rows = np.asarray(rows)
        captioned = np.arange(len(rows)) if with_captions else np.arange(0)
        return Sample([self.clips[row] for row in rows], self.pixels.iloc[rows].reset_index(drop=True),
                      [self.middle[row] for row in rows], self.videos[rows], captioned,
                      [self.captions[row] for row in rows] if with_captions else [],
                      self.texts[rows] if with_captions else None)

    def delivered(self, generator: np.random.Generator, size: int = BATCH) -> np.ndarray:
        """Rows of whole groups, in random order, until there are `size`."""
        order = np.argsort(generator.random(self.groups.max() + 1)[self.groups], kind="stable")
        return order[:size]


def joined(lists: Iterable[list]) -> list:
    return list(chain.from_iterable(lists))


def together(samples: list[Sample]) -> Sample:
    """One sample of several, in which every clip or none has a caption."""
    first = samples[0]
    size = sum(map(len, samples))
    return Sample(joined(some.clips for some in samples),
                  pd.concat([some.pixels for some in samples], ignore_index=True),
                  joined(some.middle_frames for some in samples), concatenate([some.videos for some in samples]),
                  np.arange(size if first.captions else 0), joined(some.captions for some in samples),
                  concatenate([some.texts for some in samples]) if first.captions else None)


@torch.inference_mode()
def encode(frames: np.ndarray, reference: Reference) -> VideoTokens:
    parts = []
    for start in range(0, len(frames), 50):
        pixels = reference.model.processor.frames(torch.from_numpy(np.ascontiguousarray(frames[start:start + 50])))
        parts.append(reference.model.encode_videos(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool)))
    return concatenate(parts)


class World:
    """Two references with different draws of the tested clips, unchanged clips, and the judge."""

    def __init__(self, params: Params, plain_seeds: Iterable[int]):
        from hcmi.model import load_retriever

        self.params, self.rate, self.generator = params, params.drift.false_alarm_rate, np.random.default_rng(0)
        self.model, self.reader = load_retriever(shipped("models/hcmi")), ShardReader(shipped("data/shards"), "test")
        self.references = [self.reference(seed) for seed in (0, 1)]
        self.from_clips = [reference.from_clips for reference in self.references]
        self.drawn = [load_clips("plain", seed, params) for seed in plain_seeds]
        self.plain = self.pool(joined(clips for clips, _ in self.drawn),
                               np.concatenate([frames for _, frames in self.drawn]))

    def reference(self, seed: int) -> Reference:
        """A draw of the tested clips."""
        reference = Reference(self.model, shipped("export"), shipped("data/shards"), np.random.default_rng(seed))
        row_of = {clip.video_id: row for row, clip in enumerate(self.reader.clips)}
        rows = [row_of[clip.video_id] for clip in reference.sample.clips]
        frames = np.stack([self.reader.frames(row, pick_frames(int(self.reader.num_stored[row]), FRAMES))
                           for row in rows])
        pixels, _ = pixels_of(reference.sample.clips, frames)       # from the same frames as the pools'
        reference.sample = replace(reference.sample, pixels=pixels)
        reference.profile = reference._profile(reference.sample, reference.scores)
        assert reference.from_clips is not None, "need tested clips with captions"
        return reference

    def pool(self, clips: list[Clip], frames: np.ndarray) -> Pool:
        return Pool(clips, frames, self.references[0])

    def reference_of(self, rows: np.ndarray) -> Reference:
        """A reference whose tested clips are these of the unchanged ones."""
        reference = copy.copy(self.references[0])
        reference.sample = self.plain.sample(rows)
        reference.scores = reference._scores(reference.sample)
        reference.profile = reference._profile(reference.sample, reference.scores)
        return reference

    def forget(self, kind: str) -> None:
        """From now on batches without captions are judged by an estimate that has not seen this kind of damage."""
        for reference, full in zip(self.references, self.from_clips, strict=True):
            reference.from_clips = full.without(kind)

    def judge(self, sample: Sample, number: int = 0, reference: Reference | None = None) -> BatchReport:
        reference = reference or self.references[number % 2]
        report = BatchReport("made", sample=sample, num_found=len(sample))
        report.profile, scores = reference.profile_of(sample)
        conclude(report, scores, reference, self.rate, self.generator)
        return report

    def scores(self, pool: Pool, count: int) -> Scores:
        scores = self.references[0].profile_of(pool.sample(np.arange(min(len(pool.clips), count))))[1]
        assert scores is not None
        return scores


WORLD: World


def silent(sample: Sample) -> Sample:
    return replace(sample, captioned=np.arange(0), captions=[], texts=None)


def is_alarm(report: BatchReport) -> bool:
    return report.verdict in ("changed", "search hurt")


def is_hurt(report: BatchReport) -> bool:
    return report.verdict == "search hurt"


def mean(values: list) -> float:
    return float(np.mean(values)) if values else float("nan")


def interval(hits: list[bool]) -> list[float]:
    return wilson(sum(hits), len(hits)) if hits else [0.0, 1.0]


def kept(name: str, function: Callable, *arguments):
    """What the function gives; from CACHE when this code has measured this model with this name before."""
    path = CACHE / _code() / WORLD.references[0].model.fingerprint[:12] / f"{name.replace(' ', '_')}.pickle"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = function(*arguments)
        path.with_suffix(".part").write_bytes(pickle.dumps(found))
        path.with_suffix(".part").rename(path)
    return pickle.loads(path.read_bytes())


@cache
def _code() -> str:
    """A hash of what the stage `drift` and this script do."""
    scripts = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("drift.py", "drift_clips.py"))
    return hashlib.sha256(stage_code("drift").encode() + scripts).hexdigest()[:12]


def unchanged(numbers: range) -> list[tuple[dict, bool, bool, bool | None]]:
    """Entry of report.json, alarm, hurt and, for every third batch, hurt without captions; of one draw of tested clips.
    """
    WORLD.generator, found = np.random.default_rng(numbers.start), []
    reference = WORLD.reference(numbers.start)
    for number in numbers:
        sample = WORLD.plain.sample(WORLD.plain.delivered(WORLD.generator))
        report = WORLD.judge(sample, reference=reference)
        alone = is_hurt(WORLD.judge(silent(sample), reference=reference)) if number % 3 == 0 else None
        found.append((report.to_record(), is_alarm(report), is_hurt(report), alone))
    return found


def harmless(kind: str, count: int) -> list[tuple[bool, bool]]:
    """Of each batch of 100: hurt, and hurt without captions."""
    WORLD.generator = np.random.default_rng(len(kind))
    WORLD.forget(kind)
    pool = WORLD.plain if kind == "one topic" else WORLD.pool(
        WORLD.drawn[0][0], damaged(WORLD.drawn[0][1], kind, HARMLESS[kind]))
    found = []
    for number in range(count):
        rows = pool.delivered(WORLD.generator, len(pool.clips))
        if kind == "one topic":
            word = TOPICS[number % len(TOPICS)]
            rows = np.array([row for row in rows.tolist() if word in pool.captions[row].split()])
        sample = pool.sample(rows[:BATCH // 2])
        found.append((is_hurt(WORLD.judge(sample, number)), is_hurt(WORLD.judge(silent(sample), number))))
    return found


def harmful(kind: str, count: int) -> tuple[tuple, tuple, tuple]:
    """A row of the table; and twice (R@1 of the kind, estimate): by matching, and from the clips alone."""
    WORLD.generator = np.random.default_rng(len(kind))
    WORLD.forget(kind)
    if kind in ODD_SEEDS:
        odd = [load_clips(kind, seed, WORLD.params) for seed in ODD_SEEDS[kind]]
        pool = WORLD.pool(joined(some for some, _ in odd), np.concatenate([some for _, some in odd]))
    else:
        pool = WORLD.pool(WORLD.drawn[0][0], damaged(WORLD.drawn[0][1], kind, HARMFUL[kind]))
    recall, scores = recall_at_1(WORLD.scores(pool, 400)), WORLD.scores(pool, BATCH)
    share = min(1.0, 10 / max(recall_at_1(WORLD.scores(WORLD.plain, 400)) - recall, 1e-6))
    hurt, alarms, alone_hurt, alone = [], [], [], []
    for number in range(count):
        size = round(share * BATCH)
        some = pool.sample(WORLD.generator.permutation(len(pool.clips))[:size])
        sample = together([some, WORLD.plain.sample(WORLD.plain.delivered(WORLD.generator, BATCH - size))]) \
            if size < BATCH else some
        report = WORLD.judge(sample, number)
        if report.measured is None or not 8 <= -report.measured.change <= 12:
            continue
        without = WORLD.judge(silent(sample), number)
        hurt.append(is_hurt(report))
        alarms.append(is_alarm(report))
        alone_hurt.append(is_hurt(without))
        alone.append(is_alarm(without))
    row = (kind, round(recall, 1), round(100 * share), len(hurt), *map(mean, (hurt, alarms, alone_hurt, alone)))
    matched = recall_at_1(scores), estimate_recall(scores, WORLD.references[0].temperature)
    clips = Clips.of(pool.videos, WORLD.references[0].gallery)
    return row, matched, (recall, WORLD.references[0].from_clips.estimate(clips))


def is_quiet(number: int) -> bool:
    """Whether a history of batches that have not changed reports nothing."""
    WORLD.generator = np.random.default_rng(number)
    rows = WORLD.plain.delivered(WORLD.generator, TESTED + HISTORY * SMALL)
    reference = WORLD.reference_of(rows[:TESTED])
    points = []
    for place, some in enumerate(np.split(rows[TESTED:], HISTORY)):
        record = WORLD.judge(WORLD.plain.sample(some), reference=reference).to_record()
        points.append(point_of(record | {"batch": f"{number}-{place}", "reference": reference.card}, "2026-01-01"))
    alarms = sum(point.verdict not in ("ok", "cannot tell") for point in points)
    return not slow_changes(points) and alarms <= most_by_chance(points, WORLD.rate)


def measure_cost() -> tuple[list[float], float]:
    """CPU seconds, of five times, and MB of the report on 2,000 clips with a caption each, embeddings given and
    libraries loaded.
    """
    from hcmi.drift.page import render
    from hcmi.drift.stage import _add_evidently, _evidently_library

    reference, plain, seconds = WORLD.references[0], WORLD.plain, []
    _add_evidently(WORLD.judge(plain.sample(np.arange(50))), reference)         # loads Evidently
    for _ in range(5):
        rows = WORLD.generator.permutation(len(plain.clips))[:600]              # what the stage draws of 2,000
        started = time.process_time()
        report = WORLD.judge(plain.sample(np.sort(rows)))
        _add_evidently(report, reference)
        page = render({"batches": [1], "reference": {"clips": 600}, "false_alarm_rate": 0.01}, [report],
                      reference.profile, {}, _evidently_library([report]), "data/incoming")
        seconds.append(time.process_time() - started)
    return seconds, len(page) / 1e6


def errors_of(pairs: list[tuple]) -> dict[str, float]:
    """Of estimates of R@1 where the true value lies between 10 and 90."""
    between = [(found.recall - truth, found.low <= truth <= found.high, found.high - found.low)
               for truth, found in pairs if 10 <= truth <= 90]
    errors, holds, widths = (np.array(values, float) for values in zip(*between, strict=True))
    return {"mae": float(np.abs(errors).mean()), "bias": float(errors.mean()), "coverage": float(holds.mean()),
            "width": float(widths.mean())}


def power_of(rows: Iterable[tuple]) -> dict[str, float | None]:
    """The figures of each kind whose R@1 fell by 8 to 12 points in some batches, and the least of each figure."""
    rows = [row for row in rows if row[3]]
    found: dict[str, float | None] = {"fallen_batches": sum(row[3] for row in rows)}
    for place, name in enumerate(("hurt", "changed", "hurt_no_captions", "changed_no_captions"), 4):
        found |= {f"{name}_{row[0]}": row[place] for row in rows}
        found[f"min_power_{name}"] = min((row[place] for row in rows), default=None)
    return found | {f"batches_{row[0]}": row[3] for row in rows}


def coverage_of(records: list[dict]) -> dict[str, float]:
    """Share of the intervals of R@1 that hold the mean of all batches, and their width."""
    found = [record["severity"] for record in records]
    truth = mean([some["recall_at_1"] for some in found])
    return {"recall_interval_coverage": mean([some["interval"][0] <= truth <= some["interval"][1] for some in found]),
            "recall_interval_width": mean([some["interval"][1] - some["interval"][0] for some in found])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer batches")
    quick = parser.parse_args().quick
    global WORLD
    WORLD = World(load_params(shipped_params()), PLAIN_SEEDS)
    count, histories = (24, 2) if quick else (300, HISTORIES)
    kinds = ["brighter", "noisy", "frozen"] if quick else [*HARMFUL, *ODD_SEEDS]
    size = "quick" if quick else "full"
    seconds, megabytes = measure_cost()
    reports = joined(kept(f"{size}_unchanged_{first}", unchanged, range(first, min(first + 25, count)))
                     for first in track(range(0, count, 25), "unchanged batches", unit="part"))
    rows, matched, from_clips = zip(*(kept(f"{size}_harmful_{kind}", harmful, kind, 3 if quick else 16)
                                      for kind in track(kinds, "harmful kinds", unit="kind")), strict=True)
    spared = {kind: kept(f"{size}_harmless_{kind}", harmless, kind, 2 if quick else 10)
              for kind in track((*HARMLESS, "one topic"), "harmless kinds", unit="kind")}
    quiet = [kept(f"history_{number}", is_quiet, number)
             for number in track(range(histories), "histories", unit="history")]
    records, alarms, hurt, alone = (list(column) for column in zip(*reports, strict=True))
    print(table(("kind", "R@1 of the kind", "share, %", "batches", "hurt", "changed", "hurt without captions",
                 "changed without captions"), rows))
    print(table(("harmless kind", "batches", "hurt", "hurt without captions"), [
        (kind, len(found), mean([with_ for with_, _ in found]), mean([without for _, without in found]))
        for kind, found in spared.items()]))
    print(table(("kind", "R@1", "from the clips alone", "low", "high"), [
        (kind, truth, found.recall, found.low, found.high)
        for kind, (truth, found) in zip(kinds, from_clips, strict=True)]))
    alone = [value for value in alone if value is not None]
    spared_hurt, spared_alone = (joined([[pair[side] for pair in found] for found in spared.values()])
                                 for side in (0, 1))
    loud = [not one for one in quiet]
    figures: dict = {
        "batches": len(alarms), "false_alarm_rate": mean(alarms), "false_alarm_rate_ci95": interval(alarms),
        "unchanged_called_hurt": mean(hurt), "unchanged_called_hurt_no_captions": mean(alone),
        "harmless_batches": len(spared_hurt),
        "harmless_called_hurt": mean(spared_hurt), "harmless_called_hurt_ci95": interval(spared_hurt),
        "harmless_called_hurt_no_captions": mean(spared_alone),
        "harmless_called_hurt_no_captions_ci95": interval(spared_alone),
        "histories": len(loud), "history_false_alarm_rate": mean(loud), "history_false_alarm_rate_ci95": interval(loud)}
    figures |= coverage_of(records) | power_of(rows)
    figures |= {f"label_free_{name}": value for name, value in errors_of(list(matched)).items()}
    figures |= {f"from_clips_{name}": value for name, value in errors_of(list(from_clips)).items()}
    figures |= {"report_cpu_seconds": round(float(np.median(seconds)), 1),
                "report_cpu_seconds_least": round(min(seconds), 1), "html_mb": round(megabytes, 2)}
    print(markdown(("figure", "measured"), figures.items()))
    write_result("drift", figures, quick=quick)


if __name__ == "__main__":
    main()
