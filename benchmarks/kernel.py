"""Speed and memory of the similarity kernel on a GPU. `similarity.py --device cuda` adds these figures to its own.

    python benchmarks/kernel.py

By itself it needs torch with Triton and nothing else of what `hcmi` needs, and less than a minute. Random unit tokens
in bfloat16, D 512, 32 words, 12 frames, no padding:

- kernel_share: useful operations a second of scoring 10,000 texts and 10,000 videos by the words' side, divided by
  those of a square matrix product measured before and after. kernel_both_share: the same for both sides at once.
- kernel_einsum_ratio: time of the plain formula, which makes all token scores, divided by the kernel's, for 2,048 texts
  and videos. kernel_training_ratio: the same with gradients, for the 768 texts and 128 videos of a training step.
- kernel_training_share: as kernel_share, with the three products of a step with gradients, for 6,144 texts and 1,024
  videos.
- *_memory_mb: memory taken beyond tokens and result (without gradients) or gradients (with them), at most; plain_*:
  that of the plain formula.
- kernel_error: the largest difference from double precision on the same rounded tokens.
- *_compile_seconds: what compiling took when a kind of work was met for the first time.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from common import table
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
WORDS, FRAMES, DIM, SQUARE = 32, 12, 512, 8192
GALLERY, EINSUM, STEP, LARGE_STEP = (10_000, 10_000), (2048, 2048), (768, 128), (6144, 1024)


def load_fused() -> ModuleType:
    """`hcmi.model.fused` without the door of its room, which needs packages that a bare machine lacks."""
    sys.path.insert(0, str(ROOT))
    room = ModuleType("hcmi.model")
    room.__path__ = [str(ROOT / "hcmi/model")]
    sys.modules.setdefault("hcmi.model", room)
    return importlib.import_module("hcmi.model.fused")


def kernel_figures(device: str = "cuda", scale: int = 1) -> dict[str, float]:
    """All figures. `scale` divides the numbers of texts and videos, for a try without a GPU."""
    fused, side = load_fused(), SQUARE // scale
    square = torch.randn(side, side, device=device).to(torch.bfloat16)

    def peak() -> float:
        return 2 * side ** 3 / median_seconds(lambda: square @ square)

    with torch.no_grad():
        figures = scoring(fused, device, scale, peak)
    return figures | training(fused, device, scale, peak)


def scoring(fused: ModuleType, device: str, scale: int, peak: Callable[[], float]) -> dict[str, float]:
    gallery, einsum = smaller(GALLERY, scale), smaller(EINSUM, scale)
    of_gallery, of_einsum = made_up(gallery, device), made_up(einsum, device)
    few = [tensor[:64] for tensor in of_einsum]
    figures = {"kernel_compile_seconds": seconds(lambda: fused.fused_max_sim(*few))
               + seconds(lambda: fused.fused_token_interaction(*few))}
    exact = plain_max_sim(*(tensor.double() for tensor in few))
    figures["kernel_error"] = float((fused.fused_max_sim(*few) - exact).abs().max())
    for name, function in (("kernel", fused.fused_max_sim), ("kernel_both", fused.fused_token_interaction)):
        before = peak()
        rate = products(gallery) / median_seconds(lambda function=function: function(*of_gallery), 3)
        peak_rate = (before + peak()) / 2
        figures |= {f"{name}_tflops": rate / 1e12, f"{name}_peak_tflops": peak_rate / 1e12,
                    f"{name}_share": rate / peak_rate}
    return figures | {
        "kernel_memory_mb": taken(lambda: fused.fused_max_sim(*of_gallery), device),
        "kernel_einsum_ratio": (median_seconds(lambda: plain_max_sim(*of_einsum))
                                / median_seconds(lambda: fused.fused_max_sim(*of_einsum))),
        "plain_memory_mb": taken(lambda: plain_max_sim(*of_einsum), device)}


def training(fused: ModuleType, device: str, scale: int, peak: Callable[[], float]) -> dict[str, float]:
    step, large_step = smaller(STEP, scale), smaller(LARGE_STEP, scale)
    of_step, of_large = made_up(step, device), made_up(large_step, device)
    figures = {"kernel_training_compile_seconds": seconds(lambda: with_gradients(fused.fused_max_sim, of_step)),
               "kernel_training_ratio": (median_seconds(lambda: with_gradients(plain_max_sim, of_step))
                                         / median_seconds(lambda: with_gradients(fused.fused_max_sim, of_step)))}
    for name, function in (("kernel", fused.fused_max_sim), ("plain", plain_max_sim)):
        figures[f"{name}_training_memory_mb"] = taken(lambda function=function: with_gradients(function, of_step),
                                                      device)
    before = peak()
    rate = 3 * products(large_step) / median_seconds(lambda: with_gradients(fused.fused_max_sim, of_large), 3)
    return figures | {"kernel_training_share": rate / ((before + peak()) / 2)}


def smaller(size: tuple[int, int], scale: int) -> list[int]:
    return [max(count // scale, 1) for count in size]


def made_up(size: list[int], device: str) -> list[Tensor]:
    """Texts and videos with random tokens and weights, in bfloat16 and float32."""
    generator = torch.Generator(device).manual_seed(0)
    sides = []
    for sets, tokens in zip(size, (WORDS, FRAMES), strict=True):
        vectors = torch.randn(sets, tokens, DIM, generator=generator, device=device)
        sides += [torch.nn.functional.normalize(vectors, dim=-1).to(torch.bfloat16),
                  torch.rand(sets, tokens, generator=generator, device=device).softmax(1)]
    return sides


def plain_max_sim(texts_QWD: Tensor, weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor) -> Tensor:
    """The words' side by the whole token tensor."""
    best_QWV = torch.einsum("qwd,vtd->qwvt", texts_QWD, videos_VTD).masked_fill(video_weights_VT <= 0, -1).max(3).values
    return torch.einsum("qwv,qw->qv", best_QWV, weights_QW.to(best_QWV.dtype))


def with_gradients(function: Callable[..., Tensor], of_both: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().requires_grad_() for tensor in of_both[:3]]
    scores_QV = function(*leaves, of_both[3])
    return torch.autograd.grad(scores_QV.float().square().sum(), leaves)


def products(size: list[int]) -> float:
    """Operations of all token scores."""
    return 2.0 * DIM * WORDS * FRAMES * size[0] * size[1]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], times: int = 5) -> float:
    seconds(work)
    return sorted(seconds(work) for _ in range(times))[times // 2]


def taken(work: Callable[[], object], device: str) -> float:
    """MiB that were allocated at most, beyond what was there before and what `work` returns."""
    if device == "cpu":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    kept = torch.cuda.memory_allocated() - before
    del result
    return (torch.cuda.max_memory_allocated() - before - kept) / 2**20


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("benchmarks/kernel.py: need a CUDA device, got none. Run it on a machine with a GPU.")
    print(torch.cuda.get_device_name())
    print(table(["figure", "value"], kernel_figures().items()))
