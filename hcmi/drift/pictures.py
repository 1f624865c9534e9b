"""What the page draws: frames of example clips, a map of the embeddings, and histograms."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from hcmi.drift.report import BatchReport
from hcmi.drift.sample import Sample
from hcmi.types import Clip
from hcmi.video import Decoded, DecodeJob, DecoderPool

NUM_EXAMPLES, NUM_LOST = 5, 3
FRAMES_EACH = 3
SIZE = 104              # pixels; shown at 70, so that they are sharp on high-resolution screens


@dataclass(frozen=True)
class Example:
    """A clip to draw. `middle_frame` is drawn when its file is missing; without one the clip is left out."""

    clip: Clip
    caption: str = ""
    note: str = ""
    middle_frame: np.ndarray | None = None


def draw(examples: Sequence[Sequence[Example]], timeout_s: float, page_dir: str | Path) -> list[list[dict]]:
    """For each list: {"caption", "video_id", "href", "note", "frames": data URIs, first to last} of each clip.

    `href`: the link to its file in a page that lies in `page_dir`.
    """
    jobs = []
    for number, some in enumerate(examples):
        for place, example in enumerate(some):
            clip = example.clip
            end_s = clip.end_s if clip.end_s > clip.start_s else None
            jobs.append(DecodeJob((number, place), clip.path, FRAMES_EACH, SIZE, clip.start_s, end_s))
    with DecoderPool(0, timeout_s) as pool:
        found = {job.key: clip.frames for job, clip in pool.map(jobs) if isinstance(clip, Decoded)}
    drawn = [[_drawn(example, found.get((number, place)), page_dir) for place, example in enumerate(some)]
             for number, some in enumerate(examples)]
    return [[one for one in some if one["frames"]] for some in drawn]


def _drawn(example: Example, frames_THXC: np.ndarray | None, page_dir: str | Path) -> dict:
    if frames_THXC is None:
        frames = [] if example.middle_frame is None else [example.middle_frame]
    else:
        frames = list(frames_THXC)
    href = quote(os.fsencode(os.path.relpath(example.clip.path, page_dir)))     # a name may have any bytes
    return {"caption": example.caption, "video_id": example.clip.video_id, "href": href,
            "note": example.note, "frames": [_data_uri(frame) for frame in frames]}


def at_random(sample: Sample, generator: np.random.Generator) -> list[Example]:
    rows = np.sort(generator.permutation(len(sample))[:NUM_EXAMPLES])
    return [_example(sample, row) for row in rows.tolist()]


def farthest(report: BatchReport) -> list[Example]:
    """The clips that are least like anything known."""
    if report.sample is None or report.profile is None or "nearest_known" not in report.profile.columns:
        return []
    nearest_V = report.profile.columns["nearest_known"].to_numpy()
    return [_example(report.sample, row, f"similarity {nearest_V[row]:.2f}")
            for row in np.argsort(nearest_V, kind="stable")[:NUM_EXAMPLES].tolist()]


def lost(report: BatchReport, gallery: Sequence[Clip]) -> list[Example]:
    """The captions that lost most, each followed by the clip that won instead."""
    if report.sample is None:
        return []
    row_of = {clip.video_id: row for row, clip in enumerate(report.sample.clips)}
    examples = []
    for one in report.lost[:NUM_LOST]:
        winner = gallery[one["won_instead"]]
        examples += [_example(report.sample, row_of[one["video_id"]], f"rank {one['rank']:,}:"),
                     Example(winner, winner.captions[0] if winner.captions else "", "won instead:")]
    return examples


def _example(sample: Sample, row: int, note: str = "") -> Example:
    return Example(sample.clips[row], sample.caption_of.get(row, ""), note, sample.middle_frames[row])


def _data_uri(frame_HXC: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(frame_HXC).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def map_points(reference_VD: np.ndarray, batch_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[V, 2] each, within 0 to 1: the first two principal components of both sets together."""
    pooled_VD = np.concatenate([reference_VD, batch_VD]).astype(np.float64)
    # both sets have the same weight, whatever their sizes
    weights_V = np.repeat([1 / len(reference_VD), 1 / len(batch_VD)], [len(reference_VD), len(batch_VD)])
    centred_VD = pooled_VD - np.average(pooled_VD, axis=0, weights=weights_V)
    directions_DD = np.linalg.svd(centred_VD * np.sqrt(weights_V)[:, None], full_matrices=False)[2]
    points_V2 = centred_VD @ directions_DD[:2].T
    if points_V2.shape[1] < 2:
        points_V2 = np.pad(points_V2, ((0, 0), (0, 2 - points_V2.shape[1])))
    low_2, high_2 = points_V2.min(0), points_V2.max(0)
    points_V2 = (points_V2 - low_2) / np.maximum(high_2 - low_2, 1e-12)
    return points_V2[:len(reference_VD)], points_V2[len(reference_VD):]


def histograms(reference: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of each set in each bin of their common range; the outermost 1 % of each are put into the end bins."""
    parts = [part[np.isfinite(part)] for part in (reference, batch)]
    low = min(np.quantile(part, 0.01) for part in parts)
    high = max(np.quantile(part, 0.99) for part in parts)
    bins = int(np.clip(min(map(len, parts)) ** 0.5 * 1.5, 6, 24))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    first, second = (np.histogram(part.clip(edges[0], edges[-1]), edges)[0] / len(part) for part in parts)
    return first, second
