"""Stage `export`: every clip's tokens on disk, the search index over them, and the reference for drift."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hcmi.config import ExportConfig
from hcmi.errors import DataError
from hcmi.files import ask_to_write, atomic_dir
from hcmi.index import TokenStore, TokenWriter, create_index, model_card, videos_table, write_parquet, write_texts
from hcmi.model import HcmiModel, check_square, concatenate, encode_batches, encode_texts, load_retriever, score
from hcmi.progress import track
from hcmi.runtime import pick_device
from hcmi.shards import SplitIndex, clip_batches, pick_frames, read_splits, read_square
from hcmi.types import Clip, TextTokens, VideoTokens

REFERENCE = "test"      # held out: no choice was made on it
COST_ITEMS = 1000       # videos and texts that the cost of storing is measured on

Encoded = tuple[list[Clip], VideoTokens, np.ndarray]    # B clips, their tokens on the CPU, times_BT in seconds


def export(*, model_dir: str | Path, shards: str | Path, out_dir: str | Path, config: ExportConfig) -> dict[str, Any]:
    """Encode the clips of every split; write videos.parquet, embeddings/, index/, reference/ and meta.json.

    `shards` is a folder, or the base URL of one that is read through webdataset, such as `https://host/shards`,
    `s3://bucket/shards` or `pipe:cat /dir/shards`. `out_dir` appears whole or not at all.
    Raises: ModelError; DataError (no clips in the shards, or broken ones); MachineError (`out_dir` cannot be written,
    which is checked before the work).
    """
    ask_to_write(folders=[out_dir])
    model = load_retriever(model_dir, pick_device("auto"))
    splits = read_splits(shards)
    check_square(model.processor.square, read_square(shards), shards)
    num_videos = sum(map(len, splits.values()))
    if not num_videos:
        raise DataError(f"{shards}: need at least one clip to export, got none. Run `hcmi shards`.")
    card = model_card(model)
    meta = {**card, "precision": config.precision, "num_videos": num_videos,
            "splits": {split: len(index) for split, index in splits.items()}}
    with atomic_dir(out_dir) as folder:
        videos, reference = _write_tokens(model, splits, folder / "embeddings", config)
        pq.write_table(videos, folder / "videos.parquet", compression="zstd")
        if config.parquet:
            write_parquet(videos, TokenStore(folder / "embeddings"), folder / "embeddings.parquet")
        create_index(folder / "index", card, data="..")
        if reference:
            meta["precision_cost"] = _write_reference(model, reference, folder / "reference", config.precision)
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return {"videos": num_videos, **meta["splits"], "dim": card["dim"], "out": str(out_dir)}


def _write_tokens(model: HcmiModel, splits: dict[str, SplitIndex], folder: Path, config: ExportConfig
                  ) -> tuple[pa.Table, list[Encoded]]:
    """Encode every split once into `folder`; returns the table of all clips and the batches of the reference split."""
    clips: list[Clip] = []
    reference: list[Encoded] = []
    num_videos = sum(map(len, splits.values()))
    writer = TokenWriter(folder, num_videos, config.precision)
    with track(description="export", total=num_videos, unit="clip") as bar:
        for split, index in splits.items():
            for batch in encode_clips(model, index, config.batch_size):
                batch_clips, tokens, times_BT = batch
                writer.append(tokens, times_BT)
                clips += batch_clips
                reference += [batch] if split == REFERENCE else []
                bar.update(len(tokens))
    writer.close()
    return videos_table(clips), reference


def encode_clips(model: HcmiModel, index: SplitIndex, batch_size: int) -> Iterator[Encoded]:
    """Every clip of a split once, in the shards' order."""
    batches = ((batch, batch.picked.frames_BTHXC, batch.picked.frame_mask_BT)
               for batch in clip_batches(index, batch_size, model.config.num_frames))
    for batch, tokens in encode_batches(model, batches):
        times_BT = np.stack([frame_times(stored.times_s, model.config.num_frames) for stored in batch.stored])
        yield batch.clips, tokens, times_BT


def frame_times(stored_times_s: Sequence[float], num_frames: int) -> np.ndarray:
    """[T] seconds of the frames that evaluation picks; a clip with fewer frames repeats the last one."""
    picked = [stored_times_s[at] for at in pick_frames(len(stored_times_s), num_frames, None)]
    return np.array((picked + picked[-1:] * num_frames)[:num_frames], np.float32)


def _write_reference(model: HcmiModel, batches: list[Encoded], folder: Path, precision: str) -> dict[str, float]:
    """The held-out videos and texts as drift reads them; returns what storing cost.

    videos.parquet, embeddings/ as in the export, embeddings/texts_*.npy, and queries.parquet: caption, video_id and
    the row of its video.
    """
    clips = [clip for batch_clips, _, _ in batches for clip in batch_clips]
    writer = TokenWriter(folder / "embeddings", len(clips), precision)
    for _, tokens, times_BT in batches:
        writer.append(tokens, times_BT)
    writer.close()
    pq.write_table(videos_table(clips), folder / "videos.parquet", compression="zstd")
    captions = [caption for clip in clips for caption in clip.captions]
    rows = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    pq.write_table(pa.table({"caption": pa.array(captions, pa.string()), "video_row": pa.array(rows, pa.int64()),
                             "video_id": pa.array([clips[row].video_id for row in rows], pa.string())}),
                   folder / "queries.parquet", compression="zstd")
    if not captions:
        return {}
    texts = encode_texts(model, captions)
    write_texts(folder / "embeddings", texts)
    exact = concatenate([tokens for _, tokens, _ in batches])
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
