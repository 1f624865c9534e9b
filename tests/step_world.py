"""Batches of random clips, the gradients of their loss, and how far two sets of tensors are apart."""

import weakref
from collections.abc import Mapping, Sequence

import torch
from model_world import COLOURS, FRAMES, SIZE, mask_of, tiny_model, train_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hcmi.model import HcmiModel
from hcmi.ranks import ALONE, Ranks
from hcmi.shards import TrainBatch
from hcmi.train.parts import Parts
from hcmi.train.step import batch_loss


def random_batch(clips: int, seed: int = 0) -> TrainBatch:
    """Clips of 1 to 4 random frames with two captions each, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (clips, FRAMES, 4, 4, 3), dtype=torch.uint8, generator=generator)
    frames = blocks.repeat_interleave(SIZE // 4, -3).repeat_interleave(SIZE // 4, -2)
    mask_BT = mask_of([1 + number % FRAMES for number in range(clips)], FRAMES)
    frames[~mask_BT] = 0
    names = list(COLOURS)
    captions = [[" then ".join(names[(row + turn + word) % len(names)] for word in range(1 + (row * turn) % 5))
                 for row in range(clips)] for turn in (1, 2)]
    return TrainBatch(list(range(clips)), captions, frames, mask_BT)


def part_of(batch: TrainBatch, rows: Sequence[int]) -> TrainBatch:
    rows = list(rows)
    return TrainBatch([batch.rows[row] for row in rows], [[turn[row] for row in rows] for turn in batch.captions],
                      batch.frames_BTHXC[rows], batch.frame_mask_BT[rows])


def wild_model(head: str) -> HcmiModel:
    return tiny_model(head, wild=True).train()


def gradients(model: HcmiModel, batch: TrainBatch, denoise: str = "off", precision: str = "float32",
              micro_batch: int = 0, ranks: Ranks = ALONE, parts: Parts | None = None) -> dict[str, Tensor]:
    """Gradient of each weight, the loss as `loss`, and what a step remembers of its clips."""
    config = train_config(denoise=denoise, denoise_by="both")
    model.zero_grad(set_to_none=True)
    total, result = batch_loss(model, batch, config, denoise, precision, None, micro_batch, ranks, parts)
    (total / ranks.size).backward()
    ranks.sum_gradients(model)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    remembered = {"video_BD": result.video_BD} | ({} if result.views_2BD is None else {"views": result.views_2BD})
    return {**found, **remembered, "loss": total.detach()}


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Length of the difference over the length of `expected`, all tensors taken as one vector."""
    assert found.keys() == expected.keys()
    lengths = [sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
               for tensors in ([found[name] - tensor for name, tensor in expected.items()], expected.values())]
    return lengths[0] / lengths[1]


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal but for the rounding of sums in another order: all together, and tensor by tensor.

    A softmax is blind to some of its biases. Their gradients are rounding and nothing else, so tensors that are all but
    0 beside the others are measured by the others.
    """
    assert distance(found, expected) < 1e-6
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        apart = float((found[name] - tensor).abs().max()) / max(float(tensor.abs().max()), 1e-3 * largest)
        assert apart < 2e-5, f"{name}: {apart}"


class PeakBytes(TorchDispatchMode):
    """The most that tensors which were made inside the block have held at one time."""

    def __enter__(self):
        self.now, self.most, self.known = 0, 0, set()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return made

    def free(self, number: int, size: int) -> None:
        self.known.discard(number)
        self.now -= size
