"""Clips in, samples out: the reference as export left it, incoming batches decoded and encoded as the shards were."""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from hcmi.config import Params
from hcmi.dataset import read_folder, write_manifest
from hcmi.drift.label_free_recall import Scores
from hcmi.drift.profile import CLIP_COLUMNS, Profile, clip_columns, fit_temperature, query_columns
from hcmi.errors import DataError, DriftError
from hcmi.index import TokenStore, read_texts, read_videos, round_trip
from hcmi.model import HcmiModel, encode_texts, encode_videos, score
from hcmi.shards import ShardReader, eval_batches, pick_frames, write_shards
from hcmi.types import Clip, Skip, TextTokens, VideoTokens
from hcmi.video import REASONS

REFERENCE = "test"          # the split that hcmi/export/stage.py writes as the reference
MAX_CLIPS = 600             # of the reference and of each batch, drawn at random: bounds the time [ours]
MAX_GALLERY = 300           # clips that all queries are ranked among; 1,000 take three times as long for little [ours]
NUM_LOOKED_AT = 4           # frames per clip for the pixel columns


@dataclass(frozen=True)
class Sample:
    """Clips with their tokens; `captions[i]` is one caption of clip `captioned[i]`, drawn at random."""

    clips: list[Clip]
    pixels: pd.DataFrame                # [V] of CLIP_COLUMNS
    middle_frames: list[np.ndarray]     # [H, X, 3] uint8 of each clip, for pictures
    videos: VideoTokens
    captioned: np.ndarray               # [Q] rows, ascending
    captions: list[str]
    texts: TextTokens | None            # of `captions`; None where there are none

    def __len__(self) -> int:
        return len(self.clips)


class Reference:
    """The training-time reference and what every batch is scored against.

    Raises: DriftError when export or shards do not belong to the model; SearchIndexError, DataError when broken.
    """

    def __init__(self, model: HcmiModel, export_dir: str | Path, shards_dir: str | Path,
                 generator: np.random.Generator):
        export_dir = Path(export_dir)
        _check_model(model, export_dir)
        folder = export_dir / "reference"
        if not (folder / "videos.parquet").is_file():
            raise DriftError(f"{folder}: need the held-out clips to compare with, got none. Give the data set a test "
                             f"split and run `dvc repro`.")
        store = TokenStore(folder / "embeddings")
        self.precision = store.precision
        video_ids = read_videos(folder / "videos.parquet")["video_id"].to_pylist()
        reader = ShardReader(shards_dir, REFERENCE)
        place = {clip.video_id: row for row, clip in enumerate(reader.clips)}
        missing = [name for name in video_ids if name not in place]
        if missing:
            raise DriftError(f"{folder}: need clips that are in {shards_dir}, got {missing[0]}, which is not. "
                             f"Run `hcmi export` again.")
        rows = _draw(len(video_ids), generator)
        queries = pq.read_table(folder / "queries.parquet").to_pandas()
        chosen = _one_each(queries["video_row"].to_numpy(), rows, generator)
        captioned = np.flatnonzero(chosen >= 0)
        texts = read_texts(folder / "embeddings")[chosen[captioned]] if len(captioned) else None
        self.sample = Sample(*_look(reader, [place[video_ids[row]] for row in rows]), store.tokens(rows), captioned,
                             queries["caption"].to_numpy()[chosen[captioned]].tolist(), texts)
        self.model = model
        self.gallery = self._draw_gallery(export_dir, generator)
        self.scores, self.temperature = self._scores(self.sample), 1.0
        if self.scores is not None:
            self.temperature = fit_temperature(self.scores.clips_NN)
        self.profile = _profile(self.sample, self.scores, self.temperature)

    def _draw_gallery(self, export_dir: Path, generator: np.random.Generator) -> VideoTokens | None:
        """Clips of the other splits, for the queries of reference and batch to be ranked among.

        Not a part of the reference itself: held-out clips resemble each other (cut from one video, or neighbours in
        meaning) in a way that no new clip resembles them, and that difference alone was called drift.
        """
        splits = read_videos(export_dir / "videos.parquet")["split"].to_numpy(zero_copy_only=False)
        rows = np.sort(generator.permutation(np.flatnonzero(splits != REFERENCE))[:MAX_GALLERY])
        return TokenStore(export_dir / "embeddings").tokens(rows) if len(rows) else None

    def _scores(self, sample: Sample) -> Scores | None:
        """None where there are no captions or no gallery."""
        if sample.texts is None or self.gallery is None:
            return None
        return Scores(combined(self.model, sample.texts, sample.videos[sample.captioned]),
                      combined(self.model, sample.texts, self.gallery))

    def profile_of(self, batch: Sample) -> tuple[Profile, Scores | None]:
        """The batch's profile and the scores of its captions."""
        scores = self._scores(batch)
        return _profile(batch, scores, self.temperature), scores


def read_batch(folder: Path, model: HcmiModel, params: Params, precision: str, shards_dir: str | Path,
               generator: np.random.Generator) -> tuple[Sample | None, list[Skip], int]:
    """Decode and encode a folder of videos: the sample (None: nothing to read), what was left out, and clips found.

    Frames go through the same sampling, resizing and JPEG as the shards did (their stats.json says how): the model
    would take the difference for drift.
    Raises: DataError when the captions are wrong or the folder holds nothing usable.
    """
    clips, skipped = read_folder(folder, params.dataset, captions_required=False)
    num_found = len(clips) + len(unread(skipped))
    rows = _draw(len(clips), generator)
    with tempfile.TemporaryDirectory(prefix="hcmi-drift-") as work:
        manifest = Path(work) / "manifest.parquet"
        write_manifest([replace(clips[row], split=REFERENCE) for row in rows], manifest)
        out = Path(work) / "shards"
        try:
            write_shards(manifest_path=manifest, out_dir=out, config=_as_shards_were(params, shards_dir))
        except DataError:
            lost = _lines(Path(work) / "shards.work" / "skipped.jsonl")
            if not lost:
                raise
            return None, skipped + lost, num_found
        skipped += _lines(out / "skipped.jsonl")
        reader = ShardReader(out, REFERENCE)
        batches = eval_batches(reader, params.export.batch_size, model.config.num_frames)
        videos = encode_videos(model, batches, len(reader))
        look = _look(reader, range(len(reader)))
    captioned = np.array([row for row, clip in enumerate(look[0]) if clip.captions], int)
    captions = [str(generator.choice(look[0][row].captions)) for row in captioned]
    texts = encode_texts(model, captions) if captions else None
    return Sample(*look, round_trip(videos, precision), captioned, captions, texts), skipped, num_found


def combined(model: HcmiModel, texts: TextTokens, videos: VideoTokens) -> np.ndarray:
    """[Q, V] scores as search ranks by them, all levels weighted."""
    return model.combine(score(model, texts, videos)).numpy()


def unread(skipped: list[Skip]) -> list[Skip]:
    """Of what was left out, the clips whose video cannot be read; the rest are rows of captions, say doubled ones."""
    return [skip for skip in skipped if skip.reason in REASONS]


def reasons(skipped: list[Skip]) -> str:
    """`3 no_frames, 1 missing`."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(skip.reason for skip in skipped).most_common())


def _profile(sample: Sample, scores: Scores | None, temperature: float) -> Profile:
    """The columns of captions are NaN for clips that have none."""
    columns = sample.pixels.copy()
    embeddings = {"video_embedding": sample.videos.video_BD.numpy()}
    rows = sample.captioned
    if scores is not None:
        found = query_columns(np.diagonal(scores.clips_NN), scores.gallery_NG, temperature)
        for name in found:
            columns[name] = np.nan
            columns.loc[rows, name] = found[name].to_numpy()
    if sample.texts is not None:
        columns["caption_words"] = np.nan
        columns.loc[sample.captioned, "caption_words"] = [float(len(caption.split())) for caption in sample.captions]
        sentences = np.full((len(sample), sample.texts.sentence_BD.shape[1]), np.nan, np.float32)
        sentences[sample.captioned] = sample.texts.sentence_BD.numpy()
        embeddings["caption_embedding"] = sentences
    return Profile(columns, embeddings)


def _look(reader: ShardReader, rows) -> tuple[list[Clip], pd.DataFrame, list[np.ndarray]]:
    clips, pixels, pictures = [reader.clips[row] for row in rows], [], []
    for row, clip in zip(rows, clips, strict=True):
        picks = pick_frames(int(reader.num_stored[row]), NUM_LOOKED_AT, None)
        frames_THXC = reader.frames(row, picks)
        pixels.append({"duration_s": clip.end_s - clip.start_s, "width": reader.stored[row].width,
                       "height": reader.stored[row].height, **clip_columns(frames_THXC)})
        pictures.append(frames_THXC[len(frames_THXC) // 2])
    return clips, pd.DataFrame(pixels, columns=list(CLIP_COLUMNS), dtype=float), pictures


def _as_shards_were(params: Params, shards_dir: str | Path):
    stats = json.loads((Path(shards_dir) / "stats.json").read_text(encoding="utf-8"))
    return params.shards.model_copy(update={**{name: stats[name] for name in ("size", "num_frames", "quality")},
                                            "max_skip_fraction": 1.0})


def _draw(count: int, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.permutation(count)[:MAX_CLIPS])


def _one_each(video_rows: np.ndarray, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each video row one of its captions' places, drawn at random; -1 where it has none."""
    order = generator.permutation(len(video_rows))
    found = dict(zip(video_rows[order].tolist(), order.tolist(), strict=True))
    return np.array([found.get(row, -1) for row in rows.tolist()], int)


def _check_model(model: HcmiModel, export_dir: Path) -> None:
    try:
        made_by = json.loads((export_dir / "meta.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise DriftError(f"{export_dir}: need an export with meta.json, got none that can be read. "
                         f"Run `hcmi export`.") from error
    if made_by != model.fingerprint:
        raise DriftError(f"{export_dir}: need the export of this model ({model.fingerprint[:12]}), got one of model "
                         f"{made_by[:12]}. Run `hcmi export` again.")


def _lines(path: Path) -> list[Skip]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="\n") as file:        # `splitlines` also splits within captions
        return [Skip(**json.loads(line)) for line in file]
