"""Batches of every kind in a made-up world whose search works: what is judged is made up, the judging is real.

Texts and clips are noisy copies of random meanings, which the words of the captions do not tell.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from made_scores import DIM, GALLERY, cosines

from hcmi.drift import BatchReport, Reference, Sample, Scores, conclude
from hcmi.drift.profile import CLIP_COLUMNS, fit_temperature
from hcmi.types import Clip, TextTokens, VideoTokens

NOISE = 0.5
WORDS = ("a", "red", "blue", "ring", "star", "slides", "fades", "left", "right")
NEW_SHAPES = ("diamond", "arrow", "bolt")
# mean and spread of each column
USUAL = dict(zip(CLIP_COLUMNS, ((3.0, 0.8), (128, 0), (128, 0), (75, 12), (17, 4), (21, 5), (0, 6), (2.4, 0.4),
                                (8, 2)), strict=False))


def video_tokens(vectors: np.ndarray) -> VideoTokens:
    rows = torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)), dim=-1)
    parts, weights = rows[:, None].expand(-1, 2, -1), torch.full((len(rows), 2), 0.5)
    return VideoTokens(rows, parts, parts, weights, weights)


def text_tokens(vectors: np.ndarray) -> TextTokens:
    rows = torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)), dim=-1)
    weights = torch.ones(len(rows), 1)
    return TextTokens(rows, rows[:, None], rows[:, None], weights, weights)


def made_sample(count: int, generator: np.random.Generator, name: str = "v") -> Sample:
    meaning = generator.normal(size=(count, DIM))
    texts, videos = (meaning + NOISE * generator.normal(size=meaning.shape) for _ in range(2))
    clips = [Clip(f"{name}{row}", f"{name}{row}.mp4", "test", ("a",), 0, 1, 1, f"{name}{row}", {})
             for row in range(count)]
    pixels = pd.DataFrame({column: generator.normal(*usual, count) for column, usual in USUAL.items()})
    frames = list(generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    captions = [f"a {' '.join(generator.choice(WORDS[1:], 4))}" for _ in range(count)]
    return Sample(clips, pixels, frames, video_tokens(videos), np.arange(count), captions, text_tokens(texts))


class MadeReference(Reference):
    """Scores are cosines of whole texts and clips; everything else is the real reference's."""

    from_clips = None

    def __init__(self, count: int = 300):
        self.sample, self.gallery, self.gallery_clips = made_sample(count, np.random.default_rng(0)), None, []
        self.gallery = video_tokens(GALLERY + NOISE * np.random.default_rng(1).normal(size=GALLERY.shape))
        self.words, self.files, self.usual_unknown = frozenset(WORDS), frozenset(), 0.0
        self.near, self.copy = 0.97, 0.995
        self.scores = self._scores(self.sample)
        assert self.scores is not None
        self.temperature = fit_temperature(self.scores.clips_NN)
        self.profile = self._profile(self.sample, self.scores)

    def _scores(self, sample: Sample) -> Scores | None:
        if sample.texts is None or self.gallery is None:
            return None
        texts = sample.texts.sentence_BD.numpy()
        return Scores(cosines(texts, sample.videos.video_BD.numpy()[sample.captioned]),
                      cosines(texts, self.gallery.video_BD.numpy()))

    def judge(self, sample: Sample, generator: np.random.Generator) -> BatchReport:
        report = BatchReport("made", sample=sample, num_found=len(sample))
        report.profile, scores = self.profile_of(sample)
        conclude(report, scores, self, 0.01, generator)
        return report


def scaled(sample: Sample, **factors: float) -> Sample:
    """The columns of the pictures multiplied; what search sees stays."""
    return replace(sample, pixels=sample.pixels.assign(**{
        name: sample.pixels[name] * factor for name, factor in factors.items()}))


def new_shapes(sample: Sample, share: float, generator: np.random.Generator) -> Sample:
    """The first clips show what the video tower sees badly, and their captions say it in unknown words."""
    odd = np.arange(round(share * len(sample)))
    assert sample.texts is not None
    videos, texts = sample.videos.video_BD.numpy().copy(), sample.texts.sentence_BD.numpy().copy()
    videos[odd] += generator.normal(size=(len(odd), DIM)) / DIM**0.5
    captions = [f"a red {NEW_SHAPES[row % 3]} slides left" if row in odd else caption
                for row, caption in enumerate(sample.captions)]
    return replace(sample, videos=video_tokens(videos), texts=text_tokens(texts), captions=captions)


def wrong_captions(sample: Sample, share: float) -> Sample:
    """The captions of a share are moved on by one clip."""
    assert sample.texts is not None
    rows = np.arange(len(sample))
    odd = round(share * len(sample))
    rows[:odd] = np.roll(rows[:odd], 1)
    return replace(sample, captions=[sample.captions[row] for row in rows],
                   texts=text_tokens(sample.texts.sentence_BD.numpy()[rows]))


def copies(sample: Sample, share: float) -> Sample:
    """The last clips of a share repeat the first ones, encoded anew."""
    rows = np.arange(len(sample))
    odd = round(share * len(sample))
    rows[-odd:] = np.arange(odd)
    return repeated(sample, rows)


def repeated(sample: Sample, rows: np.ndarray) -> Sample:
    """The clips `rows` under the names of all, encoded anew."""
    assert sample.texts is not None
    return replace(sample, videos=video_tokens(sample.videos.video_BD.numpy()[rows]),
                   texts=text_tokens(sample.texts.sentence_BD.numpy()[rows]),
                   pixels=sample.pixels.iloc[rows].reset_index(drop=True),
                   middle_frames=[sample.middle_frames[row] for row in rows],
                   captions=[sample.captions[row] for row in rows])
