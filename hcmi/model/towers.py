"""The image tower and the text tower: any `transformers` CLIP or SigLIP, pretrained or a small one from scratch.

A tower pair is a `transformers` model used unchanged, so that its weights load and save by their own names.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    CLIPConfig,
    PretrainedConfig,
)
from transformers.utils import logging

from hcmi.config import ScratchConfig
from hcmi.errors import WRITING, ModelError, machine_error, system_error

FAMILIES = ("clip", "siglip")
BACKBONES = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14",
             "google/siglip-base-patch16-224", "google/siglip2-base-patch16-224")       # and others of these families
ATTENTION = "hcmi_sdpa"
Towers = Any        # a transformers CLIPModel or SiglipModel, or a part of one: torch's types cannot name their parts


def scratch_config(config: ScratchConfig, image_size: int, num_words: int, vocab_size: int, bos_id: int, eos_id: int,
                   pad_id: int) -> CLIPConfig:
    """Shape of a small CLIP whose two towers and embedding share one width."""
    common = {"hidden_size": config.width, "intermediate_size": 4 * config.width, "num_attention_heads": config.heads,
              "projection_dim": config.width}
    return CLIPConfig(
        projection_dim=config.width,
        vision_config=dict(common, num_hidden_layers=config.vision_layers, image_size=image_size,
                           patch_size=config.patch),
        text_config=dict(common, num_hidden_layers=config.text_layers, vocab_size=vocab_size,
                         max_position_embeddings=num_words, bos_token_id=bos_id, eos_token_id=eos_id,
                         pad_token_id=pad_id))


def load_towers(backbone: str, num_words: int) -> Towers:
    """A pretrained CLIP or SigLIP by checkpoint name or folder; for longer captions text positions are interpolated.

    Weights are float32 whatever the checkpoint stores: layers that are trained beside them are.

    Raises: ModelError when it cannot be downloaded or read, is of another family, or a tensor is missing or misshapen.
    """
    local = Path(backbone).is_dir()
    if not local:
        _check_name(backbone)
    try:
        # a download shows its progress
        with packages(f"model.backbone {backbone!r}"), quiet() if local else nullcontext():
            config = AutoConfig.from_pretrained(backbone)
            _check_family(backbone, config)
            towers, problems = AutoModel.from_pretrained(backbone, config=config, dtype=torch.float32,
                                                         ignore_mismatched_sizes=True, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"model.backbone {backbone!r}: need a CLIP or SigLIP checkpoint that transformers can read, "
                         f"got: {' '.join(str(error).split())[:300]} Copy or download it again.") from error
    check_loaded(f"model.backbone {backbone!r}", problems | {"unexpected_keys": ()}, "Choose a complete checkpoint.")
    towers.set_attn_implementation(ATTENTION)
    positions = towers.text_model.embeddings.position_embedding
    if num_words > positions.num_embeddings:
        _stretch_text_positions(towers, num_words)
    return towers


def build_towers(config: PretrainedConfig) -> Towers:
    """Untrained towers of the given shape (their weights are about to be loaded or learned)."""
    _check_family("model", config)
    return AutoModel.from_config(config, attn_implementation=ATTENTION)


def frame_features(towers: Towers, pixels_NCHX: Tensor) -> Tensor:
    """Projected class token (CLIP) or pooled token (SigLIP) of each image, [N, D].

    Image sizes other than the training one work: patch positions are interpolated.
    """
    trained = towers.config.vision_config.image_size
    resized = pixels_NCHX.shape[-2:] != (trained, trained)
    if towers.config.model_type == "clip":
        return towers.visual_projection(_class_token(towers.vision_model, pixels_NCHX, resized))
    return towers.vision_model(pixel_values=pixels_NCHX, interpolate_pos_encoding=resized).pooler_output


def _class_token(vision: Towers, pixels_NCHX: Tensor, interpolate_pos_encoding: bool) -> Tensor:
    """CLIP's pooled class token, [N, D], equal to `vision(pixels).pooler_output`.

    Nothing reads the patches after the last layer, so that layer is computed for the class token alone: with two
    layers this saves 40 % of the tower's arithmetic.
    """
    hidden_NSD = vision.pre_layrnorm(vision.embeddings(pixels_NCHX, interpolate_pos_encoding=interpolate_pos_encoding))
    *layers, last = vision.encoder.layers
    for block in layers:
        hidden_NSD = block(hidden_NSD, attention_mask=None)
    layer, normed_NSD = last.self_attn, last.layer_norm1(hidden_NSD)

    def split(tokens_NSD: Tensor) -> Tensor:
        return tokens_NSD.unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2)

    mixed_NH1E = attention(split(layer.q_proj(normed_NSD[:, :1])), split(layer.k_proj(normed_NSD)),
                           split(layer.v_proj(normed_NSD)), scale=layer.scale)
    class_ND = hidden_NSD[:, 0] + layer.out_proj(mixed_NH1E.transpose(1, 2).flatten(1))
    return vision.post_layernorm(class_ND + last.mlp(last.layer_norm2(class_ND)))


def text_features(towers: Towers, input_ids_BW: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
    """Projected states of all tokens, [B, W, D], and of the sentence anchor, [B, D].

    The anchor is CLIP's end-of-text token, or the last of SigLIP's fixed number of positions. CLIP's attention is
    causal and padding is on the right, so no valid token sees padding. Captions shorter than the training length
    use the first positions.
    """
    if towers.config.model_type == "clip":
        states_BWD = towers.text_projection(towers.text_model(input_ids=input_ids_BW).last_hidden_state)
        last_B = (mask_BW.long().sum(1) - 1).clamp(min=0)
        return states_BWD, states_BWD[torch.arange(len(last_B), device=last_B.device), last_B]
    text_config = towers.config.text_config
    missing = text_config.max_position_embeddings - input_ids_BW.shape[1]
    padded = F.pad(input_ids_BW, (0, max(missing, 0)), value=text_config.pad_token_id)
    states_BLD = towers.text_model.head(towers.text_model(input_ids=padded).last_hidden_state)
    return states_BLD[:, :input_ids_BW.shape[1]], states_BLD[:, -1]


def embedding_dim(config: PretrainedConfig) -> int:
    return config.projection_dim if config.model_type == "clip" else config.text_config.projection_size


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and notes of `transformers`: loading or saving takes a second, and problems are raised here."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def packages(subject: str) -> Iterator[None]:
    """Some checkpoints need a package that this project does not: one stored in 8 bits, or with another tokenizer.

    Raises: ModelError in place of the ImportError, with its first sentence.
    """
    try:
        yield
    except ImportError as error:
        said = " ".join(str(error).split()).partition(". ")[0].removesuffix(".")
        raise ModelError(f"{subject}: need a Python package to read it, got none: {said}. Install that package, or "
                         f"choose another checkpoint.") from error


def check_loaded(subject: str, problems: dict, next_step: str) -> None:
    """Refuse weights that do not fit, from what `from_pretrained` says about them.

    Raises: ModelError naming the first tensor that is misshapen (with both shapes), missing or unknown.
    """
    for name, saved, needed in sorted(problems["mismatched_keys"]):
        raise ModelError(f"{subject}, tensor {name}: need shape {tuple(needed)}, got {tuple(saved)}. {next_step}")
    for kind, words in (("missing_keys", "need it in the weights, got none"),
                        ("unexpected_keys", "need no such tensor, got one")):
        for name in sorted(problems[kind]):
            raise ModelError(f"{subject}, tensor {name}: {words}. {next_step}")


def _check_name(backbone: str) -> None:
    """One try for the smallest file: `from_pretrained` alone goes on trying for 23 s without a network."""
    known = f"Known: scratch, a folder, {', '.join(BACKBONES)}"
    try:
        snapshot_download(backbone, allow_patterns=["config.json"])
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"model.backbone {backbone!r}: need a folder or the name of a checkpoint, got neither. "
                         f"{known}.") from error
    except Exception as error:      # no network, a proxy, a broken answer: classes of a library behind the library
        if (found := system_error(error)) is not None and found.errno in WRITING:
            raise machine_error("the cache of model.backbone", "to write it", found) from error
        raise ModelError(f"model.backbone {backbone!r}: need a network to download it or a copy in this machine's "
                         f"cache, got neither. Download it elsewhere and give its folder, or set model.backbone to "
                         f"scratch. {known}.") from error


def _check_family(name: str, config: PretrainedConfig) -> None:
    if config.model_type not in FAMILIES:
        raise ModelError(f"model.backbone {name!r}: need a dual tower of family {' or '.join(FAMILIES)}, "
                         f"got {config.model_type!r}. Choose a CLIP or SigLIP checkpoint.")


def stretch_positions(positions_LD: Tensor, length: int) -> Tensor:
    """Learned positions for at least `length` tokens: linearly interpolated where there are too few. [ours]"""
    if length <= len(positions_LD):
        return positions_LD
    return F.interpolate(positions_LD.T[None], size=length, mode="linear", align_corners=True)[0].T


def _stretch_text_positions(towers: Towers, length: int) -> None:
    embeddings = towers.text_model.embeddings
    new_LD = stretch_positions(embeddings.position_embedding.weight.data, length)
    embeddings.position_embedding = nn.Embedding.from_pretrained(new_LD.contiguous(), freeze=False)
    embeddings.register_buffer("position_ids", torch.arange(length)[None], persistent=False)
    towers.config.text_config.max_position_embeddings = length


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False,
              scale: float | None = None) -> Tensor:
    """Scaled dot-product attention over [N, heads, length, E]; in float32 on a CPU.

    Measured with torch 2.13: the backward pass of bfloat16 attention on a CPU takes 5 times float32's time and was half
    of a whole training step.
    """
    if queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal, scale=scale)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(queries.float(), keys.float(), values.float(),
                                               None if mask is None else mask.float(), is_causal=causal, scale=scale)
    return mixed.to(queries.dtype)


def _tower_attention(module, queries, keys, values, mask, scaling=None, is_causal=None, **_) -> tuple[Tensor, None]:
    """`attention` in the form that `transformers` calls."""
    causal = module.is_causal if is_causal is None else is_causal
    return attention(queries, keys, values, mask, bool(causal) and mask is None, scaling).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _tower_attention)
