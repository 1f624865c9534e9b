"""`train.epochs: 0`: the pipeline runs on the pretrained backbone as it is, and says so."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from checkpoint_world import CHECKPOINTS
from model_world import make_shards, section
from ruamel.yaml import YAML
from search_world import call_hcmi
from train_world import run

from hcmi.errors import ConfigError
from hcmi.model import describe_model, encode_texts, load_retriever

TEXTS = ["a red film then blue", "first green and white later"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return CHECKPOINTS["clip"](tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def kept(films, clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return folder, run(films, folder, model=section(backbone=str(clip)), epochs=0)


def test_model_is_the_checkpoint_when_there_are_no_epochs(kept, clip):
    folder, summary = kept
    model, own = load_retriever(folder / "model"), load_retriever(clip)
    assert summary["zero_shot"] == str(clip)
    assert model.level_weights == own.level_weights == {"frame_word": 0, "clip_phrase": 0, "video_sentence": 1}
    for name, weight in own.towers.state_dict().items():
        assert torch.equal(model.towers.state_dict()[name], weight), name
    assert torch.equal(encode_texts(model, TEXTS).sentence_BD, encode_texts(own, TEXTS).sentence_BD)
    assert (model.config.num_frames, model.processor.image_size) == (section().num_frames, 16)
    found = describe_model(folder / "model")
    assert (found["trained"], found["backbone"]) == (False, str(clip))


def test_figures_of_validation_are_those_of_epoch_0(kept):
    folder, summary = kept
    assert json.loads((folder / "metrics/metrics.json").read_text())["val"]["R@1"] == summary["val_R@1"]
    assert (folder / "metrics/plots/training.png").stat().st_size > 1000
    assert (folder / "metrics/plots/metrics/val/R@1.tsv").read_text().splitlines()[1:]


def test_run_gives_the_same_when_it_is_repeated(kept, films, clip, tmp_path):
    run(films, tmp_path, model=section(backbone=str(clip)), epochs=0)
    assert load_retriever(tmp_path / "model").fingerprint == load_retriever(kept[0] / "model").fingerprint


def test_scratch_is_refused_before_anything_is_written(films, tmp_path):
    with pytest.raises(ConfigError, match=r"^train.epochs: need 1 or more for model.backbone scratch, whose weights"):
        run(films, tmp_path, epochs=0)
    assert not (tmp_path / "model").exists()


def test_split_without_captions_is_refused_before_anything_is_written(clip, tmp_path):
    shards = make_shards(tmp_path, num_train=6, uncaptioned=["val"])
    with pytest.raises(ConfigError, match="split val: need captions to measure the model with, got 3 clips with"):
        run(shards, tmp_path, model=section(backbone=str(clip)), epochs=0)
    assert not (tmp_path / "model").exists()


def test_another_process_of_torchrun_writes_nothing(films, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run(films, tmp_path, model=section(backbone=str(clip)), epochs=0) == {}
    assert not (tmp_path / "model").exists()


def test_stages_after_it_run_and_evaluate_names_the_backbone(project, clip, tmp_path):
    """train, evaluate, export and drift, as `dvc repro` calls them."""
    for name in ("data", "params.yaml", "incoming"):
        (tmp_path / name).symlink_to(project / name)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((project / "params.yaml").read_text(encoding="utf-8"))
    params["model"]["backbone"], params["train"]["epochs"] = str(clip), 0
    (tmp_path / "params.yaml").unlink()
    yaml.dump(params, tmp_path / "params.yaml")
    with contextlib.chdir(tmp_path):
        for verb in (["train"], ["evaluate"], ["export"], ["drift", "--incoming", "incoming"]):
            printed = call_hcmi(*verb).output
            if verb == ["evaluate"]:
                assert f"model models/hcmi, zero-shot of {clip}" in printed
    protocol = json.loads((tmp_path / "metrics/evaluate.json").read_text())["protocol"]
    assert (protocol["trained"], protocol["backbone"]) == (False, str(clip))
    levels = json.loads((tmp_path / "metrics/evaluate.json").read_text())
    assert levels["raw"]["t2v"]["R@1"] == levels["levels"]["video_sentence"]["t2v"]["R@1"]
    assert (tmp_path / "reports/drift/index.html").is_file()
    assert np.isfinite(levels["raw"]["t2v"]["MnR"])
    shutil.rmtree(tmp_path / "models")
