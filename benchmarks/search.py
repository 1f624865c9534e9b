"""Two-stage search in a million synthetic videos: recall against the exact ranking, time, memory, additions.

The videos are clustered vectors: neighbours in a cluster, frames around their video, words around the frames of the
video that they describe. Their cosines follow a model trained on Scenes (`--calibrate EXPORT` prints those of a model).
Time is measured from the encoded query to the answer with its moments. Memory is that of the searching process,
including the pages of mapped files.

    python benchmarks/search.py [--quick] [--videos N] [--folder DIR] [--calibrate EXPORT]
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import shipped_params, table, write_result

from hcmi.config import load_params
from hcmi.index import (
    VIDEOS_SCHEMA,
    Filter,
    TokenStore,
    TokenWriter,
    add_videos,
    create_index,
    model_card,
    read_texts,
    table_clips,
)
from hcmi.model import HcmiModel, new_retriever, tiled_similarities
from hcmi.search import Retriever
from hcmi.types import TextTokens, VideoTokens

T, C, W, P, D = 12, 4, 16, 8, 128
PER_CLUSTER = 50
# Length of the noise added to a unit vector: cosine 1 / sqrt(1 + noise^2).
VIDEO, FRAME, CLIP = 0.65, 1.17, 0.87       # video around its cluster, frame and clip around their video
SENTENCE, WORD, PHRASE = 0.48, 1.73, 1.23   # text around what it describes
CHUNK = 10_000


def near(centres: np.ndarray, noise: float, generator: np.random.Generator) -> np.ndarray:
    """Unit vectors around unit vectors."""
    made = centres + generator.standard_normal(centres.shape, np.float32) * np.float32(noise / centres.shape[-1] ** 0.5)
    return made / np.linalg.norm(made, axis=-1, keepdims=True)


def chunk_tokens(chunk: int, count: int, num_videos: int) -> VideoTokens:
    """The `count` videos of one chunk; the same call always returns the same vectors."""
    generator = np.random.default_rng([1, chunk])
    centres_KD = near(np.zeros((max(num_videos // PER_CLUSTER, 1), D), np.float32), 1, np.random.default_rng(0))
    video_BD = near(centres_KD[generator.integers(len(centres_KD), size=count)], VIDEO, generator)
    frames_BTD = near(np.repeat(video_BD[:, None], T, 1), FRAME, generator)
    clips_BCD = near(np.repeat(video_BD[:, None], C, 1), CLIP, generator)
    return VideoTokens(*map(torch.from_numpy, (video_BD, frames_BTD, clips_BCD)), torch.full((count, T), 1 / T),
                       torch.full((count, C), 1 / C))


def queries(store: TokenStore, count: int, seed: int) -> TextTokens:
    """Texts that describe random videos of the store."""
    generator = np.random.default_rng([2, seed])
    videos = store.tokens(np.sort(generator.integers(len(store), size=count)))
    rows = np.arange(count)[:, None]
    words = videos.frames_BTD.numpy()[rows, generator.integers(T, size=(count, W))]
    phrases = videos.clips_BCD.numpy()[rows, generator.integers(C, size=(count, P))]
    parts = (near(videos.video_BD.numpy(), SENTENCE, generator), near(words, WORD, generator),
             near(phrases, PHRASE, generator))
    return TextTokens(*map(torch.from_numpy, parts), torch.full((count, W), 1 / W), torch.full((count, P), 1 / P))


def videos_rows(start: int, count: int) -> pa.Table:
    numbers = np.arange(start, start + count)
    names = [f"v{number:07d}" for number in numbers]
    return pa.table({
        "row": pa.array(numbers), "video_id": names, "path": [f"videos/{name}.mp4" for name in names],
        "split": ["train"] * count, "captions": [[]] * count, "start_s": np.zeros(count), "end_s": np.full(count, 12.0),
        "duration_s": np.full(count, 12.0), "sha256": [f"{number:064x}" for number in numbers],
        "tags": [[("tenth", str(number % 10))] for number in numbers]}, schema=VIDEOS_SCHEMA)


def tiny_model() -> HcmiModel:
    """A small model. Only its similarities are used, and these have no learned part."""
    torch.manual_seed(0)
    section = load_params(shipped_params()).model
    return new_retriever(section.model_copy(update={"backbone": "scratch"}), 32, ["a red ring slides left"] * 9).eval()


def times(count: int) -> np.ndarray:
    return np.tile(np.arange(T, dtype=np.float32) + 0.5, (count, 1))


def build(folder: Path, num_videos: int, card: dict) -> None:
    """Write the videos and their index. Runs in a separate process: its memory must not count as that of the search."""
    writer = TokenWriter(folder / "embeddings", num_videos)
    with pq.ParquetWriter(folder / "videos.parquet", VIDEOS_SCHEMA, compression="zstd") as rows:
        for start in range(0, num_videos, CHUNK):
            count = min(CHUNK, num_videos - start)
            writer.append(chunk_tokens(start // CHUNK, count, num_videos), times(count))
            rows.write_table(videos_rows(start, count))
    writer.close()
    started = time.perf_counter()
    create_index(folder / "index", card, data="..")
    (folder / "done.json").write_text(json.dumps({"build_seconds": time.perf_counter() - started}))


def exact_top(store: TokenStore, texts: TextTokens, model: HcmiModel, count: int) -> np.ndarray:
    """Rows [Q, count] of the best videos when every video is scored."""
    best_rows, best_scores = np.zeros((len(texts), 0), np.int64), np.zeros((len(texts), 0), np.float32)
    for rows in store.batches(CHUNK):
        scores = model.combine(tiled_similarities(texts, store.tokens(rows))).numpy()
        best_rows = np.concatenate([best_rows, np.tile(np.arange(rows.start, rows.stop), (len(texts), 1))], 1)
        best_scores = np.concatenate([best_scores, scores], 1)
        keep = np.argsort(-best_scores, 1)[:, :count]
        best_rows, best_scores = np.take_along_axis(best_rows, keep, 1), np.take_along_axis(best_scores, keep, 1)
    return best_rows


def timed(retriever: Retriever, texts: TextTokens) -> Iterator[tuple[float, list]]:
    for query in range(len(texts)):
        started = time.perf_counter()
        hits = retriever.rank(texts[query:query + 1], 10, Filter())
        yield 1000 * (time.perf_counter() - started), hits


def add_while_searching(retriever: Retriever, texts: TextTokens, num_videos: int) -> dict[str, float]:
    """Seconds to add 1,000 videos, and the number and the slowest of the searches answered during that time."""
    added, tokens = table_clips(videos_rows(num_videos, 1000)), chunk_tokens(10**6, 1000, num_videos)
    spent: list[float] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            one = len(spent) % len(texts)
            spent.extend(ms for ms, _ in timed(retriever, texts[one:one + 1]))

    searcher = threading.Thread(target=search)
    searcher.start()
    started = time.perf_counter()
    add_videos(retriever.index.folder, added, [(tokens, times(1000))])
    seconds = time.perf_counter() - started
    stop.set()
    searcher.join()
    found = retriever.similar(f"v{num_videos + 7:07d}", 1)
    assert found, "an added video must be found at once"
    return {"add_1000_seconds": seconds, "searches_meanwhile": len(spent), "slowest_meanwhile_ms": max(spent)}


def measure(folder: Path, num_videos: int, num_exact: int, num_timed: int) -> dict[str, float]:
    model, process = tiny_model(), psutil.Process()
    retriever = Retriever(model, folder / "index")
    store = TokenStore(folder / "embeddings")
    asked = queries(store, num_timed, seed=0)
    for _ in timed(retriever, queries(store, 50, seed=1)):      # the first queries load the index
        pass
    resident, spent = 0, []
    for ms, _ in timed(retriever, asked):
        spent.append(ms)
        resident = max(resident, process.memory_info().rss)
    found = [{int(hit.video_id[1:]) for hit in hits} for _, hits in timed(retriever, asked[:num_exact])]
    exact = exact_top(store, asked[:num_exact], model, 10)
    recall = float(np.mean([len(mine & set(best.tolist())) / 10 for mine, best in zip(found, exact, strict=True)]))
    return {"videos": num_videos, "recall_at_10": recall, "p50_ms": float(np.percentile(spent, 50)),
            "p99_ms": float(np.percentile(spent, 99)), "resident_mb": resident / 2**20,
            **add_while_searching(retriever, asked, num_videos),
            **json.loads((folder / "done.json").read_text())}


def calibrate(export: Path) -> None:
    """Print the cosines of the held-out split of a real export, to compare with the synthetic ones."""
    videos = TokenStore(export / "reference/embeddings").tokens(slice(None))
    texts = read_texts(export / "reference/embeddings")
    own = pq.read_table(export / "reference/queries.parquet")["video_row"].to_numpy()
    mine = videos[own]
    among = np.sort((videos.video_BD @ videos.video_BD.T).numpy(), 1)[:, ::-1]
    valid = texts.word_weights_BW > 0
    words = torch.einsum("qwd,qtd->qwt", texts.words_BWD, mine.frames_BTD).amax(2)[valid]
    phrases = torch.einsum("qpd,qcd->qpc", texts.phrases_BPD, mine.clips_BCD).amax(2)[texts.phrase_weights_BP > 0]
    rows = {"frame to its video": torch.einsum("vtd,vd->vt", videos.frames_BTD, videos.video_BD),
            "clip to its video": torch.einsum("vcd,vd->vc", videos.clips_BCD, videos.video_BD),
            "sentence to its video": torch.cosine_similarity(texts.sentence_BD, mine.video_BD),
            "word to its best frame": words, "phrase to its best clip": phrases}
    print(table(["cosine", "mean", "standard deviation"], [[name, float(v.mean()), float(v.std())]
                                                          for name, v in rows.items()]))
    print(table(["neighbour", "cosine"], [[rank, float(among[:, rank].mean())] for rank in (1, 10, 50, 200)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 videos")
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="keep the videos here and use them again (5 GB per million)")
    parser.add_argument("--calibrate", type=Path, metavar="EXPORT")
    options = parser.parse_args()
    if options.calibrate:
        calibrate(options.calibrate)
        return
    num_videos = 50_000 if options.quick else options.videos
    torch.set_num_threads(len(psutil.Process().cpu_affinity()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / f"videos-{num_videos}"
        if not (folder / "done.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            builder = multiprocessing.get_context("spawn").Process(target=build,
                                                                  args=(folder, num_videos, model_card(tiny_model())))
            builder.start()
            builder.join()
        figures = measure(folder, num_videos, 50 if options.quick else 100, 200 if options.quick else 1000)
    print(table(["figure", "value"], list(figures.items())))
    write_result("search", figures, options.quick)


if __name__ == "__main__":
    main()
