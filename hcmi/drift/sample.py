"""A random sample of clips with their tokens and pixel statistics; how one is read from a folder of new videos."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from hcmi.config import Params, WindowsConfig
from hcmi.dataset import read_folder
from hcmi.drift.profile import CLIP_COLUMNS, clip_columns
from hcmi.index import round_trip
from hcmi.model import HcmiModel, encode_texts, encode_videos, score
from hcmi.shards import ShardReader, eval_batches, pick_frames, temporary_shards
from hcmi.types import Clip, Skip, TextTokens, VideoTokens
from hcmi.video import REASONS

REFERENCE = "test"          # the split that hcmi/export/stage.py writes as the reference
MAX_CLIPS = 600             # of the reference and of each batch, drawn at random: bounds the time [ours]
NUM_MEASURED_FRAMES = 4     # per clip, for the pixel columns


@dataclass(frozen=True)
class Sample:
    """Clips with their tokens; `captions[i]` is one caption of clip `captioned[i]`, drawn at random."""

    clips: list[Clip]
    pixels: pd.DataFrame                # [V] of CLIP_COLUMNS
    middle_frames: list[np.ndarray]     # [H, X, 3] uint8 of each clip, for pictures
    videos: VideoTokens
    captioned: np.ndarray               # [Q] rows, ascending
    captions: list[str]
    texts: TextTokens | None            # of `captions`; None where there are none

    def __len__(self) -> int:
        return len(self.clips)

    @cached_property
    def caption_of(self) -> dict[int, str]:
        """Row of a clip -> its caption, for the clips that have one."""
        return dict(zip(self.captioned.tolist(), self.captions, strict=True))


def read_batch(folder: Path, model: HcmiModel, params: Params, precision: str, shards_dir: str | Path,
               generator: np.random.Generator) -> tuple[Sample | None, list[Skip], int, int]:
    """Decode and encode a folder of videos: the sample, what was left out, and the numbers of clips and captions found.

    The sample is None when no clip can be read; the numbers are those of the whole folder, before the draw. Frames go
    through the same sampling, resizing and JPEG as those of the shards (whose stats.json holds the settings); otherwise
    the model would see the difference as drift. Each window of a long video without captions is a clip; here windows do
    not overlap.
    Raises: DataError when the captions are wrong or the folder holds nothing usable.
    """
    apart = WindowsConfig(cut="fixed", seconds=params.windows.seconds, whole_seconds=params.windows.whole_seconds,
                          overlap_seconds=0.0)          # no second counts twice
    clips, skipped = read_folder(folder, params.dataset, captions_required=False, windows=apart)
    num_found = len(clips) + len(unreadable(skipped))
    num_captions = sum(len(clip.captions) for clip in clips)
    chosen = [replace(clips[row], split=REFERENCE) for row in draw_rows(len(clips), generator)]
    with temporary_shards(chosen, shards_dir, params) as (shards, lost):
        skipped += lost
        if shards is None:
            return None, skipped, num_found, num_captions
        reader = ShardReader(shards, REFERENCE)
        batches = eval_batches(reader, params.export.batch_size, model.config.num_frames)
        videos = encode_videos(model, batches, len(reader))
        clips, pixels, middle_frames = measure_clips(reader, range(len(reader)))
    captioned = np.array([row for row, clip in enumerate(clips) if clip.captions], int)
    captions = [str(generator.choice(clips[row].captions)) for row in captioned]
    texts = encode_texts(model, captions) if captions else None
    sample = Sample(clips, pixels, middle_frames, round_trip(videos, precision), captioned, captions, texts)
    return sample, skipped, num_found, num_captions


def measure_clips(reader: ShardReader, rows: Sequence[int]) -> tuple[list[Clip], pd.DataFrame, list[np.ndarray]]:
    """The clips at `rows`, their CLIP_COLUMNS, and the middle frame of each."""
    clips, pixels, middle_frames = [reader.clips[row] for row in rows], [], []
    for row, clip in zip(rows, clips, strict=True):
        picks = pick_frames(int(reader.num_stored[row]), NUM_MEASURED_FRAMES)
        frames_THXC = reader.frames(row, picks)
        pixels.append({"duration_s": clip.end_s - clip.start_s, "width": reader.stored[row].width,
                       "height": reader.stored[row].height, **clip_columns(frames_THXC)})
        middle_frames.append(frames_THXC[len(frames_THXC) // 2])
    return clips, pd.DataFrame(pixels, columns=list(CLIP_COLUMNS), dtype=float), middle_frames


def draw_rows(count: int, generator: np.random.Generator) -> np.ndarray:
    """At most MAX_CLIPS of `count` rows, drawn at random, ascending."""
    return np.sort(generator.permutation(count)[:MAX_CLIPS])


def combined_scores(model: HcmiModel, texts: TextTokens, videos: VideoTokens) -> np.ndarray:
    """[Q, V] the scores that search ranks by: all levels, weighted."""
    return model.combine(score(model, texts, videos)).numpy()


def unreadable(skipped: list[Skip]) -> list[Skip]:
    """The clips whose video cannot be read. The other skips are rows of captions, such as duplicates."""
    return [skip for skip in skipped if skip.reason in REASONS]


def count_reasons(skipped: Sequence[Skip]) -> str:
    """`3 no_frames, 1 missing`."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(skip.reason for skip in skipped).most_common())
