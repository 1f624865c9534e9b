"""Champion and challenger on the newest accepted batches: on clips that neither was trained on."""

from collections.abc import Sequence
from contextlib import ExitStack
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
FEWEST_QUERIES = 20     # with fewer, no difference could be shown [ours]
SEED = 0


def compare_on_newest(pairs: Sequence[tuple[HcmiModel, Release]], accepted: Sequence[Accepted], *,
                      incoming_dir: str | Path, params: Params, samples: int
                      ) -> Difference | None:
    """R@1 of the held-out captioned clips of the newest batches; None where there are too few.

    `pairs`: champion and challenger, each with its release. Each caption's clip competes with the other held-out clips
    and with the test clips of the release.
    """
    clips = _held_out(accepted[-NEWEST:], Path(incoming_dir), params)
    if sum(len(clip.captions) for clip in clips) < FEWEST_QUERIES:
        return None
    encoded = _encoded(pairs, clips, params)
    kept = [clip for clip in clips if all(clip.video_id in tokens for tokens in encoded)]
    if not kept:
        return None
    same = len({tuple(test_ids(release)) for _, release in pairs}) == 1
    found = [_ranks(model, kept, concatenate([tokens[clip.video_id] for clip in kept]), release if same else None)
             for (model, release), tokens in zip(pairs, encoded, strict=True)]
    groups = np.repeat(np.arange(len(kept)), [len(clip.captions) for clip in kept])
    if len(groups) < FEWEST_QUERIES:
        return None
    served, new = (100 * one.hits_at(1) for one in found)
    low, high = paired_difference(served, new, np.random.default_rng(SEED), samples, groups)["ci95"]
    return Difference("newest batches", float(served.mean()), float(new.mean()), low, high, len(groups))


def _held_out(entries: Sequence[Accepted], incoming_dir: Path, params: Params) -> list[Clip]:
    found: dict[str, Clip] = {}
    for entry in entries:
        try:
            clips, _ = batch_clips(incoming_dir / entry.batch, params.dataset)
        except DataError:       # a batch that is gone cannot be compared on
            continue
        found |= {clip.video_id: clip for clip in entry.of(clips) if clip.captions and is_held_out(clip)}
    return sorted(found.values(), key=lambda clip: clip.video_id)


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
