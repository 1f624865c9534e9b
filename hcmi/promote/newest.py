"""Champion and challenger on the newest accepted batches: on clips that are in the data of neither."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from hcmi.config import Params
from hcmi.dataset import Accepted, batch_clips, is_held_out
from hcmi.encode import encode_clips
from hcmi.errors import DataError
from hcmi.evaluate import Ranks, paired_difference, ranks
from hcmi.index import TokenStore, read_videos, round_trip
from hcmi.ingest import decoded_clips
from hcmi.model import HcmiModel, concatenate, encode_texts, score
from hcmi.promote.gate import Difference
from hcmi.releases import Release
from hcmi.shards import SplitIndex, same_settings
from hcmi.types import Clip, VideoTokens

NEWEST = 3              # batches [ours]
FEWEST_CLIPS = 20       # the interval draws clips: that of one clip has no width, however many captions it has [ours]
SEED = 0


def compare_on_newest(pairs: Sequence[tuple[HcmiModel, Release]], accepted: Sequence[Accepted], *,
                      incoming_dir: str | Path, params: Params, samples: int
                      ) -> Difference | None:
    """R@1 of the held-out captioned clips of the newest batches; None where these clips are too few.

    `pairs`: champion and challenger, each with its release. Each caption's clip competes with the other held-out clips
    and with the test clips of the release. A clip whose file is in the data of one of them is left out: the model knows
    a file of training and validation, and a test clip would compete with its own copy.
    """
    known = set().union(*(_files(release) for _, release in pairs))
    clips = [clip for clip in _held_out(accepted[-NEWEST:], Path(incoming_dir), params) if clip.sha256 not in known]
    if len(clips) < FEWEST_CLIPS:
        return None
    encoded = _encoded(pairs, clips, params)
    kept = [clip for clip in clips if all(clip.video_id in tokens for tokens in encoded)]
    if len(kept) < FEWEST_CLIPS:
        return None
    same = len({tuple(test_ids(release)) for _, release in pairs}) == 1
    found = [_ranks(model, kept, concatenate([tokens[clip.video_id] for clip in kept]), release if same else None)
             for (model, release), tokens in zip(pairs, encoded, strict=True)]
    groups = np.repeat(np.arange(len(kept)), [len(clip.captions) for clip in kept])
    served, new = (100 * one.hits_at(1) for one in found)
    low, high = paired_difference(served, new, np.random.default_rng(SEED), samples, groups)["ci95"]
    return Difference("newest batches", float(served.mean()), float(new.mean()), low, high, len(groups))


def _held_out(entries: Sequence[Accepted], incoming_dir: Path, params: Params) -> list[Clip]:
    """Each clip once, with the captions of all its copies, in order of video_id."""
    found: dict[tuple[str, float, float], Clip] = {}
    for entry in entries:
        try:
            clips, _ = batch_clips(incoming_dir / entry.batch, params.dataset)
        except DataError:       # a batch that is gone cannot be compared on
            continue
        for clip in entry.of(clips):
            if clip.captions and is_held_out(clip):
                before = found.get(clip.content_key, replace(clip, captions=()))
                captions = dict.fromkeys(before.captions + clip.captions)      # each once
                found[clip.content_key] = replace(before, captions=tuple(captions))
    return sorted(found.values(), key=lambda clip: clip.video_id)


def _files(release: Release) -> set[str]:
    """The sha256 of the files of all splits that the model was exported with."""
    return set(read_videos(release.export / "videos.parquet")["sha256"].unique().to_pylist())


def _encoded(pairs: Sequence[tuple[HcmiModel, Release]], clips: list[Clip], params: Params
             ) -> list[dict[str, VideoTokens]]:
    """For each pair video_id -> tokens, without clips that cannot be decoded. The frames are made as the release's own,
    and once where the releases have them alike.
    """
    with ExitStack() as decoded:
        indexes: list[SplitIndex | None] = []
        for _, release in pairs:
            alike = [index for (_, other), index in zip(pairs, indexes, strict=False)
                     if same_settings(other.shards, release.shards)]
            indexes += alike[:1] or [decoded.enter_context(decoded_clips(clips, params, release.shards))[0]]
        return [{clip.video_id: batch.tokens[at:at + 1]
                 for batch in (encode_clips(model, index, params.export.batch_size) if index is not None else ())
                 for at, clip in enumerate(batch.clips)}
                for (model, _), index in zip(pairs, indexes, strict=True)]


def test_ids(release: Release) -> list[str]:
    path = release.export / "reference" / "videos.parquet"
    return read_videos(path)["video_id"].to_pylist() if path.is_file() else []


def _ranks(model: HcmiModel, clips: list[Clip], videos: VideoTokens, release: Release | None) -> Ranks:
    gallery = [videos]
    if release is not None and (release.export / "reference" / "embeddings").is_dir():
        store = TokenStore(release.export / "reference" / "embeddings")
        gallery = [round_trip(videos, store.precision), store.tokens(slice(None))]
    texts = encode_texts(model, [caption for clip in clips for caption in clip.captions])
    own = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    return ranks(model.combine(score(model, texts, concatenate(gallery))).numpy(), own)
