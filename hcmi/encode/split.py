"""A whole split, encoded, for evaluation and validation, and the file in which `evaluate` keeps it for `export`."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hcmi.encode.clips import encode_clips
from hcmi.errors import DataError
from hcmi.files import atomic_file
from hcmi.model import HcmiModel, concatenate, encode_precision, encode_texts
from hcmi.progress import track
from hcmi.shards import ShardReader
from hcmi.types import TextTokens, VideoTokens
from hcmi.wording import plural


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

    @classmethod
    def of(cls, reader: ShardReader, videos: VideoTokens, texts: TextTokens) -> "EncodedSplit":
        """From the tokens of the reader's clips and of their captions, both in order."""
        caption_video = np.repeat(np.arange(len(reader)), [len(clip.captions) for clip in reader.clips])
        return cls([clip.video_id for clip in reader.clips], videos, captions_of(reader), caption_video, texts)


def captions_of(reader: ShardReader) -> list[str]:
    """All captions of the reader's clips, in order."""
    return [caption for clip in reader.clips for caption in clip.captions]


def count_captioned(reader: ShardReader) -> int:
    """How many clips of the reader have a caption."""
    return sum(bool(clip.captions) for clip in reader.clips)


def require_captions(reader: ShardReader) -> None:
    """Raises: DataError when no clip of the reader has a caption."""
    if not count_captioned(reader):
        raise DataError(f"{reader.index.shards}, split {reader.split}: need captions to measure the model with, got "
                        f"{plural(len(reader), 'clip')} without any. Caption some.")


def encode_split(model: HcmiModel, reader: ShardReader, batch_size: int, *, processes: int | str = 1,
                 model_dir: str | Path | None = None) -> EncodedSplit:
    """Encode every clip of the reader once, in order, and every caption. `processes` as for `encode_clips`."""
    parts = []
    with track(description="encode videos", total=len(reader), unit="clip") as bar:
        for batch in encode_clips(model, reader.index, batch_size, processes=processes, model_dir=model_dir):
            parts.append(batch)
            bar.update(len(batch.clips))
    videos = concatenate([batch.tokens for batch in sorted(parts, key=lambda batch: batch.first)])
    return EncodedSplit.of(reader, videos, encode_texts(model, captions_of(reader)))


def save_split(encoded: EncodedSplit, path: str | Path, model: HcmiModel, reader: ShardReader) -> None:
    """Write the tokens of a split as float32, with what they were made of."""
    tensors = {f"{kind}.{name}": values.contiguous() for kind, tokens in (("videos", encoded.videos),
                                                                         ("texts", encoded.texts))
               for name, values in vars(tokens).items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"made_of": _made_of(model, reader)})


def load_split(path: str | Path | None, model: HcmiModel, reader: ShardReader) -> EncodedSplit | None:
    """What `save_split` wrote; None when there is no such file, or one of another model, split or precision."""
    if path is None or not Path(path).is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_of") != _made_of(model, reader):
                return None
            videos = VideoTokens(*(file.get_tensor(f"videos.{field.name}") for field in fields(VideoTokens)))
            texts = TextTokens(*(file.get_tensor(f"texts.{field.name}") for field in fields(TextTokens)))
    except (SafetensorError, OSError):      # cut short: as good as none
        return None
    return EncodedSplit.of(reader, videos, texts)


def _made_of(model: HcmiModel, reader: ShardReader) -> str:
    """The model, the numbers' precision, and the shards, whose index has hashes of frames and captions."""
    index = Path(reader.index.shards, "index.parquet").read_bytes()
    return json.dumps({"model": model.fingerprint, "precision": encode_precision(model.device),
                       "split": reader.split, "shards": hashlib.sha256(index).hexdigest()})
