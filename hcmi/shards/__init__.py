"""Stage `shards`, and reading what it wrote.

`write_shards` decodes every clip of the manifest once into JPEG frames in WebDataset tars with an index. `TrainLoader`
gives them as training batches, `eval_batches` and `clip_batches` in order, once, and `ShardReader` one clip at a time.
"""

from hcmi.shards.loader import TrainBatch, TrainLoader, captions_taken
from hcmi.shards.reader import ShardReader
from hcmi.shards.sampler import middle_frames, pick_frames
from hcmi.shards.sequential import clip_batches, eval_batches
from hcmi.shards.shard_index import SplitIndex, frame_keys, read_splits, read_square
from hcmi.shards.stage import write_shards
from hcmi.shards.temporary import same_settings, temporary_shards

__all__ = ["ShardReader", "SplitIndex", "TrainBatch", "TrainLoader", "captions_taken", "clip_batches", "eval_batches",
           "frame_keys", "middle_frames", "pick_frames", "read_splits", "read_square", "same_settings",
           "temporary_shards", "write_shards"]
