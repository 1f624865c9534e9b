"""The model as a whole: identity at the start, the model folder, and the error messages when something does not fit."""

import json

import pytest
import torch
from model_world import (
    SIZE,
    clip_tokenizer,
    mask_of,
    pictures,
    save_clip,
    save_siglip,
    save_small_clip,
    save_small_siglip,
    section,
    tiny_model,
)
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoModel

from hcmi.errors import ModelError
from hcmi.model import HcmiModel, load_retriever, new_retriever
from hcmi.model.heads import HEADS
from hcmi.model.towers import quiet

TEXTS = ["a dog jumps into water", "two people talk", "a red ring slides left, then a blue square grows", "x"]


def untrained(folder, size: int, **changes) -> HcmiModel:
    values = {"num_frames": 12, "num_words": 32, "num_clips": 5, "num_phrases": 8, "temporal_layers": 2} | changes
    return new_retriever(section(backbone=str(folder), **values), size, []).eval()


@torch.no_grad()
def zero_shot(folder, frames: list[torch.Tensor], ids: list[list[int]], normalise) -> torch.Tensor:
    """CLIP's own score, [Q, V], by `transformers` alone, clip by clip and caption by caption: mean of the unit frame
    embeddings against the text embedding."""
    with quiet():
        own = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    videos_VD = torch.stack([normalize(own.get_image_features(pixel_values=normalise(clip)).pooler_output).mean(0)
                             for clip in frames])
    texts_QD = torch.cat([own.get_text_features(input_ids=torch.tensor([row])).pooler_output for row in ids])
    return normalize(texts_QD) @ normalize(videos_VD).T


@torch.no_grad()
def video_sentence(model: HcmiModel, frames: list[torch.Tensor], texts: list[str]) -> torch.Tensor:
    """The untrained model's score, [Q, V], all clips in one padded batch."""
    longest = max(map(len, frames))
    pixels_BTCHX = torch.stack([model.processor.frames(torch.nn.functional.pad(
        clip, (0, 0, 0, 0, 0, 0, 0, longest - len(clip)), value=128)) for clip in frames])
    videos = model.encode_videos(pixels_BTCHX, mask_of([len(clip) for clip in frames], longest))
    return model.similarities(model.encode_texts(*model.processor.texts(texts)), videos)["video_sentence"]


def assert_identity(folder, size: int, lengths: list[int], ids_of, head: str = "hcmi") -> None:
    """The untrained score is the backbone's own, to 1e-5, and the scores differ enough to mean something."""
    model = untrained(folder, size, head=head)
    frames = [pictures(length, size=size, seed=seed) for seed, length in enumerate(lengths)]
    needed = zero_shot(folder, frames, [ids_of(text) for text in TEXTS], model.processor.frames)
    assert needed.std() > 0.005
    worst = (video_sentence(model, frames, TEXTS) - needed).abs().max()
    assert worst < 1e-5, f"off by {worst}"


def clip_ids(text: str) -> list[int]:
    return clip_tokenizer()(text, truncation=True, max_length=32)["input_ids"]


def siglip_ids(folder):
    tokenizer = untrained(folder, 32, head="mean_pool").processor.tokenizer

    def ids(text: str) -> list[int]:
        return tokenizer(text, truncation=True, max_length=32, padding=False)["input_ids"] + [1] * 64

    return lambda text: ids(text)[:64]


# identity at the start (decision 6)

@pytest.mark.parametrize("head", ["hcmi", "mean_pool"])
def test_untrained_score_is_clips_own_when_clips_are_padded(tmp_path, head):
    """12 and 7 frames do not divide into 5 clips, 3 are fewer, and one is one."""
    assert_identity(save_small_clip(tmp_path), 32, [12, 7, 3, 1], clip_ids, head)


def test_untrained_score_is_siglips_own_when_the_backbone_is_siglip(tmp_path):
    folder = save_small_siglip(tmp_path)
    assert_identity(folder, 32, [12, 7, 1], siglip_ids(folder))


def test_untrained_score_is_clips_own_when_the_shape_is_vit_b_32(tmp_path):
    """The default CLIPConfig: 12 + 12 layers, widths 768 and 512; stored as float16, as some checkpoints are."""
    assert_identity(save_clip(tmp_path, dtype=torch.float16), 224, [3, 2, 1], clip_ids)


@pytest.mark.slow
def test_untrained_score_is_siglips_own_when_the_shape_is_base(tmp_path):
    folder = save_siglip(tmp_path, text_config={"projection_size": 768})
    assert_identity(folder, 224, [3, 1], siglip_ids(folder))


def test_assert_identity_fails_when_a_residual_branch_does_not_start_at_zero(tmp_path, monkeypatch):
    monkeypatch.setattr("hcmi.model.aggregate.zero_init", lambda layer: layer)
    with pytest.raises(AssertionError, match="off by"):
        assert_identity(save_small_clip(tmp_path), 32, [12, 7, 1], clip_ids)


def test_assert_identity_fails_when_padding_is_not_masked(tmp_path, monkeypatch):
    masked = HcmiModel.encode_videos
    monkeypatch.setattr(HcmiModel, "encode_videos",
                        lambda model, pixels, mask: masked(model, pixels, torch.ones_like(mask)))
    with pytest.raises(AssertionError, match="off by"):
        assert_identity(save_small_clip(tmp_path), 32, [12, 7, 1], clip_ids)


def test_new_retriever_pads_as_its_tokenizer_does_when_siglip_2s_files_disagree(tmp_path):
    model = untrained(save_small_siglip(tmp_path, pad_id=0), 32)
    assert model.towers.config.text_config.pad_token_id == 0
    short, long = (model.encode_texts(*model.processor.texts(texts)) for texts in (["ab"], ["ab", "a longer caption"]))
    torch.testing.assert_close(short.sentence_BD[0], long.sentence_BD[0])


# scores

@pytest.mark.parametrize("head", HEADS)
def test_combine_is_the_weighted_sum_when_levels_have_weights(head):
    model = tiny_model(head)
    levels = {name: torch.full((2, 3), 10.0**place) for place, name in enumerate(model.head.levels)}
    assert model.level_weights == dict.fromkeys(levels, 1.0)
    assert model.combine(levels)[0, 0] == sum(10.0**place for place in range(len(levels)))
    model.config.level_weights = {name: 2.0 + place for place, name in enumerate(levels)}
    needed = sum((2.0 + place) * 10.0**place for place in range(len(levels)))
    assert torch.equal(model.combine(levels), torch.full((2, 3), needed))


@torch.no_grad()
def test_similarities_have_texts_as_rows_when_counts_differ():
    model = tiny_model(wild=True)
    videos = model.encode_videos(model.processor.frames(pictures(3, 4, size=SIZE)), mask_of([4, 4, 2], 4))
    texts = model.encode_texts(*model.processor.texts(["a red film", "a blue film"]))
    for sims_QV in model.similarities(texts, videos).values():
        assert sims_QV.shape == (2, 3)
        assert sims_QV.abs().max() <= 1 + 1e-6


# the folder

@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_model_scores_the_same_when_saved_and_loaded(tmp_path, head, capfd):
    model = tiny_model(head, wild=True)
    model.config.level_weights = dict.fromkeys(model.head.levels, 1.5)
    model.save_pretrained(tmp_path / "model")
    loaded = load_retriever(tmp_path / "model")
    frames = pictures(3, 4, size=SIZE)

    def total(of):
        videos = of.encode_videos(of.processor.frames(frames), mask_of([4, 3, 1], 4))
        return of.combine(of.similarities(of.encode_texts(*of.processor.texts(TEXTS)), videos))

    torch.testing.assert_close(total(loaded), total(model), atol=1e-6, rtol=0)      # memory layout matters
    assert loaded.fingerprint == model.fingerprint
    assert not loaded.training
    assert capfd.readouterr().err == ""


@torch.no_grad()
def test_model_scores_the_same_when_pretrained_towers_are_saved_and_loaded(tmp_path):
    model = untrained(save_small_clip(tmp_path / "clip"), 48, num_words=90)     # other image size, stretched positions
    model.save_pretrained(tmp_path / "model")
    loaded = load_retriever(tmp_path / "model")
    frames = [pictures(4, size=48), pictures(2, size=48, seed=1)]
    torch.testing.assert_close(video_sentence(loaded, frames, TEXTS), video_sentence(model, frames, TEXTS), atol=1e-6,
                               rtol=0)
    assert loaded.processor.image_size == 48
    assert loaded.processor.num_words == 90


def test_fingerprint_changes_when_weights_configuration_tokens_or_preprocessing_do():
    model = tiny_model()
    seen = {model.fingerprint}
    assert tiny_model().fingerprint in seen
    assert tiny_model(seed=1).fingerprint not in seen
    with torch.no_grad():
        next(model.head.parameters()).flatten()[0].add_(1e-3)
    seen.add(model.fingerprint)
    model.config.level_weights = dict.fromkeys(model.head.levels, 2.0)
    seen.add(model.fingerprint)
    model.processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    seen.add(model.fingerprint)
    model.processor.untrained = model.processor.untrained[1:]
    seen.add(model.fingerprint)
    model.processor.tokenizer.add_tokens(["xyzzy"])     # a folder with another model's tokenizer in it
    seen.add(model.fingerprint)
    assert len(seen) == 6


def test_fingerprint_stays_when_only_the_device_or_mode_changes():
    model = tiny_model()
    before = model.fingerprint
    assert model.train().to("cpu").fingerprint == before


# errors

@pytest.fixture
def saved(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                  "preprocessor_config.json"])
def test_load_names_the_file_when_one_is_missing(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError) as caught:
        load_retriever(saved)
    assert str(caught.value) == (f"model folder {saved}: need {name}, found none. Train first (`dvc repro train`), or "
                                 f"give the folder of a trained model or of a CLIP or SigLIP checkpoint.")


def test_load_names_the_first_file_when_there_is_no_folder(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere: need config\.json, found none\. Train first"):
        load_retriever(tmp_path / "nowhere")


def test_load_names_tensor_and_both_shapes_when_a_shape_does_not_fit(saved):
    weights = load_file(saved / "model.safetensors")
    weights["towers.text_projection.weight"] = torch.zeros(32, 40)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_retriever(saved)
    assert str(caught.value) == (
        f"model folder {saved}, tensor towers.text_projection.weight: need shape (32, 32), got (32, 40). "
        f"config.json does not belong to these weights, or another version of hcmi wrote them. Train again, or "
        f"copy both from one training run.")


@pytest.mark.parametrize(("change", "problem"), [
    (lambda weights: weights.pop("towers.logit_scale"), "towers.logit_scale: need it in the weights, got none"),
    (lambda weights: weights.update(extra=torch.zeros(2)), "extra: need no such tensor, got one")])
def test_load_names_the_tensor_when_one_is_missing_or_unknown(saved, change, problem):
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_retriever(saved)
    assert f"tensor {problem}. config.json does not belong" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                  "preprocessor_config.json"])
def test_load_says_so_in_one_line_when_a_file_is_broken(saved, name):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ModelError, match=r"need a model that `hcmi train` saved, got: .+ Train again or") as caught:
        load_retriever(saved)
    assert "\n" not in str(caught.value)


def test_load_lists_the_known_heads_when_the_head_is_unknown(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "head": "new"}))
    with pytest.raises(ModelError, match=rf"need one of {', '.join(HEADS)}, got 'new'"):
        load_retriever(saved)


def test_new_retriever_names_the_parameter_when_patches_do_not_fit():
    with pytest.raises(ModelError) as caught:
        new_retriever(section(), 20, ["a film"])
    assert str(caught.value) == "model.scratch.patch: need a divisor of shards.size=20, got 8. Change one of them."


def test_new_retriever_names_the_parameter_when_images_are_smaller_than_a_patch(tmp_path):
    with pytest.raises(ModelError, match=r"shards\.size: need at least the 8 pixels of a patch of .+, got 6\. Raise"):
        untrained(save_small_clip(tmp_path), 6)
