"""Vectors of videos and texts as numpy arrays, for programs that compare, cluster or store them by themselves."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from hcmi.errors import DataError, DecodeError
from hcmi.model import check_finite, encode_frames, encode_texts, load_retriever
from hcmi.video import Decoded, DecodeJob, DecoderPool

BATCH = 16
TIMEOUT_S = 20.0


class Encoder:
    """A model that turns video files and texts into vectors: one for each video, one for each text.

        encoder = Encoder("openai/clip-vit-base-patch32")
        scores_QV = encoder.encode_texts(["a dog runs"]) @ encoder.encode_videos(["a.mp4", "b.mp4"]).T

    `model` is the folder of a trained model, or the folder or name of a CLIP or SigLIP checkpoint. The products are
    the level video-sentence. For a checkpoint this is its whole score, a cosine. A trained model also compares frames
    with words and clips with phrases; `Retriever` ranks by all levels.

    Raises: ModelError as `load_retriever` does.
    """

    def __init__(self, model: str | Path = "models/hcmi", precision: str = "float32"):
        self.model = load_retriever(model, precision=precision)

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.model.head.dim

    def encode_videos(self, files: Sequence[str | Path], num_workers: int = 0) -> np.ndarray:
        """float32 [V, D] of length 1, in the order of `files`. Each video is one clip, however long it is.

        `num_workers`: processes that decode; 0: one per core.
        Raises: DecodeError for the first file that cannot be decoded; DataError when `files` is a single file.
        """
        if isinstance(files, (str, bytes, os.PathLike)):
            raise DataError(f"files: need a list of files, got the file {str(files)!r}. Put it into a list.")
        jobs = [DecodeJob(row, str(path), self.model.config.num_frames, self.model.processor.image_size,
                          square=self.model.processor.square) for row, path in enumerate(files)]
        vectors_VD = np.empty((len(jobs), self.dim), np.float32)
        with DecoderPool(num_workers, TIMEOUT_S) as decoders:
            clips = _decoded(decoders, jobs)
            while batch := list(islice(clips, BATCH)):
                tokens = encode_frames(self.model, np.stack([clip.frames for _, clip in batch])).to("cpu")
                vectors_VD[[row for row, _ in batch]] = check_finite(tokens.video_BD).numpy()
        return vectors_VD

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [Q, D], in the order of `texts`.

        Their length is 1 for a checkpoint. A trained `hcmi` head scales a text's vector with how much of a video the
        text tells, which does not change the order of the videos that a text finds.
        Raises: DataError when `texts` is a single string.
        """
        if isinstance(texts, str):
            raise DataError(f"texts: need a list of texts, got the text {texts[:40]!r}. Put it into a list.")
        if not len(texts):
            return np.empty((0, self.dim), np.float32)
        return encode_texts(self.model, list(texts)).sentence_BD.numpy()


def _decoded(decoders: DecoderPool, jobs: list[DecodeJob]) -> Iterator[tuple[int, Decoded]]:
    """Row and frames of each file, as they are ready. Raises: DecodeError."""
    for job, decoded in decoders.map(jobs):
        if isinstance(decoded, DecodeError):
            raise decoded
        yield job.key, decoded
