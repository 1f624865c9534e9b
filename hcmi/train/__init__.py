"""ROOM train."""

from hcmi.train.stage import make_optimizers, train, training_step

__all__ = ["make_optimizers", "train", "training_step"]
