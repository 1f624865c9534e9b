"""Accepted batches become searchable: their clips join the index of a release."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from hcmi.config import Params
from hcmi.dataset import Accepted, batch_clips, read_accepted
from hcmi.encode import encode_clips
from hcmi.errors import DataError
from hcmi.incoming import searched_batches
from hcmi.index import add_videos
from hcmi.ingest.encode import decoded_clips
from hcmi.model import HcmiModel, load_retriever
from hcmi.releases import Release
from hcmi.runtime import pick_device
from hcmi.types import Clip, Skip
from hcmi.video import MACHINE_REASONS, REASONS
from hcmi.wording import plural

Reader = Callable[[Path], tuple[list[Clip], list[Skip]]]


def reader(params: Params) -> Reader:
    """Reads the folder of a batch as `fill` needs it; each folder once. Raises: as `batch_clips` does."""
    return cache(lambda folder: batch_clips(folder, params.dataset, params.windows))


def missing_batches(release: Release, accepted: str | Path) -> list[Accepted]:
    """The accepted batches that the release's index should hold and does not, oldest first."""
    wanted = searched_batches(accepted).keys() - set(release.batches)
    return [entry for entry in read_accepted(accepted) if entry.content in wanted]


def fill(release: Release, wanted: list[Accepted], *, incoming_dir: str | Path, params: Params,
         model: HcmiModel | None = None, read: Reader | None = None) -> dict[str, int]:
    """Add the clips of these batches to the release's index while others search. Returns batch -> clips added.

    A batch counts as added once its clips are in the index. A run that was stopped in between adds them again, which
    changes nothing; so does the next run where the machine was in trouble and too few clips could be decoded. A long
    video without captions is divided into windows of one length, as a folder that is searched; a file that cannot be
    read is named in a warning. `model`: that of the release, if it is loaded already. `read`: a `reader` that may have
    read these batches already.
    Raises: DataError when a batch is gone or holds nothing usable, after the others have been added; ModelError;
    SearchIndexError; MachineError.
    """
    added: dict[str, int] = {}
    failed: list[DataError] = []
    read = read or reader(params)
    for entry in wanted:
        try:
            clips, skipped = read(Path(incoming_dir) / entry.batch)
        except DataError as error:
            failed.append(error)
            continue
        model = model or load_retriever(release.model, pick_device("auto"))
        clips = entry.of(clips)
        added[entry.batch], lost = _add(release, model, clips, params)
        for skip in [*skipped, *lost]:
            if skip.reason in REASONS:      # the file cannot be read; the others are rows of captions
                warnings.warn(skip.detail, stacklevel=2)
        in_trouble = sum(skip.reason in MACHINE_REASONS for skip in lost)
        if in_trouble <= params.shards.max_skip_fraction * len(clips):
            release.note_batch(entry.content)
        else:
            warnings.warn(f"{entry.batch}: {in_trouble} of {plural(len(clips), 'clip')} could not be decoded by this "
                          "machine. The next run tries again.", stacklevel=2)
    if failed:
        raise failed[0]
    return added


def _add(release: Release, model: HcmiModel, clips: list[Clip], params: Params) -> tuple[int, list[Skip]]:
    """The number of clips that are in the index now, and those that could not be decoded."""
    if not clips:
        return 0, []
    with decoded_clips(clips, params, release.shards) as (index, lost):
        if index is None:
            return 0, lost
        found = list(encode_clips(model, index, params.export.batch_size))
    split_of = {clip.video_id: clip.split for clip in clips}
    kept = [replace(clip, split=split_of[clip.video_id]) for batch in found for clip in batch.clips]
    precision = json.loads((release.export / "meta.json").read_text(encoding="utf-8"))["precision"]
    add_videos(release.index, kept, [(batch.tokens, batch.times_BT) for batch in found], precision)
    return len(kept), lost
