"""A CLIP or SigLIP checkpoint as a retriever: it ranks as `transformers` ranks with it, on frames of real files.

The oracle reads every frame with PyAV, and takes pixels, ids and vectors from `transformers` alone.
"""

import json
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from model_world import save_small_clip, save_small_siglip, save_small_siglip_1
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertConfig
from video_files import write_pictures

from hcmi.errors import ModelError
from hcmi.model import describe_model, description_text, encode_texts, load_retriever, load_text_encoder
from hcmi.model.checkpoint import is_checkpoint
from hcmi.model.families import FAMILIES as FAMILIES_KNOWN
from hcmi.video import DecodeJob
from hcmi.video.jobs import decode_job

TEXTS = ["a dog jumps into water", "two people talk", "a red car, seen from above, turns left"]
FAMILIES = {"clip": save_small_clip, "siglip": save_small_siglip,
            "siglip_1": lambda folder: save_small_siglip_1(folder, TEXTS * 20)}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(folder):
    return load_retriever(folder)


def film(path, seed: int = 0, width: int = 96, height: int = 54):
    """A wide H.264 file of 20 frames of coarse coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (20, 6, 12, 3), np.uint8)
    return write_pictures(path, (np.kron(block, np.ones((height // 6, width // 12, 1), np.uint8)) for block in blocks),
                          10)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [film(folder / "wide.mp4"), film(folder / "high.mp4", 1, 48, 90), film(folder / "square.mp4", 2, 48, 48)]


def own_vectors(folder, files, texts, num_frames=12):
    """Unit vectors [V, D] and [Q, D] as `transformers` has them: of the mean of unit frame vectors, and of texts."""
    towers = AutoModel.from_pretrained(folder).eval()
    images, tokenizer = AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    vectors = []
    with torch.no_grad():
        for path in files:
            with av.open(str(path)) as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            picked = [frames[(2 * part + 1) * len(frames) // (2 * num_frames)] for part in range(num_frames)]
            pixels = images(picked, return_tensors="pt")["pixel_values"]
            vectors.append(F.normalize(towers.get_image_features(pixel_values=pixels).pooler_output, dim=1).mean(0))
        padding = "max_length" if towers.config.model_type == "siglip" else True        # as each was trained
        ids = tokenizer(texts, truncation=True, padding=padding, return_tensors="pt")
        sentences = towers.get_text_features(**ids).pooler_output
    return F.normalize(torch.stack(vectors), dim=1), F.normalize(sentences, dim=1)


def decoded(model, path):
    job = DecodeJob(None, str(path), model.config.num_frames, model.processor.image_size, square=model.processor.square)
    return torch.from_numpy(decode_job(job).frames)[None]


@torch.no_grad()
def scores(model, files, texts):
    """[Q, V], as search computes them."""
    pixels = model.processor.frames(torch.cat([decoded(model, path) for path in files]))
    videos = model.encode_videos(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool))
    return model.combine(model.similarities(encode_texts(model, texts), videos))


def test_scores_are_those_of_transformers_on_frames_of_real_files(folder, model, files):
    videos_VD, sentences_QD = own_vectors(folder, files, TEXTS)
    found_QV = scores(model, files, TEXTS)
    assert float(found_QV.std()) > 0.01
    torch.testing.assert_close(found_QV, sentences_QD @ videos_VD.T, atol=1e-5, rtol=0)


def test_scores_are_those_of_transformers_on_real_clips(folder, model, shared_data):
    clips = sorted((shared_data / "real_clips/videos").glob("*"))[:2]
    if not clips:
        pytest.skip("the real clips are not there")
    videos_VD, sentences_QD = own_vectors(folder, clips, TEXTS)
    torch.testing.assert_close(scores(model, clips, TEXTS), sentences_QD @ videos_VD.T, atol=1e-5, rtol=0)


def test_pixels_are_the_checkpoints_own_and_siglip_sees_the_whole_picture(folder, model, files):
    with av.open(str(files[0])) as container:
        frame = next(iter(container.decode(video=0))).to_ndarray(format="rgb24")
    own = AutoImageProcessor.from_pretrained(folder, backend="pil")([frame], return_tensors="pt")["pixel_values"]
    assert torch.equal(model.processor.frames(decoded(model, files[0]))[0, :1], own)
    assert model.processor.square[0] == ("crop" if model.config.towers["model_type"] == "clip" else "squash")


def test_only_the_sentence_counts_and_the_head_is_the_identity(model):
    assert model.level_weights == {"frame_word": 0, "clip_phrase": 0, "video_sentence": 1}
    assert not model.uses_words
    random = {name for name, weight in model.head.named_parameters() if weight.dim() > 1 and weight.any()}
    assert random == set()


PROGRAM = """
import sys
from hcmi.model import load_retriever
print(load_retriever(sys.argv[1]).fingerprint)
"""


def test_fingerprint_is_the_same_in_another_place_and_precision(folder, model, tmp_path):
    torch.manual_seed(7)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_retriever(copy).fingerprint == model.fingerprint
    assert load_text_encoder(folder, precision="bfloat16").fingerprint == model.fingerprint


def test_fingerprint_is_the_same_in_another_process(tmp_path):
    folder = save_small_clip(tmp_path)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], text=True, check=True, capture_output=True)
    assert done.stdout.split() == [load_retriever(folder).fingerprint]


def test_fingerprint_changes_with_the_weights_and_the_preprocessing(tmp_path):
    folder = save_small_clip(tmp_path / "clip")
    before = load_retriever(folder).fingerprint
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, "resample": 2}))
    model = load_retriever(folder)
    assert model.processor.square == ("crop", "BILINEAR")
    assert model.fingerprint != before


def test_a_saved_model_scores_the_same_when_it_is_loaded(model, files, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = load_retriever(tmp_path / "saved")
    assert not loaded.checkpoint
    assert loaded.processor.square == model.processor.square
    torch.testing.assert_close(scores(loaded, files, TEXTS), scores(model, files, TEXTS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_takes_half_the_memory_and_scores_nearly_the_same(folder, model, files, precision):
    half = load_retriever(folder, precision=precision)
    assert {weight.dtype for weight in half.towers.parameters()} == {getattr(torch, precision)}
    assert {weight.dtype for weight in half.head.parameters()} == {torch.float32}
    found_QV, needed_QV = scores(half, files, TEXTS), scores(model, files, TEXTS)
    assert found_QV.dtype == torch.float32
    torch.testing.assert_close(found_QV, needed_QV, atol=0.02, rtol=0)
    assert not torch.equal(found_QV, needed_QV)
    sentences = [encode_texts(side, TEXTS).sentence_BD
                 for side in (half, load_text_encoder(folder, precision=precision))]
    assert torch.equal(*sentences)


def test_long_texts_are_cut_as_transformers_cuts_them(folder, model, files):
    videos_VD, sentences_QD = own_vectors(folder, files[:1], ["a very long text " * 40])
    found_QV = scores(model, files[:1], ["a very long text " * 40])
    torch.testing.assert_close(found_QV, sentences_QD @ videos_VD.T, atol=1e-5, rtol=0)


# what is no checkpoint

def refused(source) -> str:
    with pytest.raises(ModelError) as caught:
        load_retriever(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("names", "message"), [
    (["preprocessor_config.json"], "need preprocessor_config.json of the checkpoint, found none. Copy all files"),
    (["tokenizer.json", "vocab.json"], "need tokenizer.json of the checkpoint, found none. Copy all files"),
    (["model.safetensors"], "need a CLIP or SigLIP checkpoint that transformers can read, got: "),
    (["config.json"], "need config.json, found none. Train first")])
def test_a_missing_file_is_named_in_one_line(tmp_path, names, message):
    folder = save_small_clip(tmp_path / "clip")
    for name in names:
        (folder / name).unlink(missing_ok=True)
    assert message in refused(folder)


def test_a_model_of_another_family_is_refused_in_one_line(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    assert refused(tmp_path) == (f"model '{tmp_path}': need a dual tower of family {' or '.join(FAMILIES_KNOWN)}, "
                                 f"got 'bert'. Choose a CLIP or SigLIP checkpoint.")


def test_weights_that_are_cut_short_are_refused_in_one_line(tmp_path):
    folder = save_small_clip(tmp_path / "clip")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:len(weights) // 2])
    assert "need a CLIP or SigLIP checkpoint that transformers can read, got: " in refused(folder)


def test_preprocessing_that_we_cannot_repeat_is_refused_in_one_line(tmp_path):
    folder = save_small_clip(tmp_path / "clip")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, "size": {"shortest_edge": 40}}))
    assert "need images resized to one size and then cropped to it or not" in refused(folder)
    other = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config | other))
    assert "need preprocessor_config.json to make the 32 pixels of config.json, got 40" in refused(folder)


def test_an_unknown_precision_is_refused(folder):
    with pytest.raises(ModelError, match="precision 'int8': need one of float32, bfloat16, float16, got another"):
        load_retriever(folder, precision="int8")


def test_a_name_is_one_of_the_hub_only_when_nothing_here_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/file").touch()
    (tmp_path / "runs/link").symlink_to("gone")
    (tmp_path / "openai/other").mkdir(parents=True)
    for source in ("models/hcmi", "runs/first", "runs/file", "runs/link", "model", "./openai/clip", str(tmp_path / "a"),
                   "a/b/c", "../a"):
        assert not is_checkpoint(source), source
    for source in ("openai/clip-vit-base-patch32", "google/siglip-base-patch16-224"):
        assert is_checkpoint(source), source


# what it holds

def test_description_counts_every_weight_once(folder, model):
    found = json.loads(json.dumps(describe_model(folder)))
    own = AutoModel.from_pretrained(folder)
    assert found["parameters"]["image_tower"] + found["parameters"]["text_tower"] == sum(
        weight.numel() for weight in own.parameters())
    assert found["parameters"]["image_tower"] >= sum(weight.numel() for weight in own.vision_model.parameters())
    assert found["parameters"]["text_tower"] >= sum(weight.numel() for weight in own.text_model.parameters())
    assert found["levels"] == model.level_weights
    assert found["vocabulary"] == len(model.processor.tokenizer)
    assert found["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert found["fingerprint"] == model.fingerprint
    assert (found["trained"], found["image_size"], found["num_frames"]) == (False, 32, 12)


def test_description_fits_one_screen(folder):
    lines = description_text(describe_model(folder)).splitlines()
    assert len(lines) <= 15
    assert f"{'score':12} video-sentence x 1" in lines
    assert any("not trained by hcmi" in line for line in lines)


def test_description_leaves_patches_out_when_the_configuration_does_not_say_them(folder):
    found = describe_model(folder)
    assert ", patches of 8" in description_text(found)
    assert "patches" not in description_text(found | {"patch": None})
