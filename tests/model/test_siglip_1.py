"""SigLIP 1, whose words are a SentencePiece file: read as it is on the hub, fine-tuned, saved, and loaded again."""

import subprocess
import sys

import pytest
import torch
from model_world import COLOURS, mask_of, pictures, save_small_siglip_1, section
from sentencepiece import SentencePieceProcessor

from hcmi.errors import ModelError
from hcmi.model import load_retriever, load_text_encoder, new_retriever
from hcmi.model.processor import HcmiProcessor

CAPTIONS = [f"a {one} film then {other}" for one in COLOURS for other in COLOURS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = save_small_siglip_1(tmp_path_factory.mktemp("siglip"), CAPTIONS)
    assert {path.name for path in found.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json",
                                                       "spiece.model", "tokenizer_config.json"}
    return found


@pytest.fixture(scope="module")
def model(folder):
    return new_retriever(section(backbone=str(folder)), 32, []).eval()


def test_texts_are_sentencepieces_own_ids_in_small_letters_without_punctuation(folder):
    own = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    ids_BW, mask_BW = HcmiProcessor.from_backbone(str(folder), 16, 32).texts(["A red film, then BLUE!", "green"])
    for row, text in enumerate(["a red film then blue", "green"]):
        needed = [*own.encode(text), own.eos_id()]
        assert ids_BW[row].tolist() == needed + [own.eos_id()] * (ids_BW.shape[1] - len(needed))
        assert mask_BW[row].tolist() == [1] * len(needed) + [0] * (ids_BW.shape[1] - len(needed))


@torch.no_grad()
def test_model_scores_the_same_when_it_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model/tokenizer.json").exists()
    videos = model.encode_videos(model.processor.frames(pictures(3, 4, size=32)), mask_of([4, 3, 1], 4))
    needed = model.similarities(model.encode_texts(*model.processor.texts(CAPTIONS)), videos)
    for loaded in (load_retriever(tmp_path / "model"), load_text_encoder(tmp_path / "model")):
        found = loaded.similarities(loaded.encode_texts(*loaded.processor.texts(CAPTIONS)), videos)
        for name, sims_QV in needed.items():
            torch.testing.assert_close(found[name], sims_QV, atol=1e-6, rtol=0)
        assert loaded.fingerprint == model.fingerprint


def test_load_says_so_in_one_line_when_the_words_are_cut_short(folder, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    words = tmp_path / "model/spiece.model"
    words.write_bytes(words.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"need a model that `hcmi train` saved, got: .+ Train again or"):
        load_retriever(tmp_path / "model")
    words.unlink()
    with pytest.raises(ModelError, match=r"need tokenizer\.json, found none\. Train first"):
        load_retriever(tmp_path / "model")


@pytest.mark.parametrize("package", ["sentencepiece", pytest.param("google.protobuf", marks=pytest.mark.slow)])
def test_loading_fails_in_one_line_that_names_the_package_when_one_is_not_installed(folder, model, tmp_path, package):
    model.save_pretrained(tmp_path / "model")
    code = (f"import sys; sys.modules[{package!r}] = None\n"
            "from hcmi.errors import ModelError\n"
            "from hcmi.model.processor import HcmiProcessor\n"
            "from hcmi.model import load_retriever\n"
            "backbone, model = sys.argv[1:]\n"
            "for load in (lambda: HcmiProcessor.from_backbone(backbone, 16, 32), lambda: load_retriever(model)):\n"
            "    try: load()\n"
            "    except ModelError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "model")], text=True, check=True,
                          capture_output=True)
    name = {"sentencepiece": "SentencePiece", "google.protobuf": "protobuf"}[package]
    said = (f"need a Python package to read it, got none: SiglipTokenizer requires the {name} library "
            f"but it was not found in your environment. Install that package, or choose another checkpoint.")
    assert done.stdout.splitlines() == [f"model.backbone: {said}", f"model folder {tmp_path / 'model'}: {said}"]
