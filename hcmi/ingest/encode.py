"""Decoded clips that are not in the shards of the pipeline, for a model that was made of these."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hcmi.config import Params
from hcmi.shards import SplitIndex, read_splits, temporary_shards
from hcmi.types import Clip, Skip

SPLIT = "test"      # of the temporary shards; the clips keep their own


@contextmanager
def decoded_clips(clips: Sequence[Clip], params: Params, shards_dir: str | Path
                  ) -> Iterator[tuple[SplitIndex | None, list[Skip]]]:
    """The clips, made with the settings of `shards_dir`, and those that cannot be decoded; None when none can.

    `clips` are in order of video_id. Raises: as `temporary_shards` does.
    """
    here = params.model_copy(update={"shards": params.shards.model_copy(update={"executor": "local"})})
    with temporary_shards([replace(clip, split=SPLIT) for clip in clips], shards_dir, here) as (shards, lost):
        yield None if shards is None else read_splits(shards)[SPLIT], lost
