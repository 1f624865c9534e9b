"""Compiled parts give what the plain ones give, and compiling is asked for when it pays."""

import pytest
import torch
from model_world import tiny_model, train_config
from step_world import assert_same_gradients, gradients, random_batch, wild_model
from train_world import run

from hcmi.errors import MachineError
from hcmi.train.parts import Parts, pick_parts, wants_compiled

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_gradients_are_those_of_the_plain_step_when_parts_are_traced(micro_batch):
    """Without code for the machine, which takes a compiler minutes: what the tracer has made is run as it is."""
    model, batch = wild_model("hcmi"), random_batch(8)
    parts = Parts.of(model).compiled(backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    assert_same_gradients(gradients(model, batch, "positive", micro_batch=micro_batch, parts=parts),
                          gradients(model, batch, "positive"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gradients_are_those_of_the_plain_step_when_parts_are_compiled():
    model, batch = wild_model("hcmi"), random_batch(8)
    parts = Parts.of(model).compiled()
    assert_same_gradients(gradients(model, batch, parts=parts), gradients(model, batch))
    before = dict(torch._dynamo.utils.counters["stats"])
    for number in (1, 2):       # texts of other lengths
        batch = random_batch(8, number)
        assert_same_gradients(gradients(model, batch, parts=parts), gradients(model, batch))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= before["unique_graphs"] + 1


def test_planted_fault_is_found_when_parts_are_compared():
    model, batch = wild_model("mean_pool"), random_batch(8)
    plain = Parts.of(model)
    faulty = Parts(lambda frames, mask: plain.videos(frames.flip(0), mask), plain.texts)
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients(model, batch, parts=faulty), gradients(model, batch))


@pytest.mark.parametrize(("wanted", "device", "steps", "found"), [
    ("auto", CPU, 10**6, False), ("auto", GPU, 100, False), ("auto", GPU, 10**4, True), (True, CPU, 1, True),
    (False, GPU, 10**6, False)])
def test_parts_are_compiled_when_a_run_is_long_or_when_asked_for(wanted, device, steps, found):
    assert wants_compiled(train_config(compile=wanted), device, steps) is found


def test_training_says_so_when_nothing_can_be_compiled(monkeypatch):
    def fails(parts):
        raise torch._dynamo.exc.TorchDynamoException("backend='inductor' raised:\nno C++ compiler\n\n")

    model = tiny_model("mean_pool")
    with pytest.raises(MachineError, match=r"^train\.compile: need a compiler that torch can use, got: no C\+\+"):
        pick_parts(train_config(compile=True), model, 1, fails)
    monkeypatch.setattr("hcmi.train.parts.wants_compiled", lambda *_: True)
    with pytest.warns(UserWarning, match="no C.. compiler. Training goes on without it"):
        parts = pick_parts(train_config(compile="auto"), model, 1, fails)
    assert parts.texts == model.encode_texts


def test_train_uses_the_parts_that_were_picked(films, tmp_path, monkeypatch):
    compiled, original = [], Parts.compiled

    def traced(parts):
        compiled.append(original(parts, backend="eager"))
        return compiled[-1]

    monkeypatch.setattr(Parts, "compiled", traced)
    summary = run(films, tmp_path, epochs=1, compile=True, batch_size=4)
    assert summary["steps"] == 6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
