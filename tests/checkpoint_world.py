"""Small checkpoints of each family, of random weights, with the files that the hub has; and the library's own outputs.

`CHECKPOINTS`: name -> a function that writes the folder. `own_outputs` knows nothing of this project: it uses the
preprocessing, the tokenizer and the forward pass of the library that the folder belongs to.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from model_world import randomised, save_small_clip, save_small_siglip, save_small_siglip_1
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    VideoPrismClipModel,
    VideoPrismConfig,
    VideoPrismTokenizer,
)
from transformers.initialization import no_init_weights
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from hcmi.model.towers import quiet

TEXTS = ["A Dog jumps into WATER", "two people talk, and nobody listens!", "a red car",
         "word " * 100]     # the last one is longer than any text tower allows
LANGUAGES = ["Ein Hund springt ins Wasser", "Собака прыгает в воду", "一只狗跳进水里", "犬が水に飛び込む",
             "كلب يقفز في الماء"]
CORPUS = [*TEXTS[:3], *LANGUAGES] * 4
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_siglip_2(folder: Path) -> Path:
    """SigLIP 2 of a fixed size: the parts of SigLIP, a tokenizer of many languages, and a bilinear filter."""
    _save_gemma_tokenizer(folder)
    config = SiglipConfig(text_config=dict(SHAPE, projection_size=32, vocab_size=_gemma_size(folder), pad_token_id=0),
                          vision_config=dict(SHAPE, image_size=32, patch_size=8))
    _save_towers(SiglipModel, config, folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    return folder


def save_siglip_2_naflex(folder: Path) -> Path:
    _save_gemma_tokenizer(folder)
    config = Siglip2Config(text_config=dict(SHAPE, projection_size=32, vocab_size=_gemma_size(folder), pad_token_id=0),
                           vision_config=dict(SHAPE, num_patches=16, patch_size=16))
    _save_towers(Siglip2Model, config, folder)
    Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16).save_pretrained(folder)
    return folder


def save_metaclip_2(folder: Path) -> Path:
    """Its tokenizer is XLM-R's: pieces of words of many languages, with a start, an end and a padding of its own."""
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    unigram.post_processor = processors.TemplateProcessing(single="<s> $A </s>",
                                                           special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                        unk_token="<unk>", cls_token="<s>", sep_token="</s>", model_max_length=77)
    tokenizer.save_pretrained(folder)
    config = MetaClip2Config(
        projection_dim=24, vision_config=dict(SHAPE, projection_dim=24, image_size=32, patch_size=8),
        text_config=dict(SHAPE, projection_dim=24, vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=1,
                         bos_token_id=0))
    _save_towers(MetaClip2Model, config, folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_videoprism(folder: Path, num_frames: int = 4) -> Path:
    """Of the layout that `VideoPrismProcessor.save_pretrained` writes: how frames are made stands in its own file.

    The tokenizer is T5's without an end token.
    """
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    unigram.train_from_iterator([text.lower() + "." for text in CORPUS], trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    learned = json.loads(unigram.to_str())["model"]["vocab"]
    tokenizer = VideoPrismTokenizer(vocab=[tuple(piece) for piece in learned], extra_ids=0, model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = VideoPrismConfig(
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_spatial_layers": 1,
                       "num_temporal_layers": 1, "num_auxiliary_layers": 1, "image_size": 36, "num_frames": num_frames},
        text_config={"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
                     "vocab_size": len(tokenizer)})
    torch.manual_seed(0)
    towers = VideoPrismClipModel(config)
    with quiet(), torch.no_grad():
        for parameter in towers.parameters():
            parameter.normal_(std=0.3)
        towers.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({
        "processor_class": "VideoPrismProcessor", "video_processor": {
            "video_processor_type": "LlavaOnevisionVideoProcessor", "do_resize": True, "do_rescale": True,
            "do_normalize": False, "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 36, "width": 36}}}))
    return folder


def _save_towers(kind: Any, config: Any, folder: Path) -> None:
    with quiet(), no_init_weights():
        randomised(kind(config)).save_pretrained(folder)


def _save_gemma_tokenizer(folder: Path) -> None:
    """Gemma's as SigLIP 2 has it: case matters to it, unknown characters are spelt in bytes, texts end with <eos>."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    words = [*names, *sorted(learned["vocab"], key=learned["vocab"].__getitem__)]
    bpe = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(dict.fromkeys(words))},
                               merges=[tuple(merge) for merge in learned["merges"]], unk_token="<unk>", fuse_unk=True,
                               byte_fallback=True))
    bpe.normalizer, bpe.pre_tokenizer = trained.normalizer, pre_tokenizers.Split(" ", "merged_with_previous")
    bpe.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
                            unk_token="<unk>", padding_side="right", model_max_length=64).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "tokenizer_class": "GemmaTokenizer", "add_bos_token": False,
                                "add_eos_token": True}), encoding="utf-8")


def _gemma_size(folder: Path) -> int:
    return len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])


# open_clip

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP_COLOURS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
OPEN_CLIP: dict[str, tuple[dict, dict]] = {     # each as the library's configuration of that name, but smaller
    "dfn": ({"embed_dim": 24, "quick_gelu": True, "text_cfg": TEXT,
             "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}},
            {"resize_mode": "squash", **CLIP_COLOURS}),
    "pe_core": ({"embed_dim": 24, "text_cfg": {**TEXT, "layers": 3}, "custom_text": True,
                 "vision_cfg": {"image_size": 384, "timm_model_name": "vit_pe_core_tiny_patch16_384",
                                "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": None}},
                {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}),
    "mobileclip_2": ({"embed_dim": 24, "text_cfg": {**TEXT, "no_causal_mask": True}, "custom_text": True,
                      "vision_cfg": {"image_size": 64, "timm_model_name": "fastvit_mci0",
                                     "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": None,
                                     "timm_drop": 0.0, "timm_drop_path": 0.0}},
                     {"interpolation": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3}),
    "eva": ({"embed_dim": 24, "text_cfg": TEXT, "custom_text": True,
             "vision_cfg": {"image_size": 224, "timm_model_name": "eva02_tiny_patch14_224",
                            "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": "linear"}},
            CLIP_COLOURS),
    "open_clip_siglip_2": ({"embed_dim": 32, "init_logit_bias": -10, "custom_text": True,
                            "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16,
                                           "patch_size": 8},
                            "text_cfg": {**TEXT, "vocab_size": 0, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
                                         "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True,
                                         "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
                                         "act_kwargs": {"approximate": "tanh"}}},
                           {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3})}


def save_open_clip(folder: Path, name: str) -> Path:
    model, preprocessing = json.loads(json.dumps(OPEN_CLIP[name]))
    folder.mkdir(exist_ok=True)
    if "hf_tokenizer_name" in model["text_cfg"]:
        _save_gemma_tokenizer(folder)
        model["text_cfg"]["vocab_size"] = _gemma_size(folder)
    return save_open_clip_model(folder, model, preprocessing)


def save_open_clip_model(folder: Path, model: dict, preprocessing: dict) -> Path:
    """As the library's `push_to_hf_hub` writes it, without the tokenizer."""
    import open_clip

    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocessing}))
    options = {key: value for key, value in model.items() if key != "custom_text"}
    torch.manual_seed(0)
    options = json.loads(json.dumps(options))
    custom = model.get("custom_text") or "hf_model_name" in model["text_cfg"]
    if custom:
        options["text_cfg"]["hf_model_pretrained"] = False
    towers = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**options)
    with torch.no_grad():
        for parameter in towers.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    save_file({key: value.contiguous() for key, value in towers.state_dict().items()},
              folder / "open_clip_model.safetensors")
    return folder


# what the libraries give

@dataclass(frozen=True)
class Outputs:
    pixels: list[Tensor]        # of each picture, as its library's model takes it
    ids_BL: Tensor
    images_BD: Tensor
    texts_BD: Tensor


def own_outputs(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Outputs:
    """By the library alone, as its documents say it is used."""
    with torch.no_grad():
        if (folder / "open_clip_config.json").is_file():
            return _own_open_clip(folder, pictures, texts)
        towers = AutoModel.from_pretrained(folder).eval()
        images, tokenizer = AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(
            folder)
        family = towers.config.model_type
        if "siglip" in family:      # "texts in lower case, padded to the maximum length" (SigLIP 2's card)
            ids = tokenizer([text.lower() for text in texts], padding="max_length", max_length=64, truncation=True,
                            return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        inputs = [images(images=[picture], return_tensors="pt") for picture in pictures]
        images_BD = torch.cat([towers.get_image_features(**one).pooler_output for one in inputs])
        return Outputs([one["pixel_values"][0] for one in inputs], ids, images_BD,
                       towers.get_text_features(input_ids=ids).pooler_output)


def _own_open_clip(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Outputs:
    import open_clip

    towers, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    pixels = [preprocess(picture) for picture in pictures]
    towers.eval()
    return Outputs(pixels, ids, towers.encode_image(torch.stack(pixels)), towers.encode_text(ids))


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "clip": save_small_clip, "siglip": save_small_siglip,
    "siglip_1": lambda folder: save_small_siglip_1(folder, TEXTS[:3] * 20), "siglip_2": save_siglip_2,
    "siglip_2_naflex": save_siglip_2_naflex, "metaclip_2": save_metaclip_2,
    **{name: (lambda folder, name=name: save_open_clip(folder, name)) for name in OPEN_CLIP}}
