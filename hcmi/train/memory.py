"""What memory a training run takes, from a step of one frame, one caption and a few clips of features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hcmi.config import TrainConfig
from hcmi.model import HcmiModel, token_states
from hcmi.train.objective import total_loss
from hcmi.train.step import TEXT_BUCKETS

PROCESS_BYTES = 800e6       # Python with torch and the other libraries, and freed memory that it keeps
AROUND = 1.15               # of the activations: what the backward pass needs beside them
FLOAT = 4                   # bytes
AUTO_WORKERS = 8            # at most about so many are started where the number is left open


@dataclass(frozen=True)
class Memory:
    """Bytes of a training run. On a GPU `batches`, `copies` and `process` are in the machine's memory."""

    weights: float
    learning: float         # gradients, and what the optimisers keep
    activations: float      # kept for the backward pass, of the clips that are encoded at a time
    batches: float          # frames in the loader, and one batch as numbers
    copies: float           # of the best weights and of a checkpoint while it is written
    process: float = PROCESS_BYTES

    @property
    def on_device(self) -> float:
        return self.weights + self.learning + self.activations

    @property
    def in_machine(self) -> float:
        return self.batches + self.copies + self.process

    @property
    def total(self) -> float:
        return self.on_device + self.in_machine


def training_memory(model: HcmiModel, config: TrainConfig, image_size: int, captions: Sequence[str],
                    precision: str) -> Memory:
    """Estimate from a model whose weights that learn are known (`requires_grad`).

    `captions`: the longest counts. A few frames and clips are computed and not a batch, so this needs little memory
    itself. The model is as before: it is in training only while it is measured.
    """
    was_training = model.training
    model.train()
    try:
        return _training_memory(model, config, image_size, captions, precision)
    finally:
        model.train(was_training)


def _training_memory(model: HcmiModel, config: TrainConfig, image_size: int, captions: Sequence[str],
                     precision: str) -> Memory:
    clips = config.batch_size
    at_once = min(int(config.micro_batch), clips) if config.micro_batch not in ("auto", 0) else clips
    num_frames, texts = model.config.num_frames, clips * config.captions_per_clip
    sizes = {name: FLOAT * weight.numel() for name, weight in model.named_parameters()}
    learning = sum(FLOAT * weight.numel() for weight in model.parameters() if weight.requires_grad)
    kept = config.towers == "frozen"
    saved = sum(size for name, size in sizes.items() if not (kept and name.startswith("towers.")))
    pixels = (2 * model.head.dim if kept else 3 * image_size**2) * num_frames
    workers = AUTO_WORKERS if str(config.num_workers) == "auto" else int(config.num_workers)
    ahead = max(2, 0 if kept else workers) + 2
    text_parts = max(TEXT_BUCKETS, -(-clips // at_once))
    longest = max(captions, key=len, default="a")
    ids_1W, mask_1W = (tensor.to(model.device) for tensor in model.processor.texts([longest]))
    with torch.random.fork_rng(), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        frame = 0.0 if kept else _per_item(lambda count: model.frame_features(torch.zeros(
            1, count, 3, image_size, image_size, device=model.device)), model)
        caption = 0.0 if kept else _per_item(lambda count: token_states(
            model, ids_1W.expand(count, -1), mask_1W.expand(count, -1)), model)
        head = _head_bytes(model, config, ids_1W.shape[1], clips)
    split = 1 if at_once == clips else text_parts
    activations = frame * num_frames * at_once + caption * texts / split + head
    return Memory(sum(sizes.values()), 3.0 * learning, AROUND * activations,
                  float(pixels * clips * (ahead + FLOAT * (at_once / clips))), 2.0 * saved + 2.0 * learning)


def _per_item(forward: Callable[[int], object], model: HcmiModel) -> float:
    """Bytes that the backward pass keeps for one more item."""
    one, three = (_saved_bytes(partial(forward, count), model) for count in (1, 3))
    return max((three - one) / 2, 0.0)


def _head_bytes(model: HcmiModel, config: TrainConfig, num_words: int, clips: int) -> float:
    """Bytes that head and loss keep for so many clips: a parabola through those of a few."""
    dim, device = model.head.dim, model.device

    def step(count: int) -> Tensor:
        texts = count * config.captions_per_clip
        features_BTD = torch.randn(count, model.config.num_frames, dim, device=device, requires_grad=True)
        states_QWD = torch.randn(texts, num_words, dim, device=device, requires_grad=True)
        videos = model.head.video(features_BTD, features_BTD.new_ones(features_BTD.shape[:2], dtype=torch.bool))
        told = model.head.text(states_QWD, states_QWD[:, -1],
                               states_QWD.new_ones(states_QWD.shape[:2], dtype=torch.bool))
        levels = model.head.training_similarities(told, videos)
        return total_loss(model, levels, told.sentence_BD, config, None, "off")[0]

    counts = (2, 4, 6)
    sizes = [_saved_bytes(partial(step, count), model) for count in counts]
    if clips <= counts[-1]:
        return float(np.interp(clips, counts, sizes))
    return max(float(np.polyval(np.polyfit(counts, sizes, 2), clips)), sizes[-1])


def _saved_bytes(forward: Callable[[], object], model: HcmiModel) -> float:
    """Bytes of all tensors that a backward pass would need, without weights; each storage counts once."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor        # held, so that no other tensor gets its place
        return tensor

    def keep_input(_, inputs: tuple[object, ...], named: Mapping[str, object]) -> None:
        first = next((one for one in (*inputs, *named.values()) if isinstance(one, Tensor)), None)
        if first is not None:
            keep(first)

    # a layer that is computed twice keeps its input, which is no saved tensor
    twice = [layer.register_forward_pre_hook(keep_input, with_kwargs=True) for layer in model.modules()
             if getattr(layer, "gradient_checkpointing", False) and layer.training]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    for hook in twice:
        hook.remove()
    total = float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    del result
    return total
