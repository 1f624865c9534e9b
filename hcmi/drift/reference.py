"""The held-out clips that export wrote, as what every batch is compared with."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from hcmi.drift.causes import COPY, COPY_CHANCE, unknown_share, words_of
from hcmi.drift.damage import damage, damaged_rows
from hcmi.drift.groups import group_rows, independent, near_limit
from hcmi.drift.label_free_recall import Scores, hits
from hcmi.drift.profile import Profile, fit_temperature, query_columns, unit
from hcmi.drift.recall_from_clips import Clips, RecallFromClips, can_fit
from hcmi.drift.sample import REFERENCE, Sample, combined_scores, draw_rows, measure_clips
from hcmi.errors import DriftError
from hcmi.index import TokenStore, read_texts, read_videos, round_trip, table_clips
from hcmi.model import HcmiModel, encode_videos
from hcmi.shards import ShardReader, middle_frames
from hcmi.types import Clip, EvalBatch, VideoTokens

# Clips that all queries are ranked among. Among 300, R@1 of clips with unknown shapes fell from 99 to 86 % only, among
# 2,000 from 97 to 76 %. Ranking 600 queries among 2,000 clips takes 2 CPU seconds. [ours]
MAX_GALLERY = 2000
ENCODED_AT_ONCE = 20        # damaged clips: bounds the memory


class Reference:
    """The sample of held-out clips, its profile and scores, and the gallery that reference and batches share.

    Raises: DriftError when export or shards do not belong to the model; SearchIndexError or DataError when they are
    broken.
    """

    def __init__(self, model: HcmiModel, export_dir: str | Path, shards_dir: str | Path,
                 generator: np.random.Generator):
        export_dir, self._shards_dir = Path(export_dir), shards_dir
        _check_model(model, export_dir)
        self.model = model
        # the order of the random draws is fixed, because the seed decides the report: clips, captions, gallery
        self.sample, self.precision = _draw_sample(export_dir / "reference", shards_dir, generator)
        self.gallery, self.gallery_clips = _draw_gallery(export_dir, generator)
        self.words, self.files = _known(export_dir)
        self.scores = self._scores(self.sample)
        self.temperature = 1.0 if self.scores is None else fit_temperature(self.scores.clips_NN)
        unknown = sum(unknown_share(caption, self.words) > 0 for caption in self.sample.captions)
        self.usual_unknown = unknown / max(len(self.sample.captions), 1)
        self.near = self.copy = 1.0         # cosines above which clips hang together, and show the same
        if self.gallery is not None:
            vectors = _vectors(self.sample.videos), _vectors(self.gallery)
            self.near, self.copy = near_limit(*vectors), max(COPY, near_limit(*vectors, COPY_CHANCE))
        self.profile = self._profile(self.sample, self.scores)

    def profile_of(self, batch: Sample) -> tuple[Profile, Scores | None]:
        """The batch's profile and the scores of its captions."""
        scores = self._scores(batch)
        return self._profile(batch, scores), scores

    @property
    def card(self) -> dict[str, Any]:
        """What report.json says about it. `independent`: the number of independent clips that it is worth."""
        return {"clips": len(self.sample), "captioned": len(self.sample.captioned),
                "independent": round(independent(self.profile.units), 2), "model": self.model.fingerprint[:12]}

    @cached_property
    def from_clips(self) -> RecallFromClips | None:
        """What estimates R@1 of batches without captions; None where it cannot be learned.

        It decodes and encodes damaged copies of tested clips: 5 seconds on a CPU with the small towers.
        """
        if self.scores is None or self.gallery is None:
            return None
        assert self.sample.texts is not None
        captioned = self.sample.captioned
        tested = Clips.of(self.sample.videos[captioned], self.gallery, self.profile.units[captioned],
                          hits(self.scores))
        best_N = self.scores.gallery_NG.max(1)
        copies = {}
        for kind, rows in damaged_rows(len(captioned)).items():
            videos = self._damaged_videos(kind, captioned[rows])
            own_N = np.diagonal(combined_scores(self.model, self.sample.texts[rows], videos))
            copies[kind] = Clips.of(videos, self.gallery, None, (own_N > best_N[rows]).astype(float))
        return RecallFromClips(tested, copies) if can_fit(tested, copies) else None

    def _damaged_videos(self, kind: str, rows: np.ndarray) -> VideoTokens:
        """Tokens of tested clips of the sample, each damaged to a random degree."""
        reader = ShardReader(self._shards_dir, REFERENCE)
        row_of = {clip.video_id: row for row, clip in enumerate(reader.clips)}
        stored = np.array([row_of[self.sample.clips[row].video_id] for row in rows.tolist()])
        picks_BT = middle_frames(reader.num_stored[stored], self.model.config.num_frames)
        frames_BTHXC = np.zeros((*picks_BT.shape, *reader.frame_shape), np.uint8)
        for row, picks, slots in zip(stored.tolist(), picks_BT.tolist(), frames_BTHXC, strict=True):
            reader.read_into(row, picks, slots)
        frames_BTHXC = damage(frames_BTHXC, kind, np.random.default_rng(0))
        batches = [EvalBatch(part.tolist(), torch.from_numpy(frames_BTHXC[part]),
                             torch.from_numpy(picks_BT[part] >= 0))
                   for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // ENCODED_AT_ONCE))]
        return round_trip(encode_videos(self.model, batches), self.precision)

    def _scores(self, sample: Sample) -> Scores | None:
        """None where there are no captions or no gallery."""
        if sample.texts is None or self.gallery is None:
            return None
        return Scores(combined_scores(self.model, sample.texts, sample.videos[sample.captioned]),
                      combined_scores(self.model, sample.texts, self.gallery))

    def _profile(self, sample: Sample, scores: Scores | None) -> Profile:
        """The caption columns are NaN for clips without a caption."""
        columns: pd.DataFrame = sample.pixels.copy()
        embeddings = levels(sample.videos)
        if self.gallery is not None:
            columns["nearest_known"] = (_vectors(sample.videos) @ _vectors(self.gallery).T).max(1)
        if scores is not None:
            found = query_columns(np.diagonal(scores.clips_NN), scores.gallery_NG, self.temperature)
            for name in found:
                columns[name] = np.nan
                columns.loc[sample.captioned, name] = found[name].to_numpy()
        if sample.texts is not None:
            columns["caption_words"] = np.nan
            columns.loc[sample.captioned, "caption_words"] = [float(len(words.split())) for words in sample.captions]
            columns["unknown_words"] = np.nan
            columns.loc[sample.captioned, "unknown_words"] = [unknown_share(words, self.words)
                                                              for words in sample.captions]
            sentences = np.full((len(sample), sample.texts.sentence_BD.shape[1]), np.nan, np.float32)
            sentences[sample.captioned] = sample.texts.sentence_BD.numpy()
            embeddings["caption_embedding"] = sentences
        groups = group_rows(_vectors(sample.videos), [clip.path for clip in sample.clips], self.near)
        return Profile(columns, embeddings, groups)


def _check_model(model: HcmiModel, export_dir: Path) -> None:
    try:
        made_by = json.loads((export_dir / "meta.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise DriftError(f"{export_dir}: need an export with meta.json, got none that can be read. "
                         f"Run `hcmi export`.") from error
    if made_by != model.fingerprint:
        raise DriftError(f"{export_dir}: need the export of this model ({model.fingerprint[:12]}), got one of model "
                         f"{made_by[:12]}. Run `hcmi export` again.")


def _draw_sample(folder: Path, shards_dir: str | Path, generator: np.random.Generator) -> tuple[Sample, str]:
    """A random sample of the exported reference in `folder`, and the precision of its tokens."""
    if not (folder / "videos.parquet").is_file():
        raise DriftError(f"{folder}: need the held-out clips to compare with, got none. Give the data set a test "
                         f"split and run `dvc repro`.")
    store = TokenStore(folder / "embeddings")
    video_ids = read_videos(folder / "videos.parquet")["video_id"].to_pylist()
    reader = ShardReader(shards_dir, REFERENCE)
    shard_rows = _shard_rows(folder, video_ids, shards_dir, reader)
    rows = draw_rows(len(video_ids), generator)
    queries = pq.read_table(folder / "queries.parquet").to_pandas()
    chosen = _draw_captions(queries["video_row"].to_numpy(), rows, generator)
    captioned = np.flatnonzero(chosen >= 0)
    texts = read_texts(folder / "embeddings")[chosen[captioned]] if len(captioned) else None
    clips, pixels, middle_frames = measure_clips(reader, [shard_rows[row] for row in rows])
    captions = queries["caption"].to_numpy()[chosen[captioned]].tolist()
    return Sample(clips, pixels, middle_frames, store.tokens(rows), captioned, captions, texts), store.precision


def _shard_rows(folder: Path, video_ids: list[str], shards_dir: str | Path, reader: ShardReader) -> list[int]:
    """For each exported clip its row in the shards. Raises: DriftError when one is not in them."""
    row_of = {clip.video_id: row for row, clip in enumerate(reader.clips)}
    missing = [name for name in video_ids if name not in row_of]
    if missing:
        raise DriftError(f"{folder}: need clips that are in {shards_dir}, got {missing[0]}, which is not. "
                         f"Run `hcmi export` again.")
    return [row_of[name] for name in video_ids]


def _draw_captions(video_rows: np.ndarray, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each of `rows` the position of one of its captions, drawn at random; -1 where it has none.

    `video_rows`: the row that each caption belongs to.
    """
    order = generator.permutation(len(video_rows))
    found = dict(zip(video_rows[order].tolist(), order.tolist(), strict=True))
    return np.array([found.get(row, -1) for row in rows.tolist()], int)


def _draw_gallery(export_dir: Path, generator: np.random.Generator) -> tuple[VideoTokens | None, list[Clip]]:
    """Tokens and records of clips of the other splits, among which the queries of all sets are ranked.

    They are not a part of the reference: held-out clips resemble each other (cut from one video, or neighbours in
    meaning) more than any new clip resembles them, and that difference alone was reported as drift.
    """
    videos = read_videos(export_dir / "videos.parquet")
    splits = videos["split"].to_numpy(zero_copy_only=False)
    rows = np.sort(generator.permutation(np.flatnonzero(splits != REFERENCE))[:MAX_GALLERY])
    if not len(rows):
        return None, []
    return TokenStore(export_dir / "embeddings").tokens(rows), table_clips(videos.take(rows))


def _known(export_dir: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The words of the captions of all splits but the held-out one, and the sha256 of all files in the index."""
    videos = read_videos(export_dir / "videos.parquet")
    captions = (caption for split, some in zip(videos["split"].to_pylist(), videos["captions"].to_pylist(), strict=True)
                if split != REFERENCE for caption in some)
    words = frozenset(word for caption in captions for word in words_of(caption))
    return words, frozenset(videos["sha256"].to_pylist())


def levels(videos: VideoTokens) -> dict[str, np.ndarray]:
    """Name -> [V, D]: the vector of the whole clip, and the weighted means of its parts' and of its frames' vectors."""
    frames_BD = (videos.frame_weights_BT[..., None] * videos.frames_BTD).sum(1)
    clips_BD = (videos.clip_weights_BC[..., None] * videos.clips_BCD).sum(1)
    return {"video_embedding": videos.video_BD.numpy(), "clip_embedding": clips_BD.numpy(),
            "frame_embedding": frames_BD.numpy()}


def _vectors(videos: VideoTokens) -> np.ndarray:
    """[V, D] of length 1: of whole clips."""
    return unit(videos.video_BD.numpy())
