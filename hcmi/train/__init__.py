"""Stage 3: train the retriever on the shards and keep the epoch that is best on the validation split.

The room holds the loss, the training loop, the optimisers, adaptive label denoising and the checkpoints. A run that was
stopped continues from its last checkpoint and ends with exactly the weights it would have had.
"""

from hcmi.train.optimizers import make_optimizers
from hcmi.train.plan import plan_text, plan_training
from hcmi.train.preflight import Preflight, RunData, check_run, learns_little
from hcmi.train.stage import train
from hcmi.train.step import training_step

__all__ = ["Preflight", "RunData", "check_run", "learns_little", "make_optimizers", "plan_text", "plan_training",
           "train", "training_step"]
