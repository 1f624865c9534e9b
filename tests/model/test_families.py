"""What one family of towers computes, and that another family is one row of the table."""

import importlib.util
import json

import numpy as np
import pytest
import simplejpeg
import torch
from checkpoint_world import CHECKPOINTS, OPEN_CLIP, SHAPE, TEXTS, own_outputs, save_open_clip_model
from model_world import pictures, randomised, save_small_clip, section
from PIL import Image
from transformers import BertConfig, BertTokenizer, ChineseCLIPConfig, ChineseCLIPModel
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from hcmi.errors import ModelError
from hcmi.model import encode_texts, load_retriever, load_text_encoder, new_retriever
from hcmi.model.families import FAMILIES, Family, clip_class_token, picture_shapes
from hcmi.model.towers import embedding_dim, frame_features, load_towers, text_features
from hcmi.video import to_square
from hcmi.video.crop import whole_shape


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_towers(str(clip_folder), 77).eval()


LARGE = {"pe_core", "mobileclip_2", "eva"}      # the library's image towers, which have one size


def of_family(name: str):
    """A parameter of a test, which needs the family's library."""
    missing = name in OPEN_CLIP and importlib.util.find_spec("open_clip") is None
    return pytest.param(name, marks=[*([pytest.mark.slow] if name in LARGE else []), pytest.mark.skipif(
        missing, reason="open_clip is not installed: pip install 'hcmi[open_clip]'")])


@pytest.fixture(scope="module", params=[of_family(name) for name in CHECKPOINTS])
def checkpoint(request, tmp_path_factory):
    folder = CHECKPOINTS[request.param](tmp_path_factory.mktemp(request.param))
    return folder, load_retriever(folder)


def photographs() -> list[Image.Image]:
    """Of five shapes: wide, high, square; one has an odd number of pixels to crop, one becomes larger."""
    generator = np.random.default_rng(0)
    shapes = [(48, 88), (96, 40), (64, 64), (240, 328), (72, 155)]
    return [Image.fromarray(np.kron(generator.integers(0, 256, (height // 8, -(-width // 8), 3), np.uint8),
                                    np.ones((8, 8, 1), np.uint8))[:height, :width]) for height, width in shapes]


def frames_of(pictures, processor) -> torch.Tensor:
    return processor.frames(np.stack([to_square(np.asarray(picture), processor.image_size, processor.square)
                                      for picture in pictures]))


@torch.no_grad()
def test_pixels_ids_and_vectors_are_the_librarys_own(checkpoint):
    folder, model = checkpoint
    own, pixels_NCHX = own_outputs(folder, photographs(), TEXTS), frames_of(photographs(), model.processor)
    for found, needed in zip(pixels_NCHX, own.pixels, strict=True):
        if model.processor.square[0] == "whole":        # patches, padded; ours are a picture
            patches = found.unflatten(1, (-1, 16)).unflatten(3, (-1, 16)).permute(1, 3, 2, 4, 0).flatten(2)
            inside = needed.abs().sum(1) > 0
            rows = [patch for row in patches for patch in row if not torch.equal(patch, patches[-1, -1])]
            found, needed = torch.stack(rows), needed[inside]
        assert torch.equal(found, needed)
    scale = float(own.images_BD.abs().max())
    torch.testing.assert_close(frame_features(model.towers, pixels_NCHX), own.images_BD, atol=1e-5 * max(scale, 1),
                               rtol=1e-5)
    ids_BW, mask_BW = model.processor.texts(TEXTS)
    width = min(ids_BW.shape[1], own.ids_BL.shape[1])
    assert torch.equal(ids_BW[:, :width], own.ids_BL[:, :width])
    states_BWD, anchor_BD = text_features(model.towers, ids_BW, mask_BW.bool())
    torch.testing.assert_close(anchor_BD, own.texts_BD, atol=1e-5, rtol=1e-5)
    assert states_BWD.shape == (*ids_BW.shape, embedding_dim(model.towers.config))
    short_BW, short_mask_BW = model.processor.texts(TEXTS[:1])       # alone, with less padding
    torch.testing.assert_close(text_features(model.towers, short_BW, short_mask_BW.bool())[1], anchor_BD[:1],
                               atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_model_is_the_same_when_it_is_saved_and_loaded(checkpoint, tmp_path):
    _, model = checkpoint
    model.save_pretrained(tmp_path / "model")
    loaded, pixels_NCHX = load_retriever(tmp_path / "model"), frames_of(photographs()[:2], model.processor)
    assert loaded.processor.describe() == model.processor.describe()
    torch.testing.assert_close(frame_features(loaded.towers, pixels_NCHX), frame_features(model.towers, pixels_NCHX))
    for found, needed in zip(loaded.processor.texts(TEXTS), model.processor.texts(TEXTS), strict=True):
        assert torch.equal(found, needed)
    ids_BW, mask_BW = model.processor.texts(TEXTS)
    torch.testing.assert_close(loaded.encode_texts(ids_BW, mask_BW).sentence_BD,
                               model.encode_texts(ids_BW, mask_BW).sentence_BD)


def test_text_side_alone_gives_the_same_vectors(checkpoint):
    folder, model = checkpoint
    encoder = load_text_encoder(folder)
    assert encoder.fingerprint == model.fingerprint
    torch.testing.assert_close(encode_texts(encoder, TEXTS).sentence_BD, encode_texts(model, TEXTS).sentence_BD)
    assert sum(weight.numel() for weight in encoder.parameters()) < sum(
        weight.numel() for weight in model.parameters())


def test_gradients_reach_both_towers_when_words_are_trained(checkpoint):
    """Every level reads the states of tokens or frames, so these must be a part of the graph."""
    _, model = checkpoint
    ids_BW, mask_BW = model.processor.texts(TEXTS[:2])
    model.zero_grad()
    states_BWD, _ = text_features(model.towers, ids_BW, mask_BW.bool())
    (states_BWD.square().sum() + frame_features(model.towers, frames_of(photographs()[:1], model.processor)).square()
     .sum()).backward()
    reached = {name for name, weight in model.towers.named_parameters() if weight.grad is not None}
    assert any("token_embedding" in name for name in reached)
    assert any(name.startswith(("vision_model", "clip.visual")) for name in reached)
    model.zero_grad()


@pytest.mark.parametrize("name", [of_family("metaclip_2"), of_family("siglip_2_naflex"), of_family("dfn")])
def test_gradients_are_the_same_when_activations_are_computed_again(name, tmp_path):
    CHECKPOINTS[name](tmp_path)
    own = load_retriever(tmp_path)
    square, size, found = own.processor.square, own.processor.image_size, []
    for again in (False, True):
        torch.manual_seed(0)
        model = new_retriever(section(backbone=str(tmp_path)), size, [], square)
        if again:
            model.checkpoint_activations()
        model.train()
        frames = frames_of(photographs()[:3], model.processor)[:, None]
        videos = model.encode_videos(frames, torch.ones(3, 1, dtype=torch.bool))
        texts = model.encode_texts(*model.processor.texts(TEXTS[:3]))
        model.combine(model.similarities(texts, videos)).square().sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, atol=1e-5, rtol=1e-3)


def test_a_picture_that_is_as_good_as_magenta_is_one_patch(tmp_path):
    """Only plain magenta is left out, so a black frame, which pads short clips, is a picture too."""
    model = load_retriever(CHECKPOINTS["siglip_2_naflex"](tmp_path))
    frames = np.zeros((2, 128, 128, 3), np.uint8)
    frames[1] = (255, 0, 255)
    with torch.no_grad():
        assert frame_features(model.towers, model.processor.frames(frames)).isfinite().all()


def with_magenta(*slices: tuple[slice, slice]) -> Image.Image:
    """A picture of 4 x 4 patches of noise, in which these parts are magenta."""
    picture = np.random.default_rng(1).integers(0, 200, (64, 64, 3), np.uint8)
    for rows, columns in slices:
        picture[rows, columns] = (255, 0, 255)
    return Image.fromarray(picture)


ALL = slice(None)
OWN_MAGENTA = {"top": with_magenta((slice(0, 32), ALL)), "left": with_magenta((ALL, slice(0, 16))),
               "inside": with_magenta((slice(16, 32), ALL), (ALL, slice(32, 48))),
               "a corner of noise": with_magenta((slice(0, 48), ALL), (ALL, slice(0, 48)))}


@torch.no_grad()
def test_pictures_with_magenta_of_their_own_have_the_librarys_vectors(tmp_path):
    """It cannot be told from the magenta around a picture where it reaches the lower or the right edge."""
    folder = CHECKPOINTS["siglip_2_naflex"](tmp_path)
    model, shown = load_retriever(folder), [*OWN_MAGENTA.values()]
    own, pixels_NCHX = own_outputs(folder, shown, TEXTS), frames_of(shown, model.processor)
    patches = pixels_NCHX.movedim(1, -1).unflatten(1, (-1, 16)).unflatten(3, (-1, 16)).transpose(2, 3)
    assert picture_shapes(patches).tolist() == [[4, 4]] * len(shown)
    torch.testing.assert_close(frame_features(model.towers, pixels_NCHX), own.images_BD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shown", "shape"), [
    ([], [1, 1]), ([(0, 0)], [1, 1]), ([(2, 1)], [3, 2]), ([(3, 0), (0, 3)], [4, 4]), ([(1, 0), (1, 2)], [2, 3])])
def test_a_picture_ends_with_its_last_row_and_column_that_are_not_magenta(shown, shape):
    patches = torch.tensor([1.0, -1, 1]).expand(1, 4, 4, 16, 16, 3).clone()
    for row, column in shown:
        patches[0, row, column] = 0
    assert picture_shapes(patches).tolist() == [shape]


@pytest.mark.parametrize("shape", [(48, 88), (88, 48), (1080, 1920), (333, 100), (16, 16), (719, 1281), (100, 333)])
def test_whole_pictures_have_naflexs_own_shape(shape):
    assert whole_shape(*shape, 512) == get_image_size_for_max_num_patches(*shape, 16, 256)


def test_whole_pictures_fit_when_they_are_longer_than_the_square():
    assert whole_shape(16, 3000, 512) == (16, 512)


@pytest.mark.parametrize(("quality", "subsampling"), [(90, "420"), (75, "420"), (90, "444")])
def test_shapes_of_whole_pictures_are_found_again_in_jpegs(quality, subsampling):
    """Shards hold JPEG, which mixes colours at the rim of the picture."""
    pictures = [np.asarray(picture) for picture in photographs()]
    pictures += [np.full((48, 88, 3), colour, np.uint8) for colour in [(0, 0, 0), (255, 0, 0), (0, 0, 255), (255,) * 3]]
    frames = np.stack([to_square(picture, 128, ("whole", "BILINEAR")) for picture in pictures])
    back = np.stack([simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(frame, quality=quality,
                                                                   colorsubsampling=subsampling)) for frame in frames])
    patches = (torch.from_numpy(back) / 127.5 - 1).unflatten(1, (-1, 16)).unflatten(3, (-1, 16)).transpose(2, 3)
    needed = [[side // 16 for side in whole_shape(*picture.shape[:2], 128)] for picture in pictures]
    assert picture_shapes(patches).tolist() == needed


def pixels(count: int, size: int) -> torch.Tensor:
    return pictures(count, size=size).movedim(-1, 1).float() / 64 - 2


@torch.no_grad()
def test_class_token_is_the_pooled_output_when_only_it_is_computed(clip):
    images = pixels(4, 32)
    needed = clip.vision_model(pixel_values=images).pooler_output
    torch.testing.assert_close(clip_class_token(clip.vision_model, images, False), needed, atol=1e-5, rtol=1e-5)


def test_class_token_has_the_gradients_of_the_pooled_output_when_backpropagated(clip_folder):
    found, needed = [], []
    for gradients, run in ((found, lambda vision, x: clip_class_token(vision, x, False)),
                           (needed, lambda vision, x: vision(pixel_values=x).pooler_output)):
        vision = load_towers(str(clip_folder), 77).vision_model
        run(vision, pixels(3, 32)).square().sum().backward()
        gradients.extend(weight.grad for weight in vision.parameters())
    for left, right in zip(found, needed, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_new_family_is_read_when_it_has_a_row(tmp_path, monkeypatch):
    """A checkpoint that is put together as CLIP is needs CLIP's row; nothing else has to change."""
    folder = CHECKPOINTS["metaclip_2"](tmp_path)
    monkeypatch.delitem(FAMILIES, "metaclip_2")
    with pytest.raises(ModelError, match=r"need a dual tower of family clip or .*, got 'metaclip_2'"):
        load_towers(str(folder), 16)
    monkeypatch.setitem(FAMILIES, "metaclip_2", FAMILIES["clip"])
    assert load_towers(str(folder), 16)


@torch.no_grad()
def test_a_new_family_is_read_when_its_text_attends_in_both_directions(tmp_path, monkeypatch):
    """Chinese CLIP has BERT's text tower: its padding needs a mask, and its positions have another name."""
    def text(towers, ids_BW, mask_BW):
        seen_B11W = torch.zeros(mask_BW.shape).masked_fill(~mask_BW, -1e9)[:, None, None]
        states_BWD = towers.text_model(input_ids=ids_BW, token_type_ids=torch.zeros_like(ids_BW),
                                       attention_mask=seen_B11W).last_hidden_state
        return towers.text_projection(states_BWD), towers.text_projection(states_BWD[:, 0])

    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ChineseCLIPConfig(projection_dim=24, vision_config=dict(common, image_size=32, patch_size=8),
                               text_config=dict(common, vocab_size=50, max_position_embeddings=8))
    randomised(ChineseCLIPModel(config)).save_pretrained(tmp_path)
    like_clip = FAMILIES["clip"]
    monkeypatch.setitem(FAMILIES, "chinese_clip", Family(like_clip.image, text, like_clip.embedding_dim,
                                                         like_clip.vision_parts, "position_embeddings"))
    towers, own = load_towers(str(tmp_path), 8).eval(), ChineseCLIPModel.from_pretrained(tmp_path).eval()
    images = pixels(3, 32)
    needed = own.get_image_features(pixel_values=images).pooler_output
    torch.testing.assert_close(frame_features(towers, images), needed, atol=1e-5, rtol=1e-5)
    ids_BW = torch.tensor([[2, 7, 8, 9, 3], [2, 5, 3, 0, 0]])
    mask_BW = ids_BW > 0
    needed = own.get_text_features(input_ids=ids_BW, attention_mask=mask_BW.long()).pooler_output
    torch.testing.assert_close(text_features(towers, ids_BW, mask_BW)[1], needed, atol=1e-5, rtol=1e-5)
    long_BW = torch.arange(3, 15)[None]     # 12 tokens, more than its 8 positions
    longer = load_towers(str(tmp_path), 12).eval()
    assert text_features(longer, long_BW, long_BW > 0)[0].shape == (1, 12, 24)


# other ways to say the same

def test_frames_are_squashed_when_they_are_then_cropped_to_the_size_that_they_have(tmp_path):
    folder, side = save_small_clip(tmp_path), {"height": 32, "width": 32}
    own = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(own | {"size": side, "crop_size": side}))
    processor = load_retriever(folder).processor
    assert processor.square == ("squash", "BICUBIC")
    for found, needed in zip(frames_of(photographs(), processor), own_outputs(folder, photographs(), TEXTS).pixels,
                             strict=True):
        assert torch.equal(found, needed)


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")
def test_open_clip_model_needs_no_other_folder_when_its_text_tower_is_of_transformers(tmp_path):
    bert, folder = tmp_path / "bert", tmp_path / "checkpoint"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    BertConfig(vocab_size=len(words), max_position_embeddings=64, **SHAPE).save_pretrained(bert)
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_proj_type": "mlp", "context_length": 32,
            "hf_pooler_type": "cls_last_hidden_state_pooler"}
    save_open_clip_model(folder, {"embed_dim": 24, "text_cfg": text, "vision_cfg": OPEN_CLIP["dfn"][0]["vision_cfg"]},
                         {})
    model = load_retriever(folder)
    model.save_pretrained(tmp_path / "saved")
    bert.rename(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"need config.json of its text tower '.+bert' \(text_cfg.hf_model_name"):
        load_retriever(folder)
    again = load_retriever(tmp_path / "saved")
    ids_BW, mask_BW = model.processor.texts(TEXTS)
    for found, needed in zip(text_features(again.towers, ids_BW, mask_BW.bool()),
                             text_features(model.towers, ids_BW, mask_BW.bool()), strict=True):
        assert torch.equal(found, needed)
