"""The held-out clips that export wrote, as what every batch is compared with."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from hcmi.drift.label_free_recall import Scores
from hcmi.drift.profile import Profile, fit_temperature, query_columns
from hcmi.drift.sample import REFERENCE, Sample, combined_scores, draw_rows, measure_clips
from hcmi.errors import DriftError
from hcmi.index import TokenStore, read_texts, read_videos
from hcmi.model import HcmiModel
from hcmi.shards import ShardReader
from hcmi.types import VideoTokens

MAX_GALLERY = 300           # clips that all queries are ranked among; 1,000 take three times as long for little [ours]


class Reference:
    """The sample of held-out clips, its profile and scores, and the gallery that reference and batches share.

    Raises: DriftError when export or shards do not belong to the model; SearchIndexError or DataError when they are
    broken.
    """

    def __init__(self, model: HcmiModel, export_dir: str | Path, shards_dir: str | Path,
                 generator: np.random.Generator):
        export_dir = Path(export_dir)
        _check_model(model, export_dir)
        self.model = model
        # the order of the random draws is fixed, because the seed decides the report: clips, captions, gallery
        self.sample, self.precision = _draw_sample(export_dir / "reference", shards_dir, generator)
        self.gallery = _draw_gallery(export_dir, generator)
        self.scores = self._scores(self.sample)
        self.temperature = 1.0 if self.scores is None else fit_temperature(self.scores.clips_NN)
        self.profile = _profile(self.sample, self.scores, self.temperature)

    def profile_of(self, batch: Sample) -> tuple[Profile, Scores | None]:
        """The batch's profile and the scores of its captions."""
        scores = self._scores(batch)
        return _profile(batch, scores, self.temperature), scores

    def _scores(self, sample: Sample) -> Scores | None:
        """None where there are no captions or no gallery."""
        if sample.texts is None or self.gallery is None:
            return None
        return Scores(combined_scores(self.model, sample.texts, sample.videos[sample.captioned]),
                      combined_scores(self.model, sample.texts, self.gallery))


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


def _draw_gallery(export_dir: Path, generator: np.random.Generator) -> VideoTokens | None:
    """Clips of the other splits, which the queries of the reference and of every batch are ranked among.

    They are not a part of the reference: held-out clips resemble each other (cut from one video, or neighbours in
    meaning) more than any new clip resembles them, and that difference alone was reported as drift.
    """
    splits = read_videos(export_dir / "videos.parquet")["split"].to_numpy(zero_copy_only=False)
    rows = np.sort(generator.permutation(np.flatnonzero(splits != REFERENCE))[:MAX_GALLERY])
    return TokenStore(export_dir / "embeddings").tokens(rows) if len(rows) else None


def _profile(sample: Sample, scores: Scores | None, temperature: float) -> Profile:
    """The caption columns are NaN for clips without a caption."""
    columns: pd.DataFrame = sample.pixels.copy()
    embeddings = {"video_embedding": sample.videos.video_BD.numpy()}
    if scores is not None:
        found = query_columns(np.diagonal(scores.clips_NN), scores.gallery_NG, temperature)
        for name in found:
            columns[name] = np.nan
            columns.loc[sample.captioned, name] = found[name].to_numpy()
    if sample.texts is not None:
        columns["caption_words"] = np.nan
        columns.loc[sample.captioned, "caption_words"] = [float(len(caption.split())) for caption in sample.captions]
        sentences = np.full((len(sample), sample.texts.sentence_BD.shape[1]), np.nan, np.float32)
        sentences[sample.captioned] = sample.texts.sentence_BD.numpy()
        embeddings["caption_embedding"] = sentences
    return Profile(columns, embeddings)
