"""The same work on a CUDA device as on the processor: training, stopping and going on, encoding, scoring."""

import copy

import pytest
import torch
from model_world import tiny_model, train_config
from step_world import distance, gradients, random_batch, wild_model
from torch import nn
from torch.testing import assert_close
from train_world import StopError, curves, run, save_after_every_step, stop_at

from hcmi.ahead import on_device
from hcmi.encode import encode_split
from hcmi.errors import ModelError
from hcmi.model import encode, load_retriever, multiply_patches, score
from hcmi.model.heads import HEADS
from hcmi.shards import ShardReader, TrainLoader
from hcmi.train import make_optimizers, training_step
from hcmi.train import stage as subject
from hcmi.train.parts import Parts
from hcmi.train.readback import Readback

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products as the processor makes them, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("denoise", ["off", "positive", "mask"])
def test_training_step_gives_the_processors_figures_when_on_a_gpu(films, head, denoise):
    config = train_config(denoise=denoise, denoise_by="both")
    here = tiny_model(head, wild=True).train()
    there = copy.deepcopy(here)
    nn.Module.to(there, "cuda")
    batch = next(iter(TrainLoader(ShardReader(films, "train"), 8, here.config.num_frames, seed=0, num_workers=0,
                                  num_captions=2)))
    results = [training_step(model, make_optimizers(model, config), batch, config, denoise, "float32")
               for model in (here, there)]
    readback = Readback()
    expected, got = (result for each in results for result in [*readback.add(each), *readback.rest()])
    assert set(got.figures) == set(expected.figures)
    for name, value in expected.figures.items():
        assert float(got.figures[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
    for name in ("video_BD", "views_2BD") if denoise != "off" else ("video_BD",):
        assert getattr(got, name).device.type == "cpu"
        assert_close(getattr(got, name), getattr(expected, name), atol=1e-4, rtol=1e-4)
    gradients = {name: weight.grad for name, weight in here.named_parameters() if weight.grad is not None}
    for name, weight in there.named_parameters():
        if name in gradients:
            assert weight.grad is not None, name
            assert_close(weight.grad.cpu(), gradients[name], atol=1e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_train_learns_and_its_model_loads_on_the_processor_when_made_on_a_gpu(films, tmp_path, precision):
    summary = run(films, tmp_path, epochs=12, device="cuda", precision=precision)
    losses = [float(line.split("\t")[1]) for line in curves(tmp_path)["train/loss_video_sentence.tsv"].splitlines()[1:]]
    assert losses[-1] < 0.7 * losses[0]
    assert summary["val_R@1"] >= 50      # chance: 33
    assert (summary["device"], summary["precision"]) == ("cuda", precision)
    assert {weight.device.type for weight in load_retriever(tmp_path / "model").parameters()} == {"cpu"}


def test_train_picks_the_gpu_and_bfloat16_when_both_are_auto(films, tmp_path):
    if not torch.cuda.is_bf16_supported():
        pytest.skip("needs a GPU that multiplies bfloat16")
    summary = run(films, tmp_path, epochs=1, device="auto", precision="auto")
    assert (summary["device"], summary["precision"]) == ("cuda", "bfloat16")


def test_train_goes_on_on_a_gpu_when_it_was_stopped_there(films, tmp_path, monkeypatch):
    save_after_every_step(monkeypatch)
    steps = []
    monkeypatch.setattr(subject, "training_step", lambda *args: steps.append(1) or training_step(*args))
    with monkeypatch.context() as patch:
        stop_at(patch, "step", 6)
        with pytest.raises(StopError):
            run(films, tmp_path, device="cuda")
    assert run(films, tmp_path, device="cuda")["steps"] == 9
    assert len(steps) == 9


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_the_processors_when_encoded_on_a_gpu(films, head, monkeypatch):
    monkeypatch.setattr(encode, "encode_precision", lambda device: "float32")
    reader = ShardReader(films, "test")
    here = tiny_model(head, wild=True)
    there = copy.deepcopy(here)
    nn.Module.to(there, "cuda")
    scores = []
    for model in (here, there):
        encoded = encode_split(model, reader, 2)
        assert encoded.videos.video_BD.device.type == "cpu"
        scores.append(score(model, encoded.texts, encoded.videos))
    for level, expected in scores[0].items():
        assert scores[1][level].device.type == "cpu"
        assert_close(scores[1][level], expected, atol=1e-4, rtol=1e-4, msg=level)


# how fast

def test_training_step_reads_nothing_back_when_it_is_on_a_gpu(films):
    """But for the margin, whose own scores are picked by a mask."""
    config = train_config(denoise="positive", denoise_by="both", margin_weight=0.0)
    model = nn.Module.to(tiny_model(wild=True).train(), "cuda")
    optimizers = make_optimizers(model, config)
    loader = TrainLoader(ShardReader(films, "train"), 8, model.config.num_frames, num_captions=2, device="cuda")
    for number, batch in enumerate(loader):
        if number > 1:      # what is made once has been made
            torch.cuda.set_sync_debug_mode("error")
        try:
            training_step(model, optimizers, batch, config, "positive", "bfloat16")
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_when_they_are_copied_ahead(films, num_workers):
    reader = ShardReader(films, "train")
    here, there = (list(TrainLoader(reader, 4, 3, num_workers=num_workers, device=device))
                   for device in ("cpu", "cuda"))
    assert len(here) == len(there) == 6
    for expected, found in zip(here, there, strict=True):
        assert found.frames_BTHXC.is_cuda
        assert found.rows == expected.rows
        assert torch.equal(found.frames_BTHXC.cpu(), expected.frames_BTHXC)
        assert torch.equal(found.frame_mask_BT.cpu(), expected.frame_mask_BT)


def test_batches_copied_ahead_are_not_overwritten_while_a_gpu_is_busy():
    pictures = [torch.full((4, 1 << 20), number, dtype=torch.uint8) for number in range(12)]
    masks = torch.ones(1, dtype=torch.bool)
    slow = torch.randn(4096, 4096, device="cuda")
    sums = []
    for _, there, _ in on_device(((None, picture.clone(), masks) for picture in pictures), torch.device("cuda")):
        for _ in range(20):
            slow = (slow @ slow).clamp(-1, 1)
        sums.append(there.sum())
    assert [int(total) for total in sums] == [number * 4 << 20 for number in range(12)]


def test_gradients_are_those_of_the_plain_step_when_parts_are_compiled_on_a_gpu():
    model, batch = nn.Module.to(wild_model("hcmi"), "cuda"), random_batch(8)
    parts = Parts.of(model).compiled()
    found, expected = gradients(model, batch, parts=parts), gradients(model, batch)
    assert distance(found, expected) < 1e-4
    for number in (1, 2):
        other = random_batch(8, number)
        assert distance(gradients(model, other, parts=parts), gradients(model, other)) < 1e-4


def test_train_learns_when_it_is_compiled(films, tmp_path):
    summary = run(films, tmp_path, epochs=12, device="cuda", precision="bfloat16", compile=True)
    assert summary["val_R@1"] >= 50


def test_gradients_are_those_of_a_convolution_when_patches_are_products():
    plain = nn.Module.to(wild_model("mean_pool"), "cuda")
    product, batch = copy.deepcopy(plain), random_batch(8)
    multiply_patches(product)
    assert distance(gradients(product, batch), gradients(plain, batch)) < 1e-5


def test_tokens_in_bfloat16_are_near_those_in_float32(films, monkeypatch):
    if not torch.cuda.is_bf16_supported():
        pytest.skip("needs a GPU that multiplies bfloat16")
    model, reader = nn.Module.to(tiny_model(wild=True), "cuda"), ShardReader(films, "train")
    rounded = encode_split(model, reader, 5).videos
    monkeypatch.setattr(encode, "encode_precision", lambda device: "float32")
    exact = encode_split(model, reader, 5).videos
    assert rounded.video_BD.dtype == torch.float32
    cosines = (rounded.video_BD * exact.video_BD).sum(1)
    assert 0.99 < float(cosines.min()) < 1


def test_train_names_the_step_when_a_loss_on_a_gpu_is_not_a_number(films, tmp_path):
    with pytest.raises(ModelError, match=r"^training, step \d+: need a finite loss, got nan\."):
        run(films, tmp_path, lr=1e30, backbone_lr=1e30, marginal_group=1, device="cuda")
    assert not (tmp_path / "model").exists()
