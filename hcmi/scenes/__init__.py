"""Scenes, the generated data set: short films of moving shapes, with captions and the times of all events.

With it the pipeline can be run and measured before any download. Clips and captions are a pure function of the seed.
Galleries are fixed test sets, each of which measures one thing.
"""

from hcmi.scenes.captions import phrase
from hcmi.scenes.galleries import LONG, STANDARD, event_queries, gallery_queries, single_events
from hcmi.scenes.sampling import scene_clips
from hcmi.scenes.vocabulary import Event
from hcmi.scenes.write import BATCHES, write_batch, write_gallery, write_scenes

__all__ = [
    "BATCHES",
    "LONG",
    "STANDARD",
    "Event",
    "event_queries",
    "gallery_queries",
    "phrase",
    "scene_clips",
    "single_events",
    "write_batch",
    "write_gallery",
    "write_scenes",
]
