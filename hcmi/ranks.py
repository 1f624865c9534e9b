"""What the processes of one training run tell each other.

Each rank embeds its own part of the global batch and scores its own texts against all videos. Every rank then has the
similarities of the whole batch, and computes the whole loss divided by the number of ranks. Summed over ranks, the
gradient of each weight is that of one process with the whole batch: that of weights which act before the gathering
(towers, head), and that of weights which act after it (logit scales). docs/decisions/0017 has the reasons.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmi.types import VideoTokens

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `size`. All ranks call the same methods in the same order."""

    rank: int = 0
    size: int = 1
    alone: bool = True      # ask nobody: a rank takes what it has itself for what the others have

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and reports."""
        return self.rank == 0

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks one after the other, along the first dimension, with gradients."""
        if self.size == 1:
            return part
        if self.alone or part.numel() == 0:
            return torch.cat([part] * self.size)
        return _Gather.apply(part, self)

    def gather_videos(self, videos: VideoTokens) -> VideoTokens:
        if self.size == 1:
            return videos
        return replace(videos, **{field.name: self.gather(getattr(videos, field.name)) for field in fields(videos)})

    def gather_texts(self, part: Tensor, num_captions: int) -> Tensor:
        """As `gather`, for rows that begin with one caption of each of the rank's clips, then another of each, ..."""
        if self.size == 1:
            return part
        return self.gather(part).unflatten(0, (self.size, num_captions, -1)).transpose(0, 1).flatten(0, 2)

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over ranks."""
        if self.alone:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        all_together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(all_together)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, all_together.split(sizes), strict=True):
            gradient.copy_(total.view_as(gradient))

    def copy_weights(self, model: nn.Module) -> None:
        """Give every rank the first one's weights and buffers."""
        if not self.alone:
            with torch.no_grad():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, 0)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first rank makes; the others wait for it."""
        if self.alone:
            return make()
        found = [make() if self.is_first else None]
        dist.broadcast_object_list(found, 0, device=torch.device("cpu"))
        return found[0]     # type: ignore[return-value]

    def all_agree(self, here: bool) -> bool:
        """Whether it is so on every rank."""
        if self.alone:
            return here
        answer = torch.tensor(int(here))
        dist.all_reduce(answer, dist.ReduceOp.MIN)
        return bool(answer)


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is the sum over ranks of what each of them has for this rank's part."""

    @staticmethod
    def forward(ctx, part: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.rows = ranks, len(part)
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(ranks.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.ranks.rank * ctx.rows:(ctx.ranks.rank + 1) * ctx.rows], None
