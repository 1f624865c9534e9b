"""`hcmi train --plan`, the check before a run, and the memory that they estimate."""

import contextlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from checkpoint_world import save_siglip_2_naflex
from click.testing import CliRunner
from model_world import FRAMES, PARAMS, SIZE, changed, make_shards, save_small_siglip, section, tiny_model, train_config
from ruamel.yaml import YAML
from step_world import random_batch
from train_world import run

from hcmi.cli import main
from hcmi.errors import ConfigError
from hcmi.model import new_retriever, shards_square
from hcmi.shards import ShardReader, TrainLoader, write_shards
from hcmi.train import memory, plan_text, plan_training, preflight
from hcmi.train import plan as plan_module
from hcmi.train import stage as subject
from hcmi.train.memory import training_memory
from hcmi.train.micro_batch import largest_batch
from hcmi.train.preflight import RunData, check_run
from hcmi.train.step import batch_loss
from hcmi.train.tower_training import optimizers_of

CAPTIONS = ["a red film then blue", "a much longer caption of a green film and then of a blue one"]
DATA = {"captions": {"train": [CAPTIONS] * 3, "val": [CAPTIONS]}, "image_size": SIZE}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HCMI_CACHE", str(tmp_path / "cache"))


# memory

def saved_in_a_step(model, config, captions) -> float:
    """Bytes that the backward pass of a whole batch of equal captions needs, counted in that step."""
    batch = random_batch(config.batch_size)
    texts = [[captions] * config.batch_size] * config.captions_per_clip
    batch = type(batch)(batch.rows, texts, batch.frames_BTHXC, batch.frame_mask_BT)
    return memory._saved_bytes(lambda: batch_loss(model.train(), batch, config, "off", "float32")[0], model)


@pytest.mark.parametrize("clips", [8, 24])
def test_activations_are_those_of_a_step_of_the_whole_batch(clips):
    model = tiny_model(captions=CAPTIONS).train()
    config = train_config(batch_size=clips, captions_per_clip=2)
    estimate = training_memory(model, config, SIZE, CAPTIONS, "float32").activations / memory.AROUND
    assert estimate == pytest.approx(saved_in_a_step(model, config, max(CAPTIONS, key=len)), rel=0.15)


def test_parts_are_those_worked_by_hand(clip):
    """Frames of 16 pixels, 4 a clip, 8 clips a batch; 2 batches ahead, one in use and one before it."""
    model = new_retriever(section(backbone=str(clip), num_words=32), SIZE, [])
    towers, head = (4 * sum(weight.numel() for weight in part.parameters()) for part in (model.towers, model.head))
    found = {}
    for how in ("train", "frozen"):
        config = train_config(towers=how, batch_size=8, num_workers=0)
        optimizers_of(model, config)
        found[how] = training_memory(model, config, SIZE, CAPTIONS, "float32")
    assert {how: memory.weights for how, memory in found.items()} == dict.fromkeys(found, towers + head)
    assert found["train"].learning == 3 * (towers + head)
    assert found["frozen"].learning == 3 * head
    assert found["train"].batches == 8 * FRAMES * 3 * SIZE**2 * (4 + 4)
    assert found["frozen"].batches == 8 * FRAMES * 2 * model.head.dim * (4 + 4)
    assert found["frozen"].copies == 4 * head
    assert found["frozen"].activations < found["train"].activations / 2


def test_micro_batches_need_less(clip):
    model = new_retriever(section(backbone=str(clip), num_words=32), SIZE, [])
    whole, parts = (training_memory(model, train_config(batch_size=32, micro_batch=size), SIZE, CAPTIONS, "float32")
                    for size in (0, 4))
    assert parts.activations < whole.activations / 2


def test_layers_that_are_computed_twice_keep_their_inputs_alone(clip):
    found = []
    for twice in (False, True):
        model = new_retriever(section(backbone=str(clip), num_words=32), SIZE, []).train()
        if twice:
            model.checkpoint_activations()
        found.append(memory._per_item(lambda count, model=model: model.frame_features(
            torch.zeros(1, count, 3, SIZE, SIZE)), model))
    # the first of two layers, which has 5 tokens of 32 numbers, is called; the class token's layer is not
    assert 5 * 32 * 4 <= found[1] < found[0] / 3


def test_check_leaves_the_models_random_numbers_as_they_are():
    model = tiny_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_run(RunData(**DATA), section(), train_config(), model)
    assert torch.equal(torch.rand(3), expected)


# the check in training: what ends a run refuses to start, what spoils it is said

@pytest.mark.parametrize(("backbone", "changes", "message"), [
    ("scratch", {"towers": "frozen"}, r"train\.towers frozen: need a pretrained model\.backbone, got scratch"),
    ("clip", {}, r"memory: need about [\d.]+ GB to train, got 0\.0 GB\. Lower train\.batch_size or "
                 r"train\.num_workers, or train\.towers to frozen\.")])
def test_training_refuses_what_would_end_it_and_writes_nothing(few, clip, tmp_path, monkeypatch, backbone, changes,
                                                               message):
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(preflight, "own_memory_bytes", lambda: 0)
    model = section(backbone=str(clip), num_words=32) if backbone == "clip" else section()
    with pytest.raises(ConfigError, match=message):
        run(few, tmp_path, model, **changes)
    assert not (tmp_path / "model").exists()


def test_training_warns_of_rates_and_of_few_clips(few, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "training_step", lambda *_, **__: pytest.fail("enough"))
    with (pytest.warns(UserWarning, match=r"train\.backbone_lr: need at most 1e-05 for pretrained towers, got 0\.002"),
          pytest.warns(UserWarning, match=r"train\.lr: need at most 0\.001 on pretrained towers, got 0\.002"),
          pytest.raises(pytest.fail.Exception)):
        run(few, tmp_path / "one", section(backbone=str(clip), num_words=32))
    with (pytest.warns(UserWarning, match="training from nothing: need about 1,000 clips"),
          pytest.raises(pytest.fail.Exception)):
        run(few, tmp_path / "two")


def test_problems_name_each_kind_of_missing_data(monkeypatch):
    def problem(**changes) -> str:
        found, = check_run(RunData(**{**DATA, **changes}), section(), train_config()).problems
        return found

    assert problem(captions={"train": [CAPTIONS]}).startswith("split val: need at least one clip, got none.")
    assert problem(captions={"train": [[]], "val": [CAPTIONS]}).startswith("captions: need some to train with, got")
    assert problem(files=14, missing=9986).startswith(
        "videos: need at least 50% of those that the captions name, got 14 and 9,986 missing ones.")
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(preflight, "own_memory_bytes", lambda: 10**8)
    assert problem().startswith("memory: need about 0.8 GB to train, got 0.1 GB.")


# the plan

def test_plan_of_scratch_towers_counts_and_times(few):
    plan = plan_training(shards_dir=few, model_config=section(), config=train_config(batch_size=3, epochs=4))
    assert plan["problems"] == []
    assert plan["weights"]["frozen"] == 0
    assert plan["steps_per_epoch"] == 2
    assert plan["hours"] * 3600 == pytest.approx(4 * plan["epoch_s"])
    assert plan["epoch_s"] == pytest.approx(plan["step_s"] * (2 + 3 / 3 / 3))
    assert plan["disk_gb"]["features"] == 0
    text = plan_text(plan)
    assert text.endswith("ready: no problem found")
    assert json.loads(json.dumps(plan)) == plan


def test_plan_of_frozen_towers_says_what_is_computed_once_and_what_is_ignored(few, clip, tmp_path):
    model_config = section(backbone=str(clip), num_words=32)
    config = train_config(towers="frozen", batch_size=3, epochs=1)
    plan = plan_training(shards_dir=few, model_config=model_config, config=config)
    assert plan["weights"]["frozen"] > 0
    assert plan["features_s"] > 0
    assert "train.backbone_lr: train.towers is frozen" in plan["ignored"]
    assert "model.scratch: model.backbone is pretrained" in plan["ignored"]
    assert "features" in plan_text(plan)
    assert not (tmp_path / "cache").exists()
    run(few, tmp_path, model_config, towers="frozen", batch_size=3, epochs=1)
    assert plan_training(shards_dir=few, model_config=model_config, config=config)["features_s"] == 0


@pytest.mark.parametrize(("save", "size"), [(save_siglip_2_naflex, 128), (save_small_siglip, 32)])
def test_plan_says_nothing_of_frames_when_they_are_as_the_backbone_has_them(few, tmp_path, save, size):
    """Whole frames and squashed ones, where CLIP's are cropped."""
    backbone = str(save(tmp_path / "towers"))
    write_shards(manifest_path=few.parent / "manifest.parquet", out_dir=tmp_path / "shards",
                 config=changed(PARAMS.shards, size=size, num_frames=8, max_skip_fraction=0, num_workers=1),
                 square=shards_square("auto", backbone))
    with warnings.catch_warnings(record=True) as said:
        plan = plan_training(shards_dir=tmp_path / "shards", model_config=section(backbone=backbone),
                             config=train_config(batch_size=3, lr=1e-4, backbone_lr=1e-7))
    assert (plan["problems"], plan["warnings"]) == ([], [])
    assert not [str(one.message) for one in said if "frames are" in str(one.message)]


@pytest.mark.parametrize(("uncaptioned", "changes", "message"), [
    (["val"], {}, "split val: need captions to choose the best epoch with, got 3 clips without any. Caption some"),
    ([], {"epochs": 0}, "train.epochs: need 1 or more for model.backbone scratch, whose weights are random, got 0."),
    ([], {"denoise": "positive", "denoise_by": "tag"},
     "train.loss.denoise_by tag: need the tag `meaning` on every training clip, got 3 of 3 without. Choose text")])
def test_plan_and_training_say_the_same_when_training_refuses(tmp_path, uncaptioned, changes, message):
    shards = make_shards(tmp_path, num_train=3, uncaptioned=uncaptioned)
    problem, = plan_training(shards_dir=shards, model_config=section(), config=train_config(**changes))["problems"]
    with pytest.raises(ConfigError) as refused:
        run(shards, tmp_path, **changes)
    assert str(refused.value).startswith(message)
    assert problem == str(refused.value)


def test_plan_stops_when_the_processes_cannot_share_a_batch(few):
    with pytest.raises(ConfigError, match=r"^train\.batch_size: need a multiple of the 2 ranks, got 3\. Try 4\."):
        plan_training(shards_dir=few, model_config=section(), config=train_config(batch_size=3, num_processes=2))


def test_plan_of_a_checkpoint_without_epochs_is_ready_when_no_training_clip_has_a_caption(tmp_path, clip):
    shards = make_shards(tmp_path, num_train=3, uncaptioned=["train"])
    plan = plan_training(shards_dir=shards, model_config=section(backbone=str(clip)), config=train_config(epochs=0))
    assert (plan["problems"], plan["warnings"]) == ([], [])
    assert plan_text(plan).endswith("ready: no problem found")


def test_plan_names_a_backbone_that_cannot_be_loaded_and_a_head_that_ignores_the_loss(few, tmp_path):
    plan = plan_training(shards_dir=few, model_config=section(backbone=str(tmp_path), head="wti"),
                         config=train_config())
    assert plan["problems"][0].startswith(f"model.backbone '{tmp_path}': need config.json")
    assert "train.loss.margin: model.head is wti" in plan["ignored"]
    assert plan_text(plan).splitlines()[-1].startswith("problem: model.backbone")


def test_verb_prints_the_plan_and_exits_with_1_when_training_would_refuse(few, tmp_path, repo_root):
    params = YAML(typ="safe", pure=True).load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    params["model"], params["train"] = section().model_dump(), train_config(batch_size=3).model_dump()
    with contextlib.chdir(tmp_path):
        for how, code in (("train", 0), ("frozen", 1)):
            params["train"]["towers"] = how
            YAML().dump(params, tmp_path / "params.yaml")
            done = CliRunner().invoke(main, ["train", "--plan", "--shards", str(few)], catch_exceptions=False)
            assert done.exit_code == code
            assert ("problem: train.towers frozen" in done.stdout) == bool(code)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


# presets

PRESETS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "presets").glob("*.yaml"))


@pytest.mark.parametrize("name", [name if name == "laptop" else pytest.param(name, marks=pytest.mark.slow)
                                  for name in PRESETS])
def test_preset_is_planned_and_runs_for_two_steps(few, clip, tmp_path, repo_root, name):
    """On stand-in data, with small towers in place of the checkpoint that it names and small sizes."""
    from hcmi.config import Params, load_overrides

    raw = YAML(typ="safe", pure=True).load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    for key, value in load_overrides([repo_root / "presets" / f"{name}.yaml"], repo_root / "params.yaml").items():
        *names, last = key.split(".")
        place = raw
        for part in names:
            place = place[part]
        place[last] = value
    params = Params.model_validate(raw)
    small = {"num_frames": FRAMES, "num_words": min(params.model.num_words, 32), "num_clips": 3, "num_phrases": 3,
             "temporal_layers": 1, "scratch": section().scratch.model_dump()}
    if params.model.backbone != "scratch":
        small["backbone"] = str(clip)
    model = changed(params.model, **small)
    config = changed(params.train, device="cpu", epochs=2, batch_size=6, num_workers=0, precision="float32")
    plan = plan_training(shards_dir=few, model_config=model, config=config)
    assert plan["problems"] == []
    assert not [text for text in plan["warnings"] if not text.startswith("training from nothing")]
    summary = run(few, tmp_path, model, **config.model_dump())
    assert summary["steps"] == 2


def test_estimate_is_that_of_training_and_leaves_the_model_as_it_was(clip):
    """A checkpoint comes in evaluation mode, in which no layer is computed twice."""
    model = new_retriever(section(backbone=str(clip), num_words=32), SIZE, []).eval()
    plain = training_memory(model, train_config(), SIZE, CAPTIONS, "float32").activations
    model.checkpoint_activations()
    assert training_memory(model, train_config(), SIZE, CAPTIONS, "float32").activations < 0.9 * plain
    assert not model.training


@pytest.mark.parametrize(("name", "wanted", "there"), [("batch_size", 1_000_000, 24), ("captions_per_clip", 6, 2)])
def test_batches_that_the_clips_cannot_fill_count_as_they_are(name, wanted, there):
    data = RunData({"train": [CAPTIONS[:1], *[CAPTIONS] * 23], "val": [CAPTIONS]}, SIZE)
    huge, fitted = (check_run(data, section(), train_config(**{name: size})).memory for size in (wanted, there))
    assert huge == fitted


def test_steps_are_tried_and_timed_with_the_captions_that_clips_have(films, monkeypatch):
    """Clips have two captions, and six are asked for."""
    loader = TrainLoader(ShardReader(films, "train"), 4, FRAMES, num_captions=6)
    assert len(largest_batch(loader, FRAMES).captions) == len(next(iter(loader)).captions) == 2
    timed = []
    monkeypatch.setattr(plan_module, "training_step", lambda *args: timed.append(len(args[2].captions)))
    plan_training(shards_dir=films, model_config=section(), config=train_config(captions_per_clip=6))
    assert set(timed) == {2}
