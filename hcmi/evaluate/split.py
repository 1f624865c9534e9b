"""A whole split, encoded, for evaluation and validation."""

from dataclasses import dataclass

import numpy as np

from hcmi.model import HcmiModel, encode_texts, encode_videos
from hcmi.shards import ShardReader, eval_batches
from hcmi.types import TextTokens, VideoTokens


@dataclass(frozen=True)
class EncodedSplit:
    """All clips of a split and all their captions, encoded. Row i of `videos` is clip i of the shard reader."""

    video_ids: list[str]
    videos: VideoTokens
    captions: list[str]
    caption_video: np.ndarray       # [Q] row of each caption's video
    texts: TextTokens

    def __post_init__(self) -> None:
        assert len(self.video_ids) == len(self.videos), f"{len(self.video_ids)} ids, {self.videos}"
        assert len(self.captions) == len(self.texts) == len(self.caption_video), f"{len(self.captions)} captions"


def encode_split(model: HcmiModel, reader: ShardReader, batch_size: int) -> EncodedSplit:
    """Encode every clip of the reader once, in order, and every caption."""
    videos = encode_videos(model, eval_batches(reader, batch_size, model.config.num_frames), len(reader))
    captions = [caption for clip in reader.clips for caption in clip.captions]
    caption_video = np.repeat(np.arange(len(reader)), [len(clip.captions) for clip in reader.clips])
    return EncodedSplit([clip.video_id for clip in reader.clips], videos, captions, caption_video,
                        encode_texts(model, captions))
