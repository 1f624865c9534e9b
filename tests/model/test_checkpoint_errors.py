"""What a checkpoint gets that cannot be used: one line with the reason, and the next step."""

import importlib.util
import json
import sys
from contextlib import nullcontext

import pytest
import torch
from checkpoint_world import CHECKPOINTS, OPEN_CLIP
from model_world import save_small_clip, section
from safetensors.torch import load_file

from hcmi.errors import ModelError
from hcmi.model import load_retriever, new_retriever, shards_square
from hcmi.model.checkpoint import SENTINEL

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


def test_file_of_a_model_is_refused_when_it_is_given_in_place_of_its_folder(tmp_path):
    path = config_folder(tmp_path) / "open_clip_config.json"
    assert refused(path) == f"model {path}: need the folder of a model, got a file. Name the folder that it is in."


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


# files that are broken, or not what they are called

def rewritten(folder, file, change) -> None:
    (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))


@pytest.mark.parametrize(("file", "change", "message"), [
    ("config.json", lambda own: own | {"text_config": own["text_config"] | {"num_attention_heads": 7}},
     "transformers can read, got: .+ not a multiple of the number of attention heads"),
    ("config.json", lambda own: own | {"text_config": own["text_config"] | {"hidden_size": "big"}},
     "transformers can read, got: .+ 'hidden_size' expected int, got str"),
    ("config.json", lambda own: own | {"text_config": own["text_config"] | {"hidden_act": "nope"}},
     "transformers can read, got: KeyError: 'nope'. Copy or download it again."),
    ("config.json", lambda own: [], "need a model that `hcmi train` saved, got: .+ Train again"),
    ("config.json", lambda own: {}, "need a dual tower of family .+, got None"),
    ("preprocessor_config.json", lambda own: [], "need its preprocessor_config.json, .+ Copy all files"),
    ("tokenizer_config.json", lambda own: own | {"pad_token": None},
     "need its tokenizer and preprocessor files, got: the tokenizer has no pad_token. Copy all files")])
def test_file_of_another_content_is_one_line(tmp_path, file, change, message):
    rewritten(save_small_clip(tmp_path), file, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_retriever(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", None])
def test_weights_are_no_other_file_when_they_are_a_bin(tmp_path, content):
    weights = load_file(save_small_clip(tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    load_retriever(tmp_path)
    if content is None:
        torch.save(torch.nn.Linear(1, 1), tmp_path / "pytorch_model.bin")       # a pickled model
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert refused(tmp_path) == (
        f"model '{tmp_path}': need a file of weights alone, got another: a pointer of Git LFS, a part of a file, or a "
        f"pickled model. Run `git lfs pull` or download the weights again.")


def test_tokenizer_is_refused_when_it_has_tokens_that_the_text_tower_lacks(tmp_path):
    (tmp_path / "other").mkdir()
    size = CHECKPOINTS["siglip_2"](tmp_path) and load_retriever(tmp_path).towers.config.text_config.vocab_size
    save_small_clip(tmp_path / "other")         # of 514 tokens, two of them special
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / file).replace(tmp_path / file)
    assert f"need a tokenizer of at most {size} tokens, as many as the text tower has, got token 513" in refused(
        tmp_path)


def test_tokenizer_may_have_pieces_of_t5_that_no_text_has(tmp_path):
    """Multilingual SigLIP has the vocabulary of mT5: its 100 sentinels lie beyond the vectors of the text tower."""
    assert SENTINEL.fullmatch("▁<extra_id_99>")
    assert SENTINEL.fullmatch("<extra_id_0>")
    assert not SENTINEL.fullmatch("extra")
    CHECKPOINTS["siglip_2"](tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    size = load_retriever(tmp_path).towers.config.text_config.vocab_size
    vocabulary = tokenizer["model"]["vocab"]
    for number in range(3):
        piece = f"▁<extra_id_{number}>"
        if isinstance(vocabulary, dict):
            vocabulary[piece] = size + number
        else:
            vocabulary.append([piece, 0.0])
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    load_retriever(tmp_path)


# code of a checkpoint's own

@pytest.mark.parametrize(("file", "names", "message"), [
    ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}},
     "need a dual tower of family .+, got 'own'"),
    ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}},
     ""),       # tokenizer.json is enough
    ("preprocessor_config.json", {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}},
     "got ones that need Python code of their own, which is never run. Choose another checkpoint.")])
def test_own_code_is_neither_run_nor_asked_for(tmp_path, monkeypatch, file, names, message):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    rewritten(save_small_clip(tmp_path), file, lambda own: own | names)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ModelError, match=message) if message else nullcontext():
        load_retriever(tmp_path)
    assert not asked
    assert not (tmp_path / "ran").exists()


@needs_library
def test_open_clip_reads_a_folder_when_its_config_json_is_of_a_model_that_transformers_lacks(tmp_path):
    CHECKPOINTS["dfn"](tmp_path)
    own = load_retriever(tmp_path).fingerprint
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    assert load_retriever(tmp_path).fingerprint == own


@needs_library
@pytest.mark.parametrize("null", [{"preprocess_cfg": None}, {"preprocess_cfg": {"mean": None, "std": None}}])
def test_open_clip_null_in_its_preprocessing_is_the_librarys_default(tmp_path, null):
    CHECKPOINTS["dfn"](tmp_path)
    rewritten(tmp_path, "open_clip_config.json", lambda own: own | {"preprocess_cfg": {}})
    own = load_retriever(tmp_path).processor.describe()
    rewritten(tmp_path, "open_clip_config.json", lambda own: own | null)
    assert load_retriever(tmp_path).processor.describe() == own
