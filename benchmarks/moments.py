"""Moments on Scenes: search for one event of a clip of several, and compare the answer with the event's true time.

- `r1_iou50`: R@1 at IoU 0.5, in per cent, over the events of the test split's clips of more than one event. The video
  is given, as is usual for moment retrieval. Also by number of events, and for two trivial answers: the whole clip
  (`whole_clip_r1_iou50`) and a random moment (`random_r1_iou50`).
- `first_hit_shows_it`, `one_of_ten_shows_it`: for the same queries over all clips, the share whose first hit, or one of
  the first ten, shows the event; on the test split these are R@1 and R@10 of the gallery `event`. `whole_captions_r1`:
  R@1 of captions of whole clips.

    python benchmarks/moments.py [--quick] [--model DIR] [--shards DIR] [--annotation FILE]
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import shipped, table, write_result

from hcmi.encode import encode_clips
from hcmi.evaluate import ranks
from hcmi.model import HcmiModel, encode_texts, load_retriever, score
from hcmi.scenes import Event, event_queries, phrase, single_events
from hcmi.search import BASELINE_VIDEOS, find_moment, measure_baseline
from hcmi.shards import ShardReader
from hcmi.types import VideoTokens


def iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two moments, in seconds."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(shared, 0.0) / max(max(one[1], other[1]) - min(one[0], other[0]), 1e-9)


def shown_events(annotation: Path, split: str) -> dict[str, list[Event]]:
    """video_id -> its events, of each clip of a split."""
    clips = [json.loads(line) for line in annotation.read_text(encoding="utf-8").splitlines()]
    return {clip["video_id"]: [Event(**event) for event in clip["events"]] for clip in clips if clip["split"] == split}


def scores_of(model: HcmiModel, queries: list[str], videos: list[VideoTokens]) -> np.ndarray:
    """[Q, V], as search ranks."""
    texts = encode_texts(model, queries)
    return np.concatenate([model.combine(score(model, texts, some)).numpy() for some in videos], 1)


def shown_among_all(model: HcmiModel, queries: list[str], videos: list[VideoTokens],
                    shown: Mapping[str, Sequence[Event]], reader: ShardReader) -> dict[str, float]:
    """Per cent of the queries for which the first clip, or one of the first ten, shows the event; and per cent of the
    captions of whole clips that find their clip first."""
    rows = {clip.video_id: row for row, clip in enumerate(reader.clips)}
    right = {query.text: [rows[video_id] for video_id in query.right]
             for query in event_queries({video_id: shown[video_id] for video_id in rows})}
    right_Q = [right[query] for query in queries]
    captions = [caption for clip in reader.clips for caption in clip.captions]
    own_Q = np.repeat(np.arange(len(reader)), [len(clip.captions) for clip in reader.clips])
    found, whole = ranks(scores_of(model, queries, videos), right_Q), ranks(scores_of(model, captions, videos), own_Q)
    return {"random_hit_shows_it": 100 * sum(map(len, right_Q)) / (len(right_Q) * len(rows)),
            "first_hit_shows_it": float(100 * found.hits_at(1).mean()),
            "one_of_ten_shows_it": float(100 * found.hits_at(10).mean()),
            "whole_captions_r1": float(100 * whole.hits_at(1).mean())}


def measure(model: HcmiModel, reader: ShardReader, shown: Mapping[str, Sequence[Event]], clips: int | None = None
            ) -> tuple[dict[str, list[float]], list[str], list[VideoTokens]]:
    """Figure -> its value for each question; the questions; and the tokens of all clips.

    Each of the `single_events` of each of the first `clips` clips is asked for in its clip.
    """
    generator = np.random.default_rng(0)
    asked = [single_events(shown[clip.video_id]) for clip in reader.clips[:clips]]
    queries = [phrase(event) for events in asked for event in events]
    texts = encode_texts(model, queries)        # at once: clip by clip it takes six times as long
    batches = list(encode_clips(model, reader.index, BASELINE_VIDEOS))
    others = batches[0].tokens
    tokens = ((batch.tokens[at:at + 1], batch.times_BT[at]) for batch in batches for at in range(len(batch.clips)))
    scores: dict[str, list[float]] = defaultdict(list)
    number = 0
    for clip, events, (video, times_T) in zip(reader.clips, asked, tokens, strict=False):
        whole = (clip.start_s, clip.end_s)
        for event in events:
            text, truth = texts[number:number + 1], (event.start_s, event.end_s)
            number += 1
            got = find_moment(text, video, times_T, *whole, measure_baseline(text, others))
            random = tuple(np.sort(generator.uniform(*whole, 2)))
            for name, answer in (("r1_iou50", got), ("whole_clip_r1_iou50", whole), ("random_r1_iou50", random)):
                scores[name].append(100.0 * (iou(answer, truth) >= 0.5))
            scores["mean_iou"].append(iou(got, truth))
            scores[f"r1_iou50_{clip.tags['num_events']}_events"].append(scores["r1_iou50"][-1])
    return scores, queries, [batch.tokens for batch in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first 100 clips")
    parser.add_argument("--model", type=Path, help="default: models/hcmi, made with the shipped parameters")
    parser.add_argument("--shards", type=Path, help="default: data/shards")
    parser.add_argument("--annotation", type=Path, help="default: that of data/generated")
    parser.add_argument("--split", default="test", help="choose settings on val, never on test")
    options = parser.parse_args()
    model = load_retriever(options.model or shipped("models/hcmi"))
    reader = ShardReader(options.shards or shipped("data/shards"), options.split)
    annotation = options.annotation or Path(shipped("data/generated"), "annotation.jsonl")
    shown = shown_events(annotation, options.split)
    scores, queries, videos = measure(model, reader, shown, 100 if options.quick else None)
    figures = {"queries": len(scores["r1_iou50"]), **{name: float(np.mean(values)) for name, values in scores.items()},
               **shown_among_all(model, queries, videos, shown, reader)}
    print(table(["figure", "value"], sorted(figures.items())))
    write_result("moments", figures, options.quick)


if __name__ == "__main__":
    main()
