"""Speed of the exact three-level similarity as a share of the machine's matrix-product rate, and its memory.

    python benchmarks/similarity.py [--quick] [--device cuda]

10,000 texts of 32 words and 8 phrases against 10,000 videos of 12 frames and 4 clips, D 512, no padding, tokens
memory-mapped in half precision. Figures:

- peak_share: useful operations a second, divided by those of a square matrix product in the same type, which is
  measured every few blocks of the same run. The lower of float32 and bfloat16.
- peak_memory_mb: the peak memory of this process, tokens included, until all pairs were scored in both types.
- einsum_ratio: time of the plain formula (`reference`, as in published code: float32, whole token tensor) divided by
  ours in bfloat16, on the largest gallery whose token tensor fits in memory. The two types differ, so there are also
  the ratios within one type (einsum_ratio_float32, einsum_ratio_bfloat16), the float32 ratio with captions of natural
  length, 6 to 20 of 32 tokens (einsum_ratio_float32_padded), and the largest error of bfloat16 (bfloat16_error).
- with `--device cuda` also kernel_*: those of the kernel by itself, forward and with gradients (`kernel.py`).
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import table, write_result
from kernel import kernel_figures, seconds
from torch import Tensor

from hcmi.model import BLOCK, similarity_blocks, tiled_similarities
from hcmi.progress import track
from hcmi.runtime import tune_allocator
from hcmi.types import TextTokens, VideoTokens

FRAMES, CLIPS, WORDS, PHRASES, DIM = 12, 4, 32, 8, 512
FLOPS_A_PAIR = 2 * DIM * (WORDS * FRAMES + PHRASES * CLIPS + 1)
SQUARE = 4096           # side of the matrix product that gives the machine's rate
PEAK_EVERY = 8          # blocks between two measurements of that rate
EINSUM_BYTES = 10e9     # upper limit: with more, the plain formula takes minutes
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,048 x 2,048 instead of 10,000 x 10,000")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    tune_allocator()
    torch.set_grad_enabled(False)
    size, figures = 2048 if options.quick else 10_000, {}
    with tempfile.TemporaryDirectory() as folder:
        texts, videos = made_up_tokens(size, Path(folder))
        for name, dtype in TYPES.items():
            rate, peak = measured_rates(texts, videos, dtype, options.device)
            figures |= {f"{name}_gflops": rate / 1e9, f"{name}_peak_gflops": peak / 1e9, f"{name}_share": rate / peak}
    figures["peak_share"] = min(figures[f"{name}_share"] for name in TYPES)
    figures["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures |= against_einsum(512 if options.quick else largest_size(options.device), options.device)
    if options.device != "cpu":
        with torch.enable_grad():
            figures |= kernel_figures(options.device)
    print(table(["figure", "value"], figures.items()))
    print(write_result("similarity" if options.device == "cpu" else "similarity_cuda", figures, options.quick))


def made_up_tokens(size: int, folder: Path) -> tuple[TextTokens, VideoTokens]:
    """Random unit vectors in float16, mapped from files, with equal weights."""
    def vectors(name: str, *shape: int) -> Tensor:
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (size, *shape, DIM))
        generator = np.random.default_rng(len(name))
        for start in range(0, size, 500):
            block = generator.standard_normal((min(500, size - start), *shape, DIM), np.float32)
            array[start:start + 500] = block / np.linalg.norm(block, axis=-1, keepdims=True)
        array.flush()
        return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))

    def weights(count: int) -> Tensor:
        return torch.full((size, count), 1 / count)

    return (TextTokens(vectors("text"), vectors("words", WORDS), vectors("phrases", PHRASES), weights(WORDS),
                       weights(PHRASES)),
            VideoTokens(vectors("video"), vectors("frames", FRAMES), vectors("clips", CLIPS), weights(FRAMES),
                        weights(CLIPS)))


def measured_rates(texts: TextTokens, videos: VideoTokens, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Operations a second of scoring all pairs, and of the square matrix products measured in between."""
    square = torch.randn(SQUARE, SQUARE, device=device).to(dtype)

    def product_seconds() -> float:
        return seconds(lambda: square @ square)

    product_seconds()
    peaks, best, spent = [product_seconds()], torch.full((len(texts),), -torch.inf), 0.0
    blocks = similarity_blocks(texts, videos, dtype=dtype) if device == "cpu" else \
        similarity_blocks(texts.to(device), videos.to(device), dtype=dtype)
    total = (-(-len(texts) // BLOCK)) * (-(-len(videos) // BLOCK))
    started = time.perf_counter()
    for number, (queries, _, levels) in enumerate(track(blocks, str(dtype), total, "block")):
        best[queries] = torch.maximum(best[queries], sum(levels.values()).amax(1).cpu())    # the scores must be used
        spent += time.perf_counter() - started
        if number % PEAK_EVERY == PEAK_EVERY - 1:
            peaks.append(product_seconds())
        started = time.perf_counter()
    peaks.append(product_seconds())
    assert bool(best.isfinite().all()), "every query must meet every video"
    return len(texts) * len(videos) * FLOPS_A_PAIR / spent, 2 * SQUARE ** 3 / float(np.median(peaks))


def largest_size(device: str) -> int:
    """Number of texts and videos whose token tensor, with the plain formula's copies, fills half of free memory."""
    if device == "cpu":
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        free = torch.cuda.mem_get_info()[0]
    return int((min(free / 2, EINSUM_BYTES) / (2.6 * 4 * WORDS * FRAMES)) ** 0.5)


def against_einsum(size: int, device: str) -> dict[str, float]:
    """Time of the plain formula divided by ours, as several ratios, and the error of bfloat16."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, DIM, generator=generator), dim=-1).to(device)

    def even(count: int, lengths: Tensor | None = None) -> Tensor:
        logits = torch.zeros(size, count)
        if lengths is not None:
            logits = logits.masked_fill(torch.arange(count) >= lengths[:, None], -torch.inf)
        return logits.softmax(1).to(device)

    texts = TextTokens(unit(size), unit(size, WORDS), unit(size, PHRASES), even(WORDS), even(PHRASES))
    videos = VideoTokens(unit(size), unit(size, FRAMES), unit(size, CLIPS), even(FRAMES), even(CLIPS))
    natural = torch.randint(6, 21, (size,), generator=generator)
    padded = TextTokens(texts.sentence_BD, texts.words_BWD, texts.phrases_BPD, even(WORDS, natural), even(PHRASES))
    ours = {name: least_seconds(lambda dtype=dtype: tiled_similarities(texts, videos, dtype=dtype))
            for name, dtype in TYPES.items()}
    plain = {name: least_seconds(lambda dtype=dtype: reference(texts.to(dtype), videos.to(dtype)))
             for name, dtype in TYPES.items()}
    ours_padded = least_seconds(lambda: tiled_similarities(padded, videos))
    few = texts[:256], videos[:256]
    exact, rounded = (tiled_similarities(*few, dtype=dtype) for dtype in TYPES.values())
    check = reference(*few)
    for level in exact:
        assert (exact[level] - check[level].cpu()).abs().max() < 1e-5, level
    return {"einsum_size": size, "einsum_ratio": plain["float32"] / ours["bfloat16"],
            "einsum_ratio_float32": plain["float32"] / ours["float32"],
            "einsum_ratio_bfloat16": plain["bfloat16"] / ours["bfloat16"],
            "einsum_ratio_float32_padded": plain["float32"] / ours_padded,
            "bfloat16_error": max(float((exact[level] - rounded[level]).abs().max()) for level in exact)}


def reference(texts: TextTokens, videos: VideoTokens) -> dict[str, Tensor]:
    """The three levels with both sides of the interaction as DRL's public code computes them (arXiv 2203.07111).

    It computes the whole token tensor and masks it.
    """
    told_Q1 = texts.sentence_BD.norm(dim=1, keepdim=True) / 4

    def mixed(a_QWD: Tensor, a_weights_QW: Tensor, b_VTD: Tensor, b_weights_VT: Tensor) -> Tensor:
        sims_QVWT = torch.einsum("atd,bvd->abtv", a_QWD, b_VTD)
        sims_QVWT = torch.einsum("abtv,at->abtv", sims_QVWT, (a_weights_QW > 0).to(sims_QVWT.dtype))
        sims_QVWT = torch.einsum("abtv,bv->abtv", sims_QVWT, (b_weights_VT > 0).to(sims_QVWT.dtype))
        shown_QV = torch.einsum("abt,at->ab", sims_QVWT.max(dim=-1)[0], a_weights_QW)
        told_QV = torch.einsum("abv,bv->ab", sims_QVWT.max(dim=-2)[0], b_weights_VT)
        return (1 - told_Q1) * shown_QV + told_Q1 * told_QV

    return {"frame_word": mixed(texts.words_BWD, texts.word_weights_BW, videos.frames_BTD, videos.frame_weights_BT),
            "clip_phrase": mixed(texts.phrases_BPD, texts.phrase_weights_BP, videos.clips_BCD, videos.clip_weights_BC),
            "video_sentence": texts.sentence_BD @ videos.video_BD.T}


def least_seconds(work: Callable[[], object], times: int = 2) -> float:
    return min(seconds(work) for _ in range(times))


if __name__ == "__main__":
    main()
