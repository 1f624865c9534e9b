"""Devices, precision, seeds and the allocator."""

import random

import numpy as np
import pytest
import torch

from hcmi import runtime
from hcmi.errors import ConfigError
from hcmi.runtime import pick_device, pick_precision, seed_everything, tune_allocator


def test_pick_device_takes_what_there_is_when_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("name", "count", "message"), [
    ("gpu", 0, "device: need auto, cpu or cuda[:N], got 'gpu'. Correct train.device."),
    ("cuda:x", 0, "device: need auto, cpu or cuda[:N], got 'cuda:x'. Correct train.device."),
    ("cuda", 0, "device: need a CUDA GPU for 'cuda', got none on this machine. Set train.device to auto."),
    ("cuda:3", 2, "device: need a CUDA GPU for 'cuda:3', got 2 on this machine. Set train.device to auto.")])
def test_pick_device_says_what_there_is_when_it_is_not_there(monkeypatch, name, count, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError) as caught:
        pick_device(name)
    assert str(caught.value) == message


def test_pick_device_takes_the_one_that_is_named_when_it_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_pick_precision_follows_the_hardware_when_auto(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert pick_precision("auto", torch.device("cpu")) == expected
    assert pick_precision("float32", torch.device("cpu")) == "float32"
    assert pick_precision("bfloat16", torch.device("cpu")) == "bfloat16"


def test_seed_everything_repeats_all_draws_when_called_again():
    draws = []
    for seed in (3, 3, 4):
        seed_everything(seed)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1] != draws[2]


def test_tune_allocator_does_nothing_when_the_library_is_not_glibc(monkeypatch):
    monkeypatch.setattr(runtime.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: pytest.fail("must not be called"))
    tune_allocator()


def test_tune_allocator_keeps_memory_in_the_process_when_it_is_freed():
    """A freed block of 64 MB is used again without new page faults, once small ones have not been cut from it."""
    import resource

    tune_allocator()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(16 * 2**20).fill_(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(faults() for _ in range(30)) < 2000      # 64 MB are 16,384 pages; untuned it is all of them each time


@pytest.mark.parametrize(("wanted", "device", "processes", "found"), [
    ("auto", "cuda", 1, 15), ("auto", "cuda", 4, 3), ("auto", "cuda", 16, 1), ("auto", "cpu", 1, 1), (0, "cuda", 1, 0),
    (7, "cpu", 2, 7)])
def test_loader_processes_follow_the_cores_when_they_are_auto(monkeypatch, wanted, device, processes, found):
    monkeypatch.setattr(runtime, "count_cores", lambda: 16)
    assert runtime.count_workers(wanted, torch.device(device), processes) == found


def test_tf32_is_allowed_inside_the_block_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    with runtime.tf32(False):
        assert torch.get_float32_matmul_precision() == before == "highest"
    with runtime.tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
