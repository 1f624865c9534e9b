"""What the tests of the scenes room share: parameters of a small data set, and its clips."""

from hcmi.config import ScenesConfig
from hcmi.scenes import scene_clips

CONFIG = ScenesConfig(version=1, num_train=6, num_val=2, num_test=4, num_incoming=3, max_events=4, captions_per_clip=3,
                      part_captions=1, event_captions=0, brief_captions=0, wording="sentence",
                      duplicate_rate=0.2, neighbour_rate=0.3, width=128, height=128, fps=12)


TWO = {"version": 2}


def clips_of(split, count, seed=0, **changes):
    return list(scene_clips(CONFIG.model_copy(update=changes), split, seed, count))


def steps_of(clip):
    orders = sorted({event.order for event in clip.events})
    return tuple(tuple(event for event in clip.events if event.order == order) for order in orders)
