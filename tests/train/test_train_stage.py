"""Training on real shards of plain two-colour films: it learns, and it gives the same model when it is repeated."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from model_world import (
    FRAMES,
    PARAMS,
    SIZE,
    changed,
    make_shards,
    mask_of,
    save_small_clip,
    section,
    tiny_model,
    train_config,
)
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from train_world import StopError, assert_same_run, curves, run, save_after_every_step, stop_at

from hcmi.cli import main
from hcmi.errors import ConfigError, DataError, ModelError
from hcmi.model import load_retriever
from hcmi.model.heads import HEADS
from hcmi.shards import TrainBatch
from hcmi.train import make_optimizers, step, training_step
from hcmi.train import stage as subject
from hcmi.train.objective import total_loss


def batch_of(frames: list[int], captions: list[str], longest: int = FRAMES) -> TrainBatch:
    """Random clips of the given numbers of frames."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(frames), longest, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    mask_BT = mask_of(frames, longest)
    pixels[~mask_BT] = 0
    return TrainBatch(list(range(len(frames))), [captions, captions[::-1]], pixels, mask_BT)


# learning

def test_train_learns_when_films_are_plain(films, tmp_path):
    summary = run(films, tmp_path, epochs=12)
    losses = [float(line.split("\t")[1]) for line in curves(tmp_path)["train/loss_video_sentence.tsv"].splitlines()[1:]]
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert summary["val_R@1"] >= 50      # chance: 33
    assert summary["steps"] == 12 * 3
    metrics = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    assert metrics == {"val": {"R@1": summary["val_R@1"]}, "step": 12}
    assert min(Image.open(tmp_path / "metrics/plots/training.png").size) > 300


def test_train_gives_the_same_weights_and_curves_when_run_again(films, undisturbed, tmp_path):
    run(films, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_train_gives_other_weights_when_the_seed_is_another(films, undisturbed, tmp_path):
    run(films, tmp_path, seed=1)
    with pytest.raises(AssertionError, match="tensors differ"):
        assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_train_writes_a_model_that_loads_when_the_head_is_any(films, tmp_path, head, precision):
    summary = run(films, tmp_path, section(head=head), epochs=1, precision=precision)
    model = load_retriever(tmp_path / "model")
    assert model.config.head == head
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert (summary["steps"], summary["precision"]) == (3, precision)


@pytest.mark.parametrize(("mode", "by"), [("positive", "text"), ("mask", "video"), ("positive", "both")])
def test_train_logs_extra_positives_when_denoising_is_on(films, tmp_path, mode, by):
    run(films, tmp_path, epochs=2, denoise=mode, denoise_by=by, warmup_epochs=1)
    lines = curves(tmp_path)["train/denoise_fired.tsv"].splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == ["1"]      # not in the warm-up epoch
    assert 0 <= float(lines[1].split("\t")[1]) < 8


def test_train_stops_in_one_line_when_known_duplicates_have_no_tag(films, tmp_path):
    with pytest.raises(ConfigError, match=r"^train\.loss\.denoise_by tag: need the tag `meaning` on every training"):
        run(films, tmp_path, denoise="mask", denoise_by="tag")
    assert not (tmp_path / "model").exists()


def test_train_stops_before_the_first_step_when_no_validation_clip_has_a_caption(tmp_path):
    shards = make_shards(tmp_path, uncaptioned=["val"])
    with pytest.raises(ConfigError, match="split val: need captions to choose the best epoch with, got 3 clips"):
        run(shards, tmp_path)
    assert not (tmp_path / "model").exists()


def test_train_fine_tunes_when_the_backbone_is_pretrained(tmp_path_factory, tmp_path):
    folder = save_small_clip(tmp_path / "clip", image_size=SIZE)
    films = make_shards(tmp_path_factory.mktemp("few"), num_train=6)
    run(films, tmp_path, section(backbone=str(folder), num_words=32), epochs=1, batch_size=3, backbone_lr=1e-7)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    moved = (after["towers.visual_projection.weight"] - before["visual_projection.weight"]).abs().max()
    assert 0 < moved < 1e-6


# which epoch is kept

@pytest.mark.parametrize(("recalls", "best", "best_of_few"), [
    ([10.0, 50.0, 30.0], 1, 1), ([50.0, 50.0, 20.0], 0, 1), ([0.0, 0.0, 0.0], 0, 2), ([1.0, 2.0, 3.0], 2, 2)])
@pytest.mark.parametrize("few", [False, True], ids=["many", "few"])
def test_train_keeps_the_epoch_that_is_best_on_validation(films, tmp_path, monkeypatch, few, recalls, best,
                                                          best_of_few):
    """Of epochs that are equally good the first, or the last where few clips are validated."""
    epochs = []
    if few:
        best = best_of_few
    else:
        monkeypatch.setattr(subject, "FEWEST_CLIPS", 1)

    def scripted(model, reader):
        assert reader.split == "val"
        epochs.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"R@1": recalls[len(epochs) - 1], "v2t_R@1": 0.0}

    monkeypatch.setattr(subject, "validate", scripted)
    summary = run(films, tmp_path)
    assert (summary["best_epoch"], summary["val_R@1"]) == (best + 1, recalls[best])
    for name, weight in load_file(tmp_path / "model" / "model.safetensors").items():
        assert torch.equal(weight, epochs[best][name]), name


@pytest.mark.parametrize(("fewest", "best"), [(1, 1), (2, 2)])
def test_train_counts_the_captioned_clips_when_epochs_are_equally_good(films, tmp_path, monkeypatch, fewest, best):
    """One of three clips of validation has captions: with two as the fewest, the last epoch is kept."""
    _, *others = (clip.video_id for clip in subject.ShardReader(films, "val").clips)
    monkeypatch.setattr(subject, "FEWEST_CLIPS", fewest)
    monkeypatch.setattr(subject, "validate", lambda *_: {"R@1": 50.0, "v2t_R@1": 0.0})
    assert run(make_shards(tmp_path, uncaptioned=others), tmp_path, epochs=2)["best_epoch"] == best


def test_train_runs_with_activation_checkpointing_when_towers_are_from_scratch(films, tmp_path):
    run(films, tmp_path / "plain", epochs=1)
    run(films, tmp_path / "twice", epochs=1, activation_checkpointing=True)
    plain, twice = (load_file(tmp_path / name / "model/model.safetensors") for name in ("plain", "twice"))
    for name, weight in plain.items():
        assert torch.allclose(weight, twice[name], atol=1e-4), name


def test_train_starts_anew_when_another_backbone_lies_in_the_same_folder(films, tmp_path, monkeypatch):
    save_after_every_step(monkeypatch)
    model = section(backbone=str(tmp_path / "clip"), num_words=32)
    save_small_clip(tmp_path / "clip", image_size=SIZE)
    path = tmp_path / "clip/model.safetensors"
    for factor in (1.0, 1.5):
        save_file({name: factor * weight for name, weight in load_file(path).items()}, path, {"format": "pt"})
        with monkeypatch.context() as patch:
            stop_at(patch, "step", 5)
            with pytest.raises(StopError):
                run(films, tmp_path, model, towers="frozen")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


# odd batches

@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mode", ["off", "positive", "mask"])
@pytest.mark.parametrize(("frames", "captions"), [([4], ["a red film"]), ([1, 4], ["a film", ""]), ([1, 1], ["", ""])])
def test_training_step_stays_finite_when_the_batch_is_odd(head, mode, frames, captions):
    model, config = tiny_model(head).train(), train_config(denoise=mode)
    optimizers = make_optimizers(model, config)
    for longest in {FRAMES, max(frames)}:
        result = training_step(model, optimizers, batch_of(frames, captions, longest), config, mode, "float32")
        assert all(math.isfinite(value) for value in result.figures.values())
        assert result.video_BD.shape == (len(frames), model.head.dim)
        assert (result.views_2BD is None) == (mode == "off")
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_loss_stays_finite_when_a_caption_is_padding_alone(head):
    model, config = tiny_model(head).train(), train_config()
    ids_BW, mask_BW = model.processor.texts(["a red film", "a blue film"])
    mask_BW[1] = 0
    videos = model.encode_videos(model.processor.frames(batch_of([4, 4], []).frames_BTHXC), mask_of([4, 4], 4))
    texts = model.encode_texts(ids_BW, mask_BW)
    levels = model.head.training_similarities(texts, videos)
    total, _ = total_loss(model, levels, texts.sentence_BD, config, None, "off")
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_training_stops_in_one_line_when_the_loss_is_not_a_number():
    model, config = tiny_model(), train_config()
    with torch.no_grad():
        model.towers.visual_projection.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"training: need a finite loss, got nan\. Lower train\.lr"):
        training_step(model, make_optimizers(model, config), batch_of([4, 4], ["a", "b"]), config, "off", "float32")


def test_train_names_step_clips_and_checkpoint_when_the_loss_is_not_a_number(films, tmp_path):
    with pytest.raises(ModelError) as caught:
        run(films, tmp_path, lr=1e30, backbone_lr=1e30, marginal_group=1)
    assert re.fullmatch(r"training, step \d+: need a finite loss, got nan\. Lower train\.lr or train\.backbone_lr, or "
                        r"set train\.precision to float32\. The last good checkpoint is none; the clips were "
                        r"train_\w+(, train_\w+){7}\.", str(caught.value))
    assert not (tmp_path / "model").exists()


# captions of different lengths

UNEVEN = ["a", "first red and then blue and then green and then black", "", "a yellow film then white"]


def assert_step_is_that_of_all_captions_at_once(head: str) -> None:
    model, config, batch = tiny_model(head, wild=True).train(), train_config(), batch_of([4, 2, 4, 3], UNEVEN)
    ids_QW, mask_QW = model.processor.texts([*batch.captions[0], *batch.captions[1]])
    assert len(set(mask_QW.sum(1).tolist())) == 4
    with torch.no_grad():
        texts = model.encode_texts(ids_QW, mask_QW)
        videos = model.encode_videos(model.processor.frames(batch.frames_BTHXC), batch.frame_mask_BT)
        levels = model.head.training_similarities(texts, videos)
        needed = total_loss(model, levels, texts.sentence_BD, config, None, "off")[1]
    found = training_step(model, make_optimizers(model, config), batch, config, "off", "float32").figures
    assert [float(found[name]) for name in needed] == pytest.approx([float(term) for term in needed.values()], rel=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_training_step_has_the_loss_of_all_captions_at_once_when_their_lengths_differ(head):
    assert_step_is_that_of_all_captions_at_once(head)


@pytest.mark.parametrize("lost", ["order", "lengths"])
def test_assert_step_is_that_of_all_captions_at_once_fails_when_something_is_lost(monkeypatch, lost):
    def planted(*inputs):
        levels, sentence_QD = subject_similarities(*inputs)
        if lost == "order":
            return {level: sims_QV.roll(1, 0) for level, sims_QV in levels.items()}, sentence_QD.roll(1, 0)
        return levels, torch.nn.functional.normalize(sentence_QD, dim=1)

    subject_similarities = step.bucketed_similarities
    monkeypatch.setattr(step, "bucketed_similarities", planted)
    with pytest.raises(AssertionError):
        assert_step_is_that_of_all_captions_at_once("hcmi")


# marginal groups

def test_train_gathers_marginal_clips_when_groups_are_asked_for(films, tmp_path, monkeypatch):
    """Groups begin after the warm-up. They go by the vectors of the model itself, which has seen every clip."""
    given = []
    group = subject.TrainLoader.group_marginal_clips

    def watched(loader, embeddings_ND, size, views_2ND):
        given.append((loader.epoch, size, np.linalg.norm(embeddings_ND, axis=1), np.linalg.norm(views_2ND, axis=2)))
        group(loader, embeddings_ND, size, views_2ND)

    monkeypatch.setattr(subject.TrainLoader, "group_marginal_clips", watched)
    run(films, tmp_path, epochs=3, marginal_group=4, warmup_epochs=1, denoise="positive", denoise_by="text")
    assert [(epoch, size) for epoch, size, *_ in given] == [(1, 4), (2, 4)]
    assert given[0][2] == pytest.approx(np.ones(24), abs=1e-5)
    assert not given[0][3].any()                        # no clip has been denoised before
    assert given[1][3] == pytest.approx(np.ones((2, 24)), abs=1e-5)


# what bad input gets

def test_train_says_what_to_do_when_there_are_no_shards(tmp_path):
    with pytest.raises(DataError, match=r"need the index of the shards, got no file\. Run `hcmi shards` first\."):
        run(tmp_path / "nowhere", tmp_path)
    assert list(tmp_path.iterdir()) == []


def params_file(folder: Path, **changes) -> Path:
    path = folder / "params.yaml"
    params = changed(PARAMS, model=section(**changes).model_dump(), train=train_config(epochs=1).model_dump())
    YAML().dump(params.model_dump(), path)
    return path


def test_cli_prints_a_summary_when_it_trains(films, tmp_path):
    result = CliRunner().invoke(main, ["train", "--shards", str(films), "--out", str(tmp_path / "model"), "--metrics",
                                       str(tmp_path / "metrics"), "--checkpoints", str(tmp_path / "checkpoints"),
                                       "--params", str(params_file(tmp_path)), "--json"])
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["steps"], summary["best_epoch"], summary["model"]) == (3, 1, str(tmp_path / "model"))
    assert load_retriever(tmp_path / "model").config.head == "hcmi"


def test_cli_prints_one_line_when_the_backbone_is_unknown(films, tmp_path):
    result = CliRunner().invoke(main, ["train", "--shards", str(films), "--out", str(tmp_path / "model"), "--metrics",
                                       str(tmp_path / "metrics"), "--checkpoints", str(tmp_path / "checkpoints"),
                                       "--params", str(params_file(tmp_path, backbone="/no/such/folder"))])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("hcmi: model.backbone '/no/such/folder': need a folder or the name of a checkpoint")
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_cli_shows_an_example_when_asked_for_help():
    result = CliRunner().invoke(main, ["train", "--help"])
    assert result.exit_code == 0
    assert "Example: hcmi train --shards data/shards --out models/hcmi" in result.stdout
