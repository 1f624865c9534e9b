"""Indexes of made-up videos."""

import numpy as np
from search_world import clips, times, video_tokens

from hcmi.index import add_videos

MODEL = {"fingerprint": "f" * 64, "levels": ["video_sentence"]}


def fill(folder, names, seed=0, precision=None, **changes):
    tokens = video_tokens(len(names), np.random.default_rng(seed))
    add_videos(folder, clips(names, **changes), [(tokens, times(len(names)))], precision)
    return tokens


def names(count, prefix="v"):
    return [f"{prefix}{number:04d}" for number in range(count)]


def found_ids(index, query_D, count, where=None):
    return [clip.video_id for clip in index.clips(index.candidates(query_D, count, where))]
