"""The image tower and the text tower: any `transformers` CLIP or SigLIP, pretrained or a small one from scratch.

A tower pair is a `transformers` model used unchanged, so that its weights load and save by their own names.
"""

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    CLIPConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from hcmi.config import ScratchConfig
from hcmi.errors import ModelError

FAMILIES = ("clip", "siglip")
ATTENTION = "hcmi_sdpa"


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


def load_towers(backbone: str, num_words: int) -> PreTrainedModel:
    """A pretrained CLIP or SigLIP by checkpoint name or folder; text positions are interpolated past its training length.

    Raises: ModelError when it cannot be downloaded or read, or is of another family.
    """
    try:
        config = AutoConfig.from_pretrained(backbone)
        _check_family(backbone, config)
        towers = AutoModel.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        where = "folder" if Path(backbone).exists() else "checkpoint"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model.backbone {backbone!r}: need a CLIP or SigLIP {where} this machine can read, got: {reason} "
                         f"Download it where there is a network and give its folder, or set model.backbone to scratch."
                         ) from error
    towers.set_attn_implementation(ATTENTION)
    positions = towers.text_model.embeddings.position_embedding
    if num_words > positions.num_embeddings:
        _stretch_text_positions(towers, num_words)
    return towers


def build_towers(config: PretrainedConfig) -> PreTrainedModel:
    """Untrained towers of the given shape (their weights are about to be loaded or learned)."""
    _check_family("model", config)
    return AutoModel.from_config(config, attn_implementation=ATTENTION)


def frame_features(towers: PreTrainedModel, pixels_NCHX: Tensor) -> Tensor:
    """Projected class token (CLIP) or pooled token (SigLIP) of each image, [N, D].

    Image sizes other than the training one work: patch positions are interpolated.
    """
    trained = towers.config.vision_config.image_size
    resized = pixels_NCHX.shape[-2:] != (trained, trained)
    if towers.config.model_type == "clip":
        return towers.visual_projection(_class_token(towers.vision_model, pixels_NCHX, resized))
    return towers.vision_model(pixel_values=pixels_NCHX, interpolate_pos_encoding=resized).pooler_output


def _class_token(vision: nn.Module, pixels_NCHX: Tensor, interpolate_pos_encoding: bool) -> Tensor:
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


def text_features(towers: PreTrainedModel, input_ids_BW: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
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


def _check_family(name: str, config: PretrainedConfig) -> None:
    if config.model_type not in FAMILIES:
        raise ModelError(f"model.backbone {name!r}: need a dual tower of family {' or '.join(FAMILIES)}, "
                         f"got {config.model_type!r}. Choose a CLIP or SigLIP checkpoint.")


def _stretch_text_positions(towers: PreTrainedModel, length: int) -> None:
    """Linear interpolation of the learned text positions to a longer caption than the tower was trained on. [ours]"""
    embeddings = towers.text_model.embeddings
    old_LD = embeddings.position_embedding.weight.data
    new_DL = F.interpolate(old_LD.T[None], size=length, mode="linear", align_corners=True)[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(new_DL.T.contiguous(), freeze=False)
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
