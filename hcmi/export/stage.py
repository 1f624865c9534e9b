"""Stage `export`: every clip's tokens on disk, the search index over them, and the reference for drift."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hcmi.config import ExportConfig
from hcmi.encode import Encoded, encode_clips, frame_times, load_split
from hcmi.errors import DataError
from hcmi.files import ask_to_write, atomic_dir
from hcmi.index import TokenStore, TokenWriter, create_index, model_card, videos_table, write_parquet, write_texts
from hcmi.model import HcmiModel, check_square, concatenate, encode_texts, load_retriever, score
from hcmi.progress import track
from hcmi.runtime import pick_device
from hcmi.shards import ShardReader, SplitIndex, read_splits, read_square
from hcmi.types import Clip, TextTokens, VideoTokens

REFERENCE = "test"      # held out: no choice was made on it
COST_ITEMS = 1000       # videos and texts that the cost of storing is measured on


def export(*, model_dir: str | Path, shards: str | Path, out_dir: str | Path, config: ExportConfig,
           processes: int | str = 1, encoded_file: str | Path | None = None) -> dict[str, Any]:
    """Encode the clips of every split; write videos.parquet, embeddings/, index/, reference/ and meta.json.

    `shards` is a folder, or the base URL of one that is read through webdataset, such as `https://host/shards`,
    `s3://bucket/shards` or `pipe:cat /dir/shards`. `processes`: as `train.num_processes`. `encoded_file`: what
    `evaluate` has kept; the clips in it are not encoded again. `out_dir` appears whole or not at all.
    Raises: ModelError; DataError (no clips in the shards, or broken ones); MachineError (`out_dir` cannot be written,
    which is checked before the work).
    """
    ask_to_write(folders={out_dir: "meta.json"})
    model = load_retriever(model_dir, pick_device("auto"))
    splits = read_splits(shards)
    check_square(model.processor.square, read_square(shards), shards)
    num_videos = sum(map(len, splits.values()))
    if not num_videos:
        raise DataError(f"{shards}: need at least one clip to export, got none. Run `hcmi shards`.")
    card = model_card(model)
    meta = {**card, "precision": config.precision, "num_videos": num_videos,
            "splits": {split: len(index) for split, index in splits.items()}}
    before = _encoded_before(encoded_file, model, shards) if REFERENCE in splits else None

    def encode(index: SplitIndex) -> Iterable[Encoded]:
        if before is not None and index.split == REFERENCE:
            return before[:1]
        return encode_clips(model, index, config.batch_size, processes=processes, model_dir=model_dir)

    with atomic_dir(out_dir) as folder:
        videos, reference = _write_tokens(splits, encode, folder / "embeddings", config.precision)
        pq.write_table(videos, folder / "videos.parquet", compression="zstd")
        if config.parquet:
            write_parquet(videos, TokenStore(folder / "embeddings"), folder / "embeddings.parquet")
        create_index(folder / "index", card, data="..")
        if reference:
            texts = before[1] if before is not None else None
            meta["precision_cost"] = _write_reference(model, reference, texts, folder / "reference", config.precision)
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return {"videos": num_videos, **meta["splits"], "dim": card["dim"], "out": str(out_dir)}


def _encoded_before(path: str | Path | None, model: HcmiModel, shards: str | Path
                    ) -> tuple[Encoded, TextTokens] | None:
    """The clips and captions of the reference split, if `evaluate` has kept them and they are of this model."""
    if path is None or not Path(shards, "index.parquet").is_file():     # shards may be behind a URL
        return None
    reader = ShardReader(shards, REFERENCE)
    if (split := load_split(path, model, reader)) is None:
        return None
    times_VT = np.stack([frame_times(stored.times_s, model.config.num_frames) for stored in reader.stored])
    return Encoded(0, reader.clips, split.videos, times_VT), split.texts


def _write_tokens(splits: dict[str, SplitIndex], encode: Callable[[SplitIndex], Iterable[Encoded]], folder: Path,
                  precision: str) -> tuple[pa.Table, list[Encoded]]:
    """Encode every split once into `folder`; returns the table of all clips and the batches of the reference split."""
    clips: list[Clip] = []
    reference: list[Encoded] = []
    num_videos = sum(map(len, splits.values()))
    writer = TokenWriter(folder, num_videos, precision)
    with track(description="export", total=num_videos, unit="clip") as bar:
        for split, index in splits.items():
            found: dict[int, list[Clip]] = {}
            for batch in encode(index):
                writer.write(len(clips) + batch.first, batch.tokens, batch.times_BT)
                found[batch.first] = batch.clips
                reference += [batch] if split == REFERENCE else []
                bar.update(len(batch.clips))
            clips += [clip for first in sorted(found) for clip in found[first]]
    writer.close()
    return videos_table(clips), sorted(reference, key=lambda batch: batch.first)


def _write_reference(model: HcmiModel, batches: list[Encoded], texts: TextTokens | None, folder: Path, precision: str
                     ) -> dict[str, float]:
    """The held-out videos and texts as drift reads them; returns what storing cost.

    videos.parquet, embeddings/ as in the export, embeddings/texts_*.npy, and queries.parquet: caption, video_id and
    the row of its video. `texts`: the captions' tokens, if they are known.
    """
    clips = [clip for batch in batches for clip in batch.clips]
    writer = TokenWriter(folder / "embeddings", len(clips), precision)
    for batch in batches:
        writer.write(batch.first, batch.tokens, batch.times_BT)
    writer.close()
    pq.write_table(videos_table(clips), folder / "videos.parquet", compression="zstd")
    captions = [caption for clip in clips for caption in clip.captions]
    rows = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    pq.write_table(pa.table({"caption": pa.array(captions, pa.string()), "video_row": pa.array(rows, pa.int64()),
                             "video_id": pa.array([clips[row].video_id for row in rows], pa.string())}),
                   folder / "queries.parquet", compression="zstd")
    if not captions:
        return {}
    texts = encode_texts(model, captions) if texts is None else texts
    write_texts(folder / "embeddings", texts)
    exact = concatenate([batch.tokens for batch in batches])
    return precision_cost(model, texts, rows, exact, TokenStore(folder / "embeddings").tokens(slice(None)))


def precision_cost(model: HcmiModel, texts: TextTokens, video_of_text: np.ndarray, exact: VideoTokens,
                   stored: VideoTokens) -> dict[str, float]:
    """R@1 in per cent, text to video, with exact and with stored tokens, and the largest difference of two scores.

    At most COST_ITEMS videos and texts are compared.
    """
    some = np.flatnonzero(video_of_text < COST_ITEMS)[:COST_ITEMS]
    pairs = [model.combine(score(model, texts[some], tokens[:COST_ITEMS])) for tokens in (exact, stored)]
    own = torch.from_numpy(video_of_text[some])
    first = [float((sims_QV.argmax(1) == own).float().mean()) * 100 for sims_QV in pairs]
    return {"t2v_R@1_exact": first[0], "t2v_R@1_stored": first[1], "queries": len(some),
            "max_score_difference": float((pairs[0] - pairs[1]).abs().max())}
