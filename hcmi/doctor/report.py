"""The report of `hcmi doctor`: what a long run over a folder of videos would meet, estimated from a sample of them."""

import os
import random
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from hcmi.config import DatasetConfig, Params, ShardsConfig
from hcmi.dataset import WRITE_VIDEOS, expected_splits, videos_folder
from hcmi.doctor.examine import Captions, Listing, Sample, check_tars, examine_sample, other_table, read_videos
from hcmi.doctor.next_steps import is_of_project, of_made_videos, with_videos, without_videos
from hcmi.doctor.problems import describe_machine, folder_problems, training_problems
from hcmi.errors import DataError, shown
from hcmi.evaluate import wilson
from hcmi.model import cut_note
from hcmi.train import RunData, learns_little
from hcmi.video import is_text, likely_names
from hcmi.wording import plural

TAR_BYTES = 768         # of a tar member without its content: header, and padding on average
RECORD_BYTES = 1500     # of a clip's JSON and its row of the index
WORST = 10
# How a folder is looked at where there is no params.yaml: as presets/laptop.yaml has it.
NO_SHARDS = ShardsConfig.model_construct(size=224, num_frames=16, quality=90, max_skip_fraction=0.1,
                                         decode_timeout_s=20.0, num_workers=0)
NO_DATASET = DatasetConfig.model_construct(name="folder", path="")


def doctor(folder: str | Path, params: Params | None, sample: int = 64, seconds: float = 20.0,
           seed: int = 0) -> dict[str, Any]:
    """Counts, durations, caption lengths, projected disk space, time and failures, the worst files, and problems.

    `folder` is in the `folder` format, a plain folder of videos, or in the format of the published data set that
    `params.dataset` names. At most `sample` files are decoded, and none is begun after `seconds`. `problems` lists what
    would end or spoil a run; it is empty when all is well. `next` are commands to go on with. Without `params`, in a
    folder where there is no project yet, training is not asked about. Of a folder that names no video, and of the
    project's own data set where the pipeline makes or extracts the videos, there are only `problems` and `next`.

    Raises: DataError when the folder, its captions or the path of tars are wrong, or none of the named videos is there.
    """
    folder = Path(folder)
    shards, dataset = (params.shards, params.dataset) if params else (NO_SHARDS, NO_DATASET)
    if dataset.name in WRITE_VIDEOS and is_of_project(folder, params):      # the path may be a URL, or unused
        if dataset.name == "webdataset":
            check_tars(dataset.path)
        return of_made_videos(dataset)
    listing = read_videos(folder, dataset)
    videos, captions = listing.videos, listing.captions
    if not videos:
        return without_videos(folder, params)
    present = sorted(name for name, path in videos.items() if os.path.exists(path) and name not in listing.outside)
    missing = sorted(set(videos) - set(present) - listing.outside)
    likely = likely_names(videos_folder(folder))
    alike = {name: file for name in missing if (file := likely(name))}
    if not present:
        raise DataError(f"{folder}: need at least one video file, got {plural(len(missing), 'name')} without a file"
                        f"{' in this folder, to which links lead' if listing.outside else ''}{_such_as(alike)}. "
                        f"Correct the folder or the names in its captions.")
    chosen = random.Random(seed).sample(present, min(sample, len(present)))
    examined = examine_sample({name: videos[name] for name in chosen}, shards, seconds)
    num_clips = sum(len(captions[name]) or 1 for name in present)
    report: dict[str, Any] = {
        "videos": {"files": len(present), "missing": len(missing), "clips": num_clips, "sampled": examined.size},
        "durations_s": _spread([one.duration_s for one in examined.good.values()]),
        "captions": _caption_figures(captions, params),
        "projected": _project(examined, num_clips),
        "reasons": dict(Counter(error.reason for error in examined.bad.values())),
        "decoders": dict(Counter(one.decoder for one in examined.good.values())),
        "worst": _worst_files(missing, alike, listing.outside, examined),
        "machine": describe_machine(), "memory_needed_gb": None, "notes": _notes(examined, missing, alike)}
    report["problems"] = folder_problems(report, videos, shards, listing.outside,
                                         None if report["captions"] else other_table(folder))
    little = False
    if params and report["captions"]:
        readable = [name for name in present if name not in examined.bad]
        data = _run_data(listing, readable, len(missing), params)
        problems, found = training_problems(data, params)
        report["problems"] += problems
        report["memory_needed_gb"] = None if found.memory is None else round(found.memory.total / 1e9, 2)
        little = learns_little(data, params.model)
    report["next"] = with_videos(folder, report["captions"] is not None, params, little)
    return report


def _run_data(listing: Listing, readable: list[str], missing: int, params: Params) -> RunData:
    """What training will find. `readable`: the files that are there, without those that are known to be broken. No clip
    of such a folder has tags.
    """
    usable = [name for name in readable if is_text(name)]       # the stage `dataset` leaves the others out
    splits = expected_splits({name: listing.splits.get(name) for name in usable}, params.dataset)
    captions: dict[str, list[list[str]]] = defaultdict(list)
    for name in usable:
        clips = listing.captions[name].values() if name in listing.captions else ()
        captions[splits[name]] += [list(filter(None, some)) for some in clips if any(some)]
    return RunData(captions, params.shards.size, untagged=len(captions["train"]), files=len(readable), missing=missing)


def _project(sample: Sample, num_clips: int) -> dict[str, Any]:
    """What all clips will take, if they are like those of the sample."""
    sizes = [sum(one.jpeg_bytes) + TAR_BYTES * len(one.jpeg_bytes) + RECORD_BYTES for one in sample.good.values()]
    mean_bytes = sum(sizes) / len(sizes) if sizes else 0.0
    return {"failure_rate": round(len(sample.bad) / max(sample.size, 1), 4),
            "failure_rate_ci95": wilson(len(sample.bad), sample.size), "skip_fraction": round(sample.skip_fraction, 4),
            "shards_mb": round(mean_bytes * num_clips * sample.good_share / 1e6, 1),
            "shards_minutes": round(sample.wall_seconds / max(sample.size, 1) * num_clips / 60, 2)}


def _caption_figures(captions: Captions, params: Params | None) -> dict[str, Any] | None:
    texts = [text for clips in captions.values() for some in clips.values() for text in some]
    if not texts:
        return None
    note = cut_note(texts, params.model) if params else None
    return {"count": len(texts), "empty": sum(not text for text in texts),
            "words": _spread([len(text.split()) for text in texts]), **({"note": note} if note else {})}


def _notes(sample: Sample, missing: list[str], alike: dict[str, str]) -> list[str]:
    bad = [f"{plural(len(sample.bad), 'file')} of the {sample.size} looked at cannot be used and will be left out."
           ] if sample.bad else []
    return bad + ([f"{plural(len(missing), 'name')} without a file will be left out{_such_as(alike)}."]
                  if missing else [])


def _such_as(alike: dict[str, str]) -> str:
    return next((f", such as {shown(name)}, where there is {shown(file)}" for name, file in alike.items()), "")


def _worst_files(missing: list[str], alike: dict[str, str], outside: set[str], sample: Sample) -> list[dict[str, str]]:
    """The files to look at first: those that fail, are missing, or are links out of the folder; then the slowest."""
    slowest = sorted(sample.good, key=lambda name: -sample.good[name].seconds)
    rows = [{"file": name, "why": error.reason} for name, error in sample.bad.items()]
    rows += [{"file": name, "why": f"missing; there is {shown(alike[name])}" if name in alike else "missing"}
             for name in missing]
    rows += [{"file": name, "why": "outside"} for name in sorted(outside)]
    rows += [{"file": name, "why": f"{sample.good[name].seconds:.2f} s to decode"} for name in slowest]
    return [{"file": shown(row["file"]), "why": row["why"]} for row in rows[:WORST]]


def _spread(numbers: list) -> dict[str, float]:
    return {"min": min(numbers), "median": median(numbers), "max": max(numbers)} if numbers else {}


def report_text(report: dict[str, Any]) -> str:
    """The report for people; it ends with the problems, or says that there are none, and what to type next."""
    lines = _figure_lines(report) if "videos" in report else []
    lines += [f"problem: {shown(problem)}" for problem in report["problems"]] or ["ready: no problem found"]
    lines += [f"next: {shown(command)}" for command in report["next"]]
    return "\n".join(lines)


def _figure_lines(report: dict[str, Any]) -> list[str]:
    videos, projected, machine, captions = (report[key] for key in ("videos", "projected", "machine", "captions"))
    low, high = projected["failure_rate_ci95"]
    caption_text = "none" if captions is None else (
        f"{captions['count']}, {captions['empty']} of them empty; words: {_range(captions['words'])}")
    rows = {"videos": f"{plural(videos['files'], 'file')}, {videos['missing']:,} missing; "
                      f"{plural(videos['clips'], 'clip')}; {plural(videos['sampled'], 'file')} looked at",
            "seconds": _range(report["durations_s"]),
            "captions": caption_text,
            "cannot be read": f"{projected['failure_rate']:.0%} of those looked at ({low:.0%} to {high:.0%} of all)",
            "reasons": _counts(report["reasons"]),
            "decoders": _counts(report["decoders"]),
            "shards": f"about {projected['shards_mb']:.4g} MB, {projected['shards_minutes']:.2g} minutes",
            "this machine": f"{machine['cores']} cores, {machine['gpu'] or 'no GPU'}, memory free "
                            f"{machine['memory_free_gb']} GB, disk free {machine['disk_free_gb']} GB, "
                            f"decord {'installed' if machine['decord'] else 'missing: PyAV decodes'}",
            "training": "unknown" if report["memory_needed_gb"] is None else
                        f"about {report['memory_needed_gb']} GB memory"}
    lines = [f"{name:16}{value}" for name, value in rows.items()]
    lines += ["to look at first:", *(f"  {row['file']}: {row['why']}" for row in report["worst"])]
    lines += [f"note: {line}" for line in report["notes"]]
    return lines + ([f"note: {captions['note']}"] if captions and "note" in captions else [])


def _range(spread: dict[str, float]) -> str:
    return "{min:.4g} to {max:.4g}, median {median:.4g}".format(**spread) if spread else "unknown"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
