"""Time and peak memory of a training step, measured in a separate process for heads.py and train_step.py.

    python benchmarks/step.py HEAD DEVICE [small|vit [MICRO_BATCH [BATCH]]]

`small`: towers and batches of params.yaml, unless another batch is given, which is timed for two steps. `vit`: towers
of 12 layers and width 512 at 224 pixels, slightly smaller than CLIP ViT-B/32, and trained as pretrained towers are, in
batches of 32, or of 128 on a GPU.
"""

import json
import sys
import time
from itertools import chain
from pathlib import Path

import torch
from common import shipped_params
from torch import nn

from hcmi.config import ScratchConfig, load_params
from hcmi.model import new_retriever
from hcmi.runtime import pick_device, pick_precision, tune_allocator
from hcmi.scenes import scene_clips
from hcmi.shards import TrainBatch
from hcmi.train import make_optimizers, training_step

ROOT = Path(__file__).resolve().parents[1]
VIT = {"width": 512, "vision_layers": 12, "text_layers": 12, "heads": 8, "stem": "patch", "patch": 32,
       "vocab_size": 1000}
VIT_BATCH = {"cpu": 32, "cuda": 128}
WARM_AND_STEPS = {("small", "cpu"): (3, 8), ("vit", "cpu"): (1, 1),
                  ("small", "cuda"): (5, 30), ("vit", "cuda"): (3, 10)}


def resident_mb(which: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) / 1024


def main(head: str, device_name: str, towers: str = "small", micro_batch: str = "0", batch: str = "") -> None:
    params = load_params(shipped_params())
    section = params.model.model_copy(update={"head": head})
    size, batch_size = params.shards.size, params.train.batch_size
    device = pick_device(device_name)
    if towers == "vit":
        section = section.model_copy(update={"scratch": ScratchConfig.model_validate(VIT)})
        size, batch_size = 224, VIT_BATCH[device.type]
    warm, steps = WARM_AND_STEPS[towers, device.type]
    if batch:
        batch_size, warm, steps = int(batch), 1, 2
    tune_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frames = section.num_frames
    clips = list(scene_clips(params.dataset.scenes, "train", 0, batch_size))
    captions = [[clip.captions[number % len(clip.captions)] for clip in clips]
                for number in range(params.train.captions_per_clip)]
    model = new_retriever(section, size, list(chain(*captions))).train()
    if towers == "vit":
        model.config.backbone = "as if pretrained"      # AdamW for the towers
    nn.Module.to(model, device)
    optimizers, precision = make_optimizers(model, params.train), pick_precision(params.train.precision, device)
    pixels = torch.randint(0, 256, (len(clips), frames, size, size, 3), dtype=torch.uint8)
    given = TrainBatch(list(range(len(clips))), captions, pixels,
                       torch.ones(len(clips), frames, dtype=torch.bool))
    before = resident_mb("VmRSS")
    for step in range(warm + steps):
        if step == warm:
            if device.type == "cuda":
                torch.cuda.synchronize()        # a step only launches work
            started = time.perf_counter() if device.type == "cuda" else time.process_time()
        training_step(model, optimizers, given, params.train, params.train.loss.denoise, precision, None,
                      int(micro_batch))
    if device.type == "cuda":
        torch.cuda.synchronize()
    ended = time.perf_counter() if device.type == "cuda" else time.process_time()
    peak = (torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident_mb("VmHWM") - before)
    print(json.dumps({"seconds": (ended - started) / steps, "peak_mb": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
