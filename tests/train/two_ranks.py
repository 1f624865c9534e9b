"""What the two processes of `test_ranks` do: each compares what both have computed together with one process's work."""

import torch
import torch.distributed as dist
from model_world import train_config
from step_world import distance, gradients, part_of, random_batch, wild_model

from hcmi.errors import DataError
from hcmi.ranks import ALONE, Ranks
from hcmi.train import make_optimizers, training_step

CLIPS = 8


def own_part(batch, ranks: Ranks):
    share = CLIPS // ranks.size
    return part_of(batch, range(ranks.rank * share, (ranks.rank + 1) * share))


def compared(ranks: Ranks, device, cases) -> dict:
    """Distance of all gradients and the loss from those of one process, for each (head, denoise, micro-batch)."""
    batch = random_batch(CLIPS)
    found = {}
    for head, denoise, micro_batch in cases:
        model = wild_model(head)
        expected = gradients(model, batch, denoise)
        got = gradients(model, own_part(batch, ranks), denoise, micro_batch=micro_batch, ranks=ranks)
        found[head, denoise, micro_batch] = distance(got, expected), abs(float(got["loss"] / expected["loss"]) - 1)
    found["faults"] = {name: fault(ranks) for name, fault in FAULTS.items()}
    found["after 20 steps"] = after_steps(ranks)
    return found


def after_steps(ranks: Ranks) -> tuple[float, float]:
    """Distance of the weights after 20 steps from those of one process, and the largest of a loss in between."""
    config = train_config(optimizer="adamw", lr=1e-4, backbone_lr=1e-5, denoise="positive", denoise_by="both")
    models = wild_model("hcmi"), wild_model("hcmi")
    optimizers = [make_optimizers(model, config) for model in models]
    worst = 0.0
    for number in range(20):
        batch = random_batch(CLIPS, number)
        losses = [training_step(models[where], optimizers[where], part, config, "positive", "float32", None, 0,
                                who).figures["loss"]
                  for where, (part, who) in enumerate([(batch, ALONE), (own_part(batch, ranks), ranks)])]
        worst = max(worst, abs(float(losses[1] / losses[0]) - 1))
    return distance(models[1].state_dict(), models[0].state_dict()), worst


# planted faults: distance of the gradients from those of one process

def _with(ranks: Ranks, faulty: Ranks) -> float:
    model, batch = wild_model("hcmi"), random_batch(CLIPS)
    expected = gradients(model, batch)
    return distance(gradients(model, own_part(batch, ranks), ranks=faulty), expected)


class Averaged(Ranks):
    def sum_gradients(self, model):
        super().sum_gradients(model)
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad /= self.size


class WrongOrder(Ranks):
    """Texts in the order of ranks instead of captions."""

    def gather_texts(self, part, num_captions):
        return self.gather(part)


class WithoutGradients(Ranks):
    """What other ranks think of this one's part is lost, as with a plain all-gather."""

    def gather(self, part):
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.detach().contiguous())
        parts[self.rank] = part
        return torch.cat(parts)


def scales_counted_twice(ranks: Ranks) -> float:
    """Each rank's loss whole, and the gathering's gradient divided: right for towers, twice too much for scales."""
    model, batch = wild_model("hcmi"), random_batch(CLIPS)
    expected = gradients(model, batch)
    got = gradients(model, own_part(batch, ranks), ranks=ranks)
    got |= {name: ranks.size * tensor for name, tensor in got.items() if "logit_scales" in name}
    return distance(got, expected)


FAULTS = {"averaged": lambda ranks: _with(ranks, Averaged(ranks.rank, ranks.size, False)),
          "order": lambda ranks: _with(ranks, WrongOrder(ranks.rank, ranks.size, False)),
          "lost": lambda ranks: _with(ranks, WithoutGradients(ranks.rank, ranks.size, False)),
          "scales": scales_counted_twice}


def failing(ranks: Ranks, device, rank: int, how: str) -> dict:
    """One rank fails while the others wait for it."""
    if ranks.rank == rank:
        if how == "killed":
            import os
            import signal
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("one rank: need this, got that.") if how == "error" else ZeroDivisionError("a bug")
    ranks.gather(torch.zeros(1))
    return {"rank": ranks.rank}


def counting(ranks: Ranks, device, rank: int, how: str):
    """Yields 0, 1, 2 and then goes on or fails."""
    yield from range(3)
    failing(ranks, device, rank, how)
    yield ranks.rank
