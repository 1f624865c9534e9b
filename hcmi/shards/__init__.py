"""ROOM shards."""

from hcmi.shards.loader import TrainBatch, TrainLoader, eval_batches
from hcmi.shards.reader import ShardReader
from hcmi.shards.sampler import pick_frames
from hcmi.shards.stage import write_shards

__all__ = ["ShardReader", "TrainBatch", "TrainLoader", "eval_batches", "pick_frames", "write_shards"]
