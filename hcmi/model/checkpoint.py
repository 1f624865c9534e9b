"""Models by the place that they come from: the folder of a trained one, or a checkpoint of any family.

A checkpoint is one of `transformers` or of open_clip, by its folder or its name on the hub. Nothing is added to it: a
model that was made of a checkpoint alone ranks as the checkpoint itself does.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hcmi.config import ModelConfig
from hcmi.errors import ModelError
from hcmi.model.checkpoint_files import (
    CONFIG,
    OPEN_CLIP,
    checkpoint_folder,
    is_name,
    missing_files,
    plain_name,
    read_json,
    read_open_clip,
    reading,
)
from hcmi.model.families import FAMILIES, Towers, check_frames_alone, clip_frames
from hcmi.model.geometry import (
    CLIP_SQUARE,
    WHOLE_PATCH,
    Square,
    check_square,
    checkpoint_geometry,
    open_clip_preprocessing,
)
from hcmi.model.modeling import FILES, LOCAL, PRECISIONS, VOCABULARIES, ZERO_SHOT_WEIGHTS, HcmiConfig, HcmiModel
from hcmi.model.open_clip_towers import OpenClipConfig, OpenClipTowers, load_open_clip, open_clip_tokenizer
from hcmi.model.processor import HcmiProcessor
from hcmi.model.towers import build_towers, check_family, check_loaded, load_towers, quiet, scratch_config

SENTINEL = re.compile(r"▁?<extra_id_\d+>")      # of T5's vocabulary, which multilingual SigLIP has: no text has them
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)    # open_clip's default


def load_retriever(source: str | Path, device: str | torch.device = "cpu", precision: str = "float32") -> HcmiModel:
    """Load a folder that `save_pretrained` wrote, or a checkpoint by its folder or its name on the hub.

    A checkpoint becomes an untrained retriever that ranks as the checkpoint itself does: by the cosine of the mean of
    the frames' unit vectors and the text's vector. The model is in evaluation mode. `precision`: one of PRECISIONS, in
    which the towers are stored. While it loads, the weights are float32.

    Raises: ModelError when nothing is there, a file or a library is missing or broken, a checkpoint is of another
    family, or a tensor has the wrong shape (naming both shapes).
    """
    if precision not in PRECISIONS:
        raise ModelError(f"precision {precision!r}: need one of {', '.join(PRECISIONS)}, got another. Correct it.")
    source = plain_name(str(source))
    if is_checkpoint(source):
        model = _zero_shot(*read_checkpoint(source, "model"), source)
        model.checkpoint = source
    else:
        model = _load_trained(Path(source))
    model.store_towers(precision)
    return nn.Module.to(model, device).eval()


def is_trained(model: HcmiModel) -> bool:
    """Whether `hcmi train` changed the model; otherwise it is a checkpoint, also where `train.epochs: 0` saved it."""
    return not model.checkpoint and not getattr(model.config, "zero_shot", False)


def is_checkpoint(source: str | Path) -> bool:
    """Whether this is a folder that another library wrote, or a name on the hub (`plain_name`, `is_name`)."""
    source = str(source)
    if os.path.isdir(source):
        config = read_json(Path(source, CONFIG))
        if config is None:
            return Path(source, OPEN_CLIP).is_file()        # otherwise loading says what is wrong
        return config.get("model_type") != HcmiConfig.model_type
    return is_name(source)


def new_retriever(config: ModelConfig, image_size: int, captions: list[str], square: Square = CLIP_SQUARE
                  ) -> HcmiModel:
    """An untrained retriever. The tokenizer of scratch towers is learned from `captions`, those of the training split.

    `square`: how the frames of `image_size` pixels became square. Warns when the backbone was trained on others.
    Raises: ModelError when the backbone cannot be loaded or its patches do not fit the frames.
    """
    if config.backbone == "scratch":
        towers, processor = _scratch(config, image_size, captions)
        processor.square = square
    else:
        towers, processor = read_checkpoint(config.backbone, "model.backbone", config.num_words)
        _use_frames(towers, processor, config.backbone, image_size, square)
        if isinstance(towers, OpenClipTowers) and config.num_words > processor.num_words:
            raise ModelError(f"model.num_words: need at most the {processor.num_words} positions of "
                             f"{config.backbone!r}, got {config.num_words}. Lower model.num_words.")
        processor.num_words = config.num_words
    model = HcmiModel(HcmiConfig(towers=towers.config.to_dict(), **config.model_dump(exclude={"scratch"})), towers)
    model.processor = processor
    return model


def _scratch(config: ModelConfig, image_size: int, captions: list[str]) -> tuple[Towers, HcmiProcessor]:
    processor = HcmiProcessor.from_captions(captions, config.scratch.vocab_size, config.num_words, image_size)
    tokenizer = processor.tokenizer
    if image_size % config.scratch.patch:
        raise ModelError(f"model.scratch.patch: need a divisor of shards.size={image_size}, "
                         f"got {config.scratch.patch}. Change one of them.")
    towers = build_towers(scratch_config(config.scratch, image_size, config.num_words, len(tokenizer),
                                         tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id))
    return towers, processor


def zero_shot_retriever(config: ModelConfig, image_size: int, square: Square = CLIP_SQUARE) -> HcmiModel:
    """The backbone as it is, for frames of these shards: the baseline that training must beat.

    Text has the checkpoint's own length, and only the level video-sentence has a weight. Warns and raises as
    `new_retriever` does.
    """
    towers, processor = read_checkpoint(config.backbone, "model.backbone")
    _use_frames(towers, processor, config.backbone, image_size, square)
    model = _zero_shot(towers, processor, config.backbone, config.num_frames)
    model.config.zero_shot = True
    return model.eval()


def read_checkpoint(source: str, subject: str, num_words: int = 0) -> tuple[Towers, HcmiProcessor]:
    """Towers of at least `num_words` text positions, and the processor that makes a checkpoint's own inputs.

    Raises: ModelError as `load_retriever` does. `subject` is what messages call the checkpoint.
    """
    name, folder = f"{subject} {source!r}", checkpoint_folder(source, subject)
    open_clip = read_open_clip(folder)
    if open_clip is not None:
        return _read_open_clip(folder, open_clip, name)
    config = read_json(folder / CONFIG)
    if config is None:
        raise ModelError(f"{name}: need {CONFIG} that describes a model, found none. Copy or download it again.")
    check_family(name, config.get("model_type"))
    _check_files(folder, name)
    towers = load_towers(folder, num_words, name)
    square, size = checkpoint_geometry(folder, name)
    text, vision = towers.config.text_config, towers.config.vision_config
    family = FAMILIES[towers.config.model_type]
    processor = HcmiProcessor.from_backbone(folder, text.max_position_embeddings, size, True, name,
                                            family.lower_case, family.clean)
    _check_vocabulary(name, processor, text.vocab_size)
    text.pad_token_id = processor.pad_id        # SigLIP 2's files disagree
    if square[0] == "whole":
        vision.image_size = size        # NaFlex has none of its own
    elif size != vision.image_size:
        raise ModelError(f"{name}: need preprocessor_config.json to make the {vision.image_size} pixels of config.json,"
                         f" got {size}: images resized to {vision.image_size} pixels and then cropped or not. Copy "
                         f"both from one checkpoint.")
    return towers, processor


def _read_open_clip(folder: Path, config: dict, name: str) -> tuple[OpenClipTowers, HcmiProcessor]:
    square, size = checkpoint_geometry(folder, name)
    _check_files(folder, name)
    with reading(f"{name}, {OPEN_CLIP}", "a configuration and tokenizer as open_clip writes them",
                 "Copy or download it again."):
        tokenizer, clean, pad_id = open_clip_tokenizer(folder, config, name)
        own = open_clip_preprocessing(config)
        images = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size},
            image_mean=list(own.get("mean", CLIP_MEAN)), image_std=list(own.get("std", CLIP_STD)))
        num_words = OpenClipConfig(config["model_cfg"]).text_config.max_position_embeddings
        processor = HcmiProcessor(tokenizer, images, num_words, size, square=square, clean=clean, pad_id=pad_id)
    towers = load_open_clip(folder, config, name)
    towers.config.text_config.pad_token_id = processor.pad_id
    _check_vocabulary(name, processor, towers.vocabulary_size)
    return towers, processor


def _check_vocabulary(name: str, processor: HcmiProcessor, size: int) -> None:
    """Raises: ModelError when texts can have tokens beyond the `size` vectors of the text tower."""
    tokenizer = processor.tokenizer
    never = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max(*processor.tokens("a", special=True), processor.pad_id,
                  *(number for piece, number in tokenizer.get_vocab().items()
                    if number not in never and not SENTINEL.fullmatch(piece)))
    if largest >= size:
        raise ModelError(f"{name}: need a tokenizer of at most {size:,} tokens, as many as the text tower has, got "
                         f"token {largest:,}. Copy the tokenizer and the weights from one checkpoint.")


def _use_frames(towers: Towers, processor: HcmiProcessor, backbone: str, image_size: int, square: Square) -> None:
    """Have a checkpoint's processor take frames of shards. Raises: ModelError when the towers cannot read them."""
    check_frames_alone(towers.config, f"model.backbone {backbone!r}")
    check_square(processor.square, square, f"model.backbone {backbone!r}, shards")
    patch = WHOLE_PATCH if square[0] == "whole" else towers.config.vision_config.patch_size or 1
    if image_size < patch:
        raise ModelError(f"shards.size: need at least the {patch} pixels of a patch of {backbone!r}, got {image_size}. "
                         f"Raise shards.size.")
    if image_size != processor.image_size and isinstance(towers, OpenClipTowers):
        raise ModelError(f"shards.size: need the {processor.image_size} pixels of {backbone!r}, got {image_size}. Set "
                         f"shards.size.")
    processor.image_size, processor.square = image_size, square


def _zero_shot(towers: Towers, processor: HcmiProcessor, source: str, num_frames: int = 12) -> HcmiModel:
    """The checkpoint's towers under an `hcmi` head of zeros, which passes their features on as they are.

    A head of zeros has no random values, so the model is the same in every process and on every machine.
    """
    num_frames = clip_frames(towers.config) or num_frames
    described = {key: value for key, value in towers.config.to_dict().items() if key not in LOCAL}
    model = HcmiModel(HcmiConfig(towers=described, backbone=source, num_frames=num_frames,
                                 num_words=processor.num_words, temporal_layers=0,
                                 level_weights=dict(ZERO_SHOT_WEIGHTS)), towers)
    with torch.no_grad():
        for module in model.head.modules():
            if not isinstance(module, (nn.LayerNorm, nn.ParameterDict)):        # the latter holds the logit scales
                for weight in module.parameters(recurse=False):
                    weight.zero_()
    model.processor = processor
    return model


def _check_files(folder: Path, name: str) -> None:
    """Raises: ModelError naming the tokenizer or preprocessing file that a checkpoint lacks."""
    for file in missing_files(folder):
        raise ModelError(f"{name}: need {file} of the checkpoint, found none. Copy all files of the checkpoint into "
                         f"the folder.")


def _load_trained(folder: Path) -> HcmiModel:
    if folder.is_file():
        raise ModelError(f"model {folder}: need the folder of a model, got a file. Name the folder that it is in.")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in VOCABULARIES):
        missing.append(VOCABULARIES[0])
    if missing:
        raise ModelError(f"model folder {folder}: need {missing[0]}, found none. Train first (`dvc repro train`), or "
                         f"give the folder of a trained model or of a CLIP or SigLIP checkpoint.")
    with reading(f"model folder {folder}", "a model that `hcmi train` saved",
                 "Train again or copy the whole folder."), quiet():
        loaded: Any = HcmiModel.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
        model, problems = loaded
        model.processor = HcmiProcessor.from_pretrained(folder)
    check_loaded(f"model folder {folder}", problems,
                 "config.json does not belong to these weights, or another version of hcmi wrote them. Train again, or "
                 "copy both from one training run.")
    return model
