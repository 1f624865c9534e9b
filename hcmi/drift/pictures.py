"""What the page draws: frames of example clips, a map of the embeddings, and histograms."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from hcmi.drift.sample import Sample
from hcmi.video import Decoded, DecodeJob, DecoderPool

NUM_EXAMPLES = 5
FRAMES_EACH = 3
SIZE = 104              # pixels; shown at 70, so that they are sharp on high-resolution screens


def draw_examples(samples: Sequence[Sample], timeout_s: float, generator: np.random.Generator) -> list[list[dict]]:
    """For each sample some clips drawn at random: {"caption", "video_id", "frames": data URIs, first to last}.

    Frames are read from the video files; when a file is missing, its one middle frame from the shards is used.
    """
    chosen = [np.sort(generator.permutation(len(sample))[:NUM_EXAMPLES]).tolist() for sample in samples]
    jobs = []
    for number, (sample, rows) in enumerate(zip(samples, chosen, strict=True)):
        for row in rows:
            clip = sample.clips[row]
            end_s = clip.end_s if clip.end_s > clip.start_s else None
            jobs.append(DecodeJob((number, row), clip.path, FRAMES_EACH, SIZE, clip.start_s, end_s))
    with DecoderPool(0, timeout_s) as pool:
        found = {job.key: clip.frames for job, clip in pool.map(jobs) if isinstance(clip, Decoded)}
    return [[_example(sample, row, found.get((number, row))) for row in rows]
            for number, (sample, rows) in enumerate(zip(samples, chosen, strict=True))]


def _example(sample: Sample, row: int, frames_THXC: np.ndarray | None) -> dict:
    frames = [sample.middle_frames[row]] if frames_THXC is None else list(frames_THXC)
    captions = dict(zip(sample.captioned.tolist(), sample.captions, strict=True))
    return {"caption": captions.get(row, ""), "video_id": sample.clips[row].video_id,
            "frames": [_data_uri(frame) for frame in frames]}


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
