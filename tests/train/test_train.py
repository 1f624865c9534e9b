"""Training on real shards of plain two-colour films: it learns, repeats itself, and goes on where it was stopped."""

import json
import math
import types
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
from safetensors.torch import load_file
from train_world import assert_same_run, curves, run

from hcmi.cli import main
from hcmi.errors import DataError, ModelError
from hcmi.model import load_retriever
from hcmi.model.heads import HEADS
from hcmi.shards import TrainBatch
from hcmi.train import loss as losses
from hcmi.train import make_optimizers, training_step
from hcmi.train import stage as subject
from hcmi.train.stage import (
    denoise_figures,
    denoise_mode,
    group_size,
    positives,
    set_learning_rate,
    total_loss,
    two_views,
    video_views,
)


def batch_of(frames: list[int], captions: list[str], longest: int = FRAMES) -> TrainBatch:
    """Random clips of the given numbers of frames."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, len(frames), longest, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    mask_BT = mask_of(frames, longest)
    pixels[0][~mask_BT] = 0
    rows = list(range(len(frames)))
    return TrainBatch(rows, [f"v{row}" for row in rows], [captions, captions[::-1]], pixels, mask_BT)


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
    with pytest.raises(DataError, match=r"^train\.loss\.denoise_by tag: need the tag `meaning` on every training clip"):
        run(films, tmp_path, denoise="mask", denoise_by="tag")
    assert not (tmp_path / "model").exists()


def test_train_fine_tunes_when_the_backbone_is_pretrained(tmp_path_factory, tmp_path):
    folder = save_small_clip(tmp_path / "clip", image_size=SIZE)
    films = make_shards(tmp_path_factory.mktemp("few"), num_train=6)
    run(films, tmp_path, section(backbone=str(folder), num_words=32), epochs=1, batch_size=3, backbone_lr=1e-7)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    moved = (after["towers.visual_projection.weight"] - before["visual_projection.weight"]).abs().max()
    assert 0 < moved < 1e-6


# which epoch is kept

@pytest.mark.parametrize(("recalls", "best"), [([10.0, 50.0, 30.0], 1), ([50.0, 50.0, 20.0], 0), ([0.0, 0.0, 0.0], 0),
                                               ([1.0, 2.0, 3.0], 2)])
def test_train_keeps_the_epoch_that_is_best_on_validation(films, tmp_path, monkeypatch, recalls, best):
    epochs = []

    def scripted(model, reader):
        assert reader.split == "val"
        epochs.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"R@1": recalls[len(epochs) - 1], "R@5": 0.0, "R@10": 0.0}

    monkeypatch.setattr(subject, "validate", scripted)
    summary = run(films, tmp_path)
    assert (summary["best_epoch"], summary["val_R@1"]) == (best, recalls[best])
    for name, weight in load_file(tmp_path / "model" / "model.safetensors").items():
        assert torch.equal(weight, epochs[best][name]), name


# learning rates

def test_towers_stay_when_their_learning_rate_is_zero(films, tmp_path, monkeypatch):
    starts = []
    make = subject.new_retriever

    def remembered(*args):
        model = make(*args)
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model

    monkeypatch.setattr(subject, "new_retriever", remembered)
    run(films, tmp_path, epochs=1, backbone_lr=0.0)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    moved = {name.split(".")[0] for name, weight in saved.items() if not torch.equal(weight, starts[0][name])}
    assert moved == {"head"}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_optimizers_have_two_rates_and_decay_matrices_only_when_made(optimizer):
    model = tiny_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen = []
    for made in make_optimizers(model, train_config(optimizer=optimizer, lr=1e-3, backbone_lr=1e-5, weight_decay=0.2)):
        for group in made.param_groups:
            for weight in group["params"]:
                name = names[id(weight)]
                seen.append(name)
                assert group["peak_lr"] == (1e-5 if name.startswith("towers.") else 1e-3), name
                assert group["weight_decay"] == (0.2 if weight.dim() > 1 else 0.0), name
    assert sorted(seen) == sorted(names.values())


def muon_names(model, **changes) -> set[str]:
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {names[id(weight)] for made in make_optimizers(model, train_config(**changes))
            if isinstance(made, torch.optim.Muon) for group in made.param_groups for weight in group["params"]}


def test_muon_takes_the_matrices_of_new_layers_when_it_is_chosen():
    model = tiny_model()
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert muon_names(model, optimizer="adamw") == set()
    assert muon_names(model, optimizer="muon") == linear
    assert muon_names(model, optimizer="muon", backbone_lr=0.0) == {n for n in linear if n.startswith("head.")}
    model.config.backbone = "a pretrained one"
    assert muon_names(model, optimizer="muon") == {n for n in linear if n.startswith("head.")}


@pytest.mark.parametrize(("done", "factor"), [(0.0, 1e-3), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 1e-3)])
def test_learning_rate_warms_up_and_falls_when_worked_by_hand(done, factor):
    optimizers = [types.SimpleNamespace(param_groups=[{"peak_lr": peak}]) for peak in (2.0, 4.0)]
    set_learning_rate(optimizers, done, 0.1)
    assert [made.param_groups[0]["lr"] for made in optimizers] == pytest.approx([2 * factor, 4 * factor])


def test_learning_rate_starts_at_its_peak_when_there_is_no_warm_up():
    optimizer = types.SimpleNamespace(param_groups=[{"peak_lr": 2.0}])
    set_learning_rate([optimizer], 0.0, 0.0)
    assert optimizer.param_groups[0]["lr"] == 2.0


# odd batches

@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mode", ["off", "positive", "mask"])
@pytest.mark.parametrize(("frames", "captions"), [([4], ["a red film"]), ([1, 4], ["a film", ""]), ([1, 1], ["", ""])])
def test_training_step_stays_finite_when_the_batch_is_odd(head, mode, frames, captions):
    model, config = tiny_model(head).train(), train_config(denoise=mode)
    optimizers = make_optimizers(model, config)
    for longest in {FRAMES, max(frames)}:
        figures, _ = training_step(model, optimizers, batch_of(frames, captions, longest), config, mode, "float32")
        assert all(math.isfinite(value) for value in figures.values())
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_loss_stays_finite_when_a_caption_is_padding_alone(head):
    model, config = tiny_model(head).train(), train_config()
    ids_BW, mask_BW = model.processor.texts(["a red film", "a blue film"])
    mask_BW[1] = 0
    videos = model.encode_videos(model.processor.frames(batch_of([4, 4], []).frames_KBTHXC[0]), mask_of([4, 4], 4))
    total, _ = total_loss(model, model.similarities(model.encode_texts(ids_BW, mask_BW), videos), config, None, "off")
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_training_stops_in_one_line_when_the_loss_is_not_a_number():
    model, config = tiny_model(), train_config()
    with torch.no_grad():
        model.towers.visual_projection.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"training: need a finite loss, got nan\. Lower train\.lr"):
        training_step(model, make_optimizers(model, config), batch_of([4, 4], ["a", "b"]), config, "off", "float32")


# denoising on two views

def test_same_videos_finds_duplicates_when_they_share_a_batch():
    """Clips 0 and 2 show the same scene with other noise; frames of one clip differ from each other."""
    model, generator = tiny_model("mean_pool"), torch.Generator().manual_seed(0)
    scenes_BTD = torch.randn(4, 8, 32, generator=generator)[:, :1] + 0.5 * torch.randn(4, 8, 32, generator=generator)
    scenes_BTD[2] = scenes_BTD[0, torch.randperm(8, generator=generator)]
    same_BB = losses.same_meaning(*video_views(model, scenes_BTD, torch.ones(4, 8, dtype=torch.bool)))
    assert same_BB[0, 2] or same_BB[2, 0]
    others = same_BB & ~torch.eye(4, dtype=torch.bool)
    others[0, 2] = others[2, 0] = False
    assert not others.any()


def test_positives_need_what_they_are_asked_for_when_videos_or_captions_agree():
    """Clips 0 and 2 have equal pictures, clips 1 and 2 equal captions; three of each differ."""
    model, generator = tiny_model("hcmi", wild=True), torch.Generator().manual_seed(0)
    features_BTD = torch.randn(3, 1, 32, generator=generator) + 0.02 * torch.randn(3, 4, 32, generator=generator)
    features_BTD[2] = features_BTD[0]
    captions = ["a red film then blue", "a green film", "a green film"]
    sentence_BD = model.encode_texts(*model.processor.texts(captions)).sentence_BD
    mask_BT = torch.ones(3, 4, dtype=torch.bool)
    found = {by: positives(two_views(model, by, features_BTD, mask_BT, [sentence_BD, sentence_BD]))
             for by in ("video", "text", "both")}
    assert found["video"][0, 2]
    assert not found["video"][1, 2]
    assert found["text"].tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert torch.equal(found["both"], found["video"] & found["text"])
    alone = positives(two_views(model, "text", features_BTD, mask_BT, [sentence_BD]))       # clips with one caption
    assert torch.equal(alone, found["text"])
    known_BB = positives(two_views(model, "tag", features_BTD, mask_BT, [], torch.tensor([4, 9, 4])))
    assert known_BB.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


@pytest.mark.parametrize("longest", [1, 4])
def test_same_videos_finds_none_when_clips_of_one_frame_differ(longest):
    """A clip of one frame has no second view; padding must not become one."""
    model = tiny_model("hcmi", wild=True)
    features_BTD = torch.randn(3, longest, 32, generator=torch.Generator().manual_seed(0))
    features_BTD[:, 1:] = 0
    mask_BT = mask_of([1, 1, 1], longest)
    assert torch.equal(positives([video_views(model, features_BTD, mask_BT)]), torch.eye(3, dtype=torch.bool))
    features_BTD[2] = features_BTD[0]
    assert positives([video_views(model, features_BTD, mask_BT)])[0, 2]


def test_denoise_mode_is_off_when_still_warming_up():
    config, model = train_config(denoise="mask", marginal_group=4, warmup_epochs=2), tiny_model()
    assert [denoise_mode(model, config, epoch) for epoch in range(4)] == ["off", "off", "mask", "mask"]
    assert [group_size(model, config, epoch) for epoch in range(4)] == [1, 1, 4, 4]


def test_peers_train_plainly_when_the_parameters_ask_for_hcmis_own_parts():
    config, model = train_config(denoise="mask", marginal_group=4), tiny_model("wti")
    assert (denoise_mode(model, config, 9), group_size(model, config, 9)) == ("off", 1)
    sims_BB = torch.eye(3) / 2
    plain = losses.contrastive(sims_BB, model.head.scale("frame_word"))
    assert torch.equal(total_loss(model, {"frame_word": sims_BB}, config, None, "off")[0], plain)


def test_denoise_figures_count_what_is_right_when_worked_by_hand():
    """Clips 0, 1 and 3 are the same; denoising finds (0, 1) one way round and takes 2 for 3."""
    positives_BB = torch.eye(4, dtype=torch.bool)
    positives_BB[0, 1] = positives_BB[2, 3] = True
    figures = denoise_figures(positives_BB, torch.tensor([7, 7, 5, 7]))
    assert figures == {"denoise_fired": 2 / 4, "denoise_right": 1 / 4, "denoise_true": 6 / 4}
    progress = subject.Progress(torch.zeros(3, 4, 2))
    progress.add([0, 1], figures, torch.ones(3, 2, 2))
    progress.add([2, 3], figures, torch.ones(1, 2, 2))
    assert progress.seen_3ND[..., 0].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    row = progress.end_epoch(5, 2, {"R@1": 50.0}, 1.5)
    assert row == {"epoch": 5, "train/seconds": 1.5, "train/denoise_fired": 0.5, "train/denoise_precision": 0.5,
                   "train/denoise_recall": pytest.approx(1 / 6), "val/R@1": 50.0}
    assert (progress.step, progress.sums, progress.history) == (2, {}, [row])


def test_meanings_are_none_when_a_data_set_does_not_know_them():
    reader = types.SimpleNamespace(clips=[types.SimpleNamespace(tags={"meaning": name}) for name in ("b", "a", "b")])
    assert subject.meanings(reader).tolist() == [1, 0, 1]
    reader.clips.append(types.SimpleNamespace(tags={}))
    assert subject.meanings(reader) is None


def test_train_gathers_marginal_clips_when_groups_are_asked_for(films, tmp_path, monkeypatch):
    """From the end of the warm-up on, by what the model itself saw; a vector for each clip it was shown."""
    given = []
    gather = subject.TrainLoader.group_marginal_clips

    def watched(loader, embeddings_ND, size, views_2ND):
        given.append((loader.epoch, size, np.linalg.norm(embeddings_ND, axis=1), np.linalg.norm(views_2ND, axis=2)))
        gather(loader, embeddings_ND, size, views_2ND)

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
    assert (summary["steps"], summary["best_epoch"], summary["model"]) == (3, 0, str(tmp_path / "model"))
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
