"""The GPU's kernels on a GPU, or interpreted by Triton and compiled for a GPU that is not there."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hcmi.model import fused

TESTS = Path(__file__).parent
KERNELS = TESTS.parents[1] / "hcmi/model/kernels.py"
needs_triton = pytest.mark.skipif(find_spec("triton") is None,
                                  reason="needs Triton, which comes with CUDA builds of torch")
if torch.cuda.is_available() and find_spec("triton"):
    from fused_kernels import *  # noqa: F403


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests of fused_kernels run here, compiled")
def test_kernels_pass_their_tests_when_interpreted():
    """In a process of its own, because Triton decides at its import whether it interprets."""
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "fused_kernels.py"],
                         cwd=TESTS.parents[1], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stdout


COMPILE = """
import importlib.util, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
TYPES = {"texts": "*bf16", "videos": "*bf16", "word_best": "*bf16", "frame_best": "*bf16", "word_index": "*u8",
         "frame_index": "*u8", "text_order": "*i32", "num_words_Q": "*i32", "num_frames_V": "*i32",
         "text_weights": "*fp32", "video_weights": "*fp32", "words_out": "*fp32", "frames_out": "*fp32"}
for keep in (False, True):
    tile = kernels.tile_for(32, 4, 2, keep)
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    constants = dict(D=512, WORDS_CHUNK=32, FRAMES_CHUNK=4, BOTH=True, KEEP=keep, NOTHING=255, PRECISION="tf32x3",
                     **tile)
    names = kernels.interaction_kernel.arg_names
    signature = {name: TYPES.get(name, "constexpr" if name in constants else "i32") for name in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names)
               if name in TYPES or name in ("texts_q", "texts_w", "videos_v", "videos_t")}
    found = compile(ASTSource(fn=kernels.interaction_kernel, signature=signature, constexprs=constants, attrs=aligned),
                    target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in found.asm["ptx"], "need products on the tensor cores"
    assert "max.NaN.f32" in found.asm["ptx"], "need maxima that do not pass over NaN"
    assert "atom." not in found.asm["ptx"], "need one order of sums"
print("compiled")
"""


@needs_triton
def test_kernels_compile_for_an_h100_when_there_is_none():
    run = subprocess.run([sys.executable, "-c", COMPILE, str(KERNELS)], capture_output=True, text=True)
    assert run.stdout.strip() == "compiled", run.stderr


def test_kernels_are_not_for_the_processor_and_not_for_double_precision():
    tokens = torch.zeros(1, 1, 1)
    assert not fused.has_kernels_for(tokens, tokens)
    if torch.cuda.is_available() and find_spec("triton"):
        assert fused.has_kernels_for(tokens.cuda(), tokens.cuda())
        assert not fused.has_kernels_for(tokens.double().cuda(), tokens.double().cuda())


def test_kernels_that_fail_on_a_card_are_reported_once_and_not_used(monkeypatch):
    def fails(device):
        raise RuntimeError("ptxas\n  exited with 1")

    monkeypatch.setattr(fused, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fused, "_try_small_case", fails)
    fused._card_can.cache_clear()
    with pytest.warns(UserWarning, match=r"kernels on cuda:0: need .*, got: ptxas exited with 1\. The plain formula"):
        assert not fused._card_can(0)
    assert not fused._card_can(0)
    fused._card_can.cache_clear()
