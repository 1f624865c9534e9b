"""What a checkpoint gets that cannot be used: one line with the reason, and the next step."""

import importlib.util
import json
import sys

import pytest
from checkpoint_world import CHECKPOINTS, OPEN_CLIP
from model_world import section

from hcmi.errors import ModelError
from hcmi.model import load_retriever, new_retriever, shards_square

needs_library = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None,
                                   reason="open_clip is not installed: pip install 'hcmi[open_clip]'")


def refused(folder) -> str:
    with pytest.raises(ModelError) as caught:
        load_retriever(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def config_folder(folder, name="dfn", model=None, **preprocessing):
    """An open_clip folder with its configuration alone."""
    own, own_preprocessing = json.loads(json.dumps(OPEN_CLIP[name]))
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(
        {"model_cfg": own | (model or {}), "preprocess_cfg": own_preprocessing | preprocessing}))
    return folder


def test_open_clip_folder_says_what_to_install_when_the_library_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert refused(config_folder(tmp_path)).endswith("Install it: pip install 'hcmi[open_clip]'.")
    assert "need the library open_clip to read it, got none" in refused(tmp_path)


def test_shape_of_frames_is_known_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert shards_square("auto", str(config_folder(tmp_path))) == ("squash", "BICUBIC")


def test_open_clip_folder_without_its_tokenizer_is_refused(tmp_path):
    message = refused(config_folder(tmp_path, "open_clip_siglip_2"))
    assert "need tokenizer.json of the checkpoint, found none. Copy all files" in message


def test_open_clip_frames_that_we_cannot_make_are_refused(tmp_path):
    assert "resize_mode shortest or squash" in refused(config_folder(tmp_path, resize_mode="longest"))


def test_open_clip_configuration_of_something_else_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text('{"model": 1}')
    assert "need a configuration and tokenizer as open_clip writes them" in refused(tmp_path)


@needs_library
def test_open_clip_weights_that_can_run_code_are_not_read(tmp_path):
    (config_folder(tmp_path) / "open_clip_pytorch_model.bin").write_bytes(b"pickle")
    assert "need the weights as open_clip_model.safetensors, found none" in refused(tmp_path)


@needs_library
@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"cut"),
    lambda folder: config_folder(folder, model={"embed_dim": 25}),
    lambda folder: config_folder(folder, model={"unknown": 25})])
def test_open_clip_weights_that_do_not_fit_are_refused(tmp_path, damage):
    CHECKPOINTS["dfn"](tmp_path)
    damage(tmp_path)
    assert "need open_clip_config.json and weights that belong together, got: " in refused(tmp_path)


@needs_library
def test_open_clip_shapes_that_do_not_fit_the_parameters_are_named(tmp_path):
    config = section(backbone=str(CHECKPOINTS["dfn"](tmp_path)), num_words=21)
    with pytest.raises(ModelError, match=r"^model.num_words: need at most the 20 positions of .*, got 21. Lower"):
        new_retriever(config, 32, [], ("squash", "BICUBIC"))
    with pytest.raises(ModelError, match=r"^shards.size: need the 32 pixels of .*, got 64. Set shards.size"):
        new_retriever(section(backbone=str(tmp_path)), 64, [], ("squash", "BICUBIC"))


@needs_library
def test_open_clip_model_that_writes_captions_is_refused(tmp_path):
    (config_folder(tmp_path, model={"multimodal_cfg": {}}) / "open_clip_model.safetensors").touch()
    assert "need a dual tower, got CoCa" in refused(tmp_path)


@pytest.mark.parametrize(("name", "file", "message"), [
    ("siglip_2_naflex", "preprocessor_config.json", "need preprocessor_config.json of the checkpoint, found none"),
    ("metaclip_2", "tokenizer.json", "need tokenizer.json of the checkpoint, found none"),
    ("siglip_2", "model.safetensors", "need a CLIP or SigLIP checkpoint that transformers can read, got: "),
    ("clip", "config.json", "need config.json, found none. Train first")])
def test_missing_file_is_named(tmp_path, name, file, message):
    (CHECKPOINTS[name](tmp_path) / file).unlink()
    assert message in refused(tmp_path)


def test_frames_of_another_number_of_pixels_are_named(tmp_path):
    folder = CHECKPOINTS["siglip"](tmp_path)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"size": {"height": 40, "width": 40}}))
    assert "need preprocessor_config.json to make the 32 pixels of config.json, got 40" in refused(folder)
