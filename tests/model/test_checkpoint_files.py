"""Checkpoints by their name on the hub, which is a folder in a cache here: what is asked for, and when."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
from model_world import save_small_clip

from hcmi.errors import ModelError
from hcmi.model import load_retriever, shards_square
from hcmi.model.checkpoint_files import checkpoint_folder, plain_name, weight_files

NAME = "acme/clip"


class Hub:
    """A hub with one repository, and this machine's cache of it."""

    def __init__(self, repository, cache):
        self.repository, self.snapshot = repository, cache / "models--acme--clip" / "snapshots" / ("a" * 40)
        self.refs = self.snapshot.parents[1] / "refs"
        self.asked: list[str] = []
        self.reachable = True

    def model_info(self, name, **_):
        self.asked.append(name)
        if not self.reachable:
            raise ConnectionError("no network")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=path.relative_to(self.repository).as_posix())
                                         for path in self.repository.rglob("*") if path.is_file()])

    def snapshot_download(self, name, allow_patterns):
        self.snapshot.mkdir(parents=True, exist_ok=True)
        self.refs.mkdir(exist_ok=True)
        (self.refs / "main").write_text("a" * 40)
        for file in allow_patterns:
            shutil.copy(self.repository / file, self.snapshot / file)
        return str(self.snapshot)

    def cached(self) -> set[str]:
        return {path.name for path in self.snapshot.iterdir()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "repository" / "onnx").mkdir(parents=True)
    found = Hub(save_small_clip(tmp_path / "repository"), tmp_path / "cache")
    for file in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md", "onnx/config.json"):
        (found.repository / file).write_text("not needed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hcmi.model.checkpoint_files.HfApi", lambda: found)
    monkeypatch.setattr("hcmi.model.checkpoint_files.snapshot_download", found.snapshot_download)
    return found


def test_name_is_downloaded_once_and_in_one_format(hub, capfd):
    first = load_retriever(NAME)
    assert hub.cached() == {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json",
                            "tokenizer_config.json"}
    hub.reachable = False
    assert load_retriever(NAME).fingerprint == first.fingerprint
    assert hub.asked == [NAME]
    assert capfd.readouterr().err == ""


def test_name_is_downloaded_when_a_folder_here_has_the_owners_name(hub, tmp_path, monkeypatch):
    (tmp_path / "here/acme/other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert load_retriever(NAME).checkpoint == NAME
    assert hub.asked == [NAME]


def test_hub_is_not_asked_when_it_cannot_have_the_name_or_something_here_has_it(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme/clip").write_text("weights")
    for name in (NAME, "models/clip", "/no/such/folder", "a/b/c"):
        with pytest.raises(ModelError, match=f"'{name}': need a folder or the name of a checkpoint, got neither"):
            checkpoint_folder(name)
    assert hub.asked == []


def test_message_says_that_no_folder_is_here_when_one_was_mistyped(hub, tmp_path, monkeypatch):
    (tmp_path / "runs/first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hub.reachable = False
    with pytest.raises(ModelError, match=(
            r"^model 'runs/frist': need a folder of this path here, a copy in this machine's cache or a network to "
            r"download it, got none\. Correct the path, or download it elsewhere and give its folder\. Known: a fold")):
        load_retriever("runs/frist")


def test_shape_of_frames_needs_no_weights(hub):
    assert shards_square("auto", NAME) == ("crop", "BICUBIC")
    assert "model.safetensors" not in hub.cached()
    assert shards_square("auto", NAME) == ("crop", "BICUBIC")
    assert hub.asked == [NAME]


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_copy_is_completed_when_a_file_is_not_there(hub, lost):
    checkpoint_folder(NAME)
    (hub.snapshot / lost).unlink()
    checkpoint_folder(NAME)
    assert (hub.snapshot / lost).is_file()
    (hub.snapshot / lost).unlink()
    hub.reachable = False
    with pytest.raises(ModelError, match="a copy in this machine's cache or a network to download it, got none"):
        checkpoint_folder(NAME)


def test_weights_are_those_that_transformers_would_read_when_there_are_several(tmp_path):
    assert weight_files(tmp_path, {"pytorch_model.bin", "model.safetensors"}) == ["model.safetensors"]
    assert weight_files(tmp_path, {"pytorch_model.bin", "model.fp16.safetensors"}) == ["pytorch_model.bin"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "2", "b": "1", "c": "2"}}))
    assert weight_files(tmp_path, {"pytorch_model.bin", "1", "2"}) == ["1", "2"]
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert weight_files(tmp_path, {"model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"}
                        ) == ["open_clip_model.safetensors"]


@pytest.mark.parametrize("written", ["hf-hub:acme/clip", "acme/clip/", "hf-hub:acme/clip/"])
def test_name_is_found_when_it_is_written_as_other_tools_do(hub, written):
    assert plain_name(written) == NAME
    assert load_retriever(written).checkpoint == NAME
    assert shards_square("auto", written) == ("crop", "BICUBIC")


def test_name_fails_at_once_and_known_ones_are_listed_when_there_is_no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")     # no server listens there
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        checkpoint_folder("hcmi-tests/no-such-checkpoint")
    assert time.monotonic() - started < 10
    assert str(caught.value) == (
        "model.backbone 'hcmi-tests/no-such-checkpoint': need a folder of this path here, a copy in this machine's "
        "cache or a network to download it, got none. Correct the path, or download it elsewhere and give its folder, "
        "or set model.backbone to scratch. "
        "Known: scratch, a folder, openai/clip-vit-base-patch32, openai/clip-vit-base-patch16, "
        "openai/clip-vit-large-patch14, google/siglip-base-patch16-224, google/siglip2-base-patch16-224.")


def test_known_names_are_listed_when_it_cannot_be_one():
    with pytest.raises(ModelError, match=r"'/no/such/folder': need a folder or the name of a checkpoint, got neither\. "
                                         r"Known: scratch, a folder, openai/clip-vit-base-patch32, "):
        checkpoint_folder("/no/such/folder")
