"""The families of dual towers that this project can use: one row of `FAMILIES` each.

A row says how a family's own model gives one vector per image and one per token, and what its parts are called. To add
a family of `transformers`: its row with the functions it needs, and its small checkpoint in
`tests/checkpoint_world.py`, which `tests/model/test_families.py` compares with the library's own output.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from hcmi.errors import ModelError
from hcmi.model.layers import attention
from hcmi.model.videoprism import clip_vectors, text_vectors

MAGENTA_TOLERANCE = 0.2     # of colours in [-1, 1]; JPEG of quality 90 changes plain magenta by 0.02
Towers = Any        # a transformers CLIPModel or SiglipModel, or a part of one: torch's types cannot name their parts


@dataclass(frozen=True)
class Family:
    """How a family is used. `text` takes token ids and mask [B, W] and returns [B, W, D] and [B, D].

    `transformers` does not give our attention (`layers.ATTENTION`) a padding mask. A family whose text attends in both
    directions therefore passes one of its own, [B, 1, 1, W] in float32: 0 for a token, -1e9 for padding.
    """

    image: Callable[[Towers, Tensor, bool], Tensor]     # pixels [N, C, H, X] -> [N, D]; True: interpolate positions
    text: Callable[[Towers, Tensor, Tensor], tuple[Tensor, Tensor]]     # states of all tokens, and the sentence anchor
    embedding_dim: Callable[[PretrainedConfig], int]
    vision_parts: tuple[str, ...]                       # attributes that encoding a text does not need
    text_positions: str = "position_embedding"          # attribute of `text_model.embeddings`
    lower_case: bool = False                            # trained on texts in small letters
    clean: str = ""                                     # another rule by which texts are cleaned (`clean_function`)
    # `image` takes the frames of whole clips, `vision_config.num_frames` to each; every frame gets the clip's vector
    whole_clips: bool = False


def _clip_image(towers: Towers, pixels_NCHX: Tensor, interpolate: bool) -> Tensor:
    return towers.visual_projection(clip_class_token(towers.vision_model, pixels_NCHX, interpolate))


def clip_class_token(vision: Towers, pixels_NCHX: Tensor, interpolate_pos_encoding: bool) -> Tensor:
    """CLIP's pooled class token, [N, D], equal to `vision(pixels).pooler_output`.

    Nothing reads the patches after the last layer, so that layer is computed for the class token alone. With two layers
    this saves 40 % of the tower's arithmetic. With activation checkpointing the other layers are computed again in the
    backward pass by `transformers`, and the embedding and the last layer here.
    """
    *layers, last = vision.encoder.layers
    twice = last.gradient_checkpointing and last.training

    def embed(pixels_NCHX: Tensor) -> Tensor:
        return vision.pre_layrnorm(vision.embeddings(pixels_NCHX, interpolate_pos_encoding=interpolate_pos_encoding))

    hidden_NSD = checkpoint(embed, pixels_NCHX, use_reentrant=False) if twice else embed(pixels_NCHX)
    for block in layers:
        hidden_NSD = block(hidden_NSD, attention_mask=None)
    if twice:
        return checkpoint(_class_token_layer, vision, last, hidden_NSD, use_reentrant=False)
    return _class_token_layer(vision, last, hidden_NSD)


def _class_token_layer(vision: Towers, last: Towers, hidden_NSD: Tensor) -> Tensor:
    """CLIP's last layer and layer norm, for the class token."""
    layer, normed_NSD = last.self_attn, last.layer_norm1(hidden_NSD)

    def split(tokens_NSD: Tensor) -> Tensor:
        return tokens_NSD.unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2)

    mixed_NH1E = attention(split(layer.q_proj(normed_NSD[:, :1])), split(layer.k_proj(normed_NSD)),
                           split(layer.v_proj(normed_NSD)), scale=layer.scale)
    class_ND = hidden_NSD[:, 0] + layer.out_proj(mixed_NH1E.transpose(1, 2).flatten(1))
    return vision.post_layernorm(class_ND + last.mlp(last.layer_norm2(class_ND)))


def _clip_text(towers: Towers, input_ids_BW: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor is the end-of-text token.

    Attention is causal and padding is on the right, so no valid token sees padding. Captions shorter than the training
    length use the first positions.
    """
    states_BWD = towers.text_projection(towers.text_model(input_ids=input_ids_BW).last_hidden_state)
    last_B = (mask_BW.long().sum(1) - 1).clamp(min=0)
    return states_BWD, states_BWD[torch.arange(len(last_B), device=last_B.device), last_B]


def _siglip_image(towers: Towers, pixels_NCHX: Tensor, interpolate: bool) -> Tensor:
    return towers.vision_model(pixel_values=pixels_NCHX, interpolate_pos_encoding=interpolate).pooler_output


def _siglip_text(towers: Towers, input_ids_BW: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor is the last of the fixed number of positions that SigLIP was trained with."""
    text_config = towers.config.text_config
    missing = text_config.max_position_embeddings - input_ids_BW.shape[1]
    padded = F.pad(input_ids_BW, (0, max(missing, 0)), value=text_config.pad_token_id)
    states_BLD = towers.text_model.head(towers.text_model(input_ids=padded).last_hidden_state)
    return states_BLD[:, :input_ids_BW.shape[1]], states_BLD[:, -1]


def _naflex_image(towers: Towers, pixels_NCHX: Tensor, _: bool) -> Tensor:
    """SigLIP 2 NaFlex: pictures of any shape in the upper left corner of a square that is magenta otherwise.

    Pictures of one shape are encoded together, so that no attention needs a mask.
    """
    patch = towers.config.vision_config.patch_size
    patches_NHXPPC = pixels_NCHX.movedim(1, -1).unflatten(1, (-1, patch)).unflatten(3, (-1, patch)).transpose(2, 3)
    shapes_N2 = picture_shapes(patches_NHXPPC)
    found: dict[int, Tensor] = {}
    for shape_2 in shapes_N2.unique(dim=0):
        rows, columns = shape_2.tolist()
        at_M = (shapes_N2 == shape_2).all(1).nonzero()[:, 0]
        tokens_MLE = patches_NHXPPC[at_M, :rows, :columns].flatten(1, 2).flatten(2)
        features_MD = towers.vision_model(
            pixel_values=tokens_MLE, pixel_attention_mask=torch.ones(tokens_MLE.shape[:2], device=at_M.device),
            spatial_shapes=shape_2.expand(len(at_M), 2)).pooler_output
        found |= dict(zip(at_M.tolist(), features_MD, strict=True))
    return torch.stack([found[at] for at in range(len(shapes_N2))])


def picture_shapes(patches_NHXPPC: Tensor) -> Tensor:
    """[N, 2] rows and columns of patches that a picture has, at least one; all after them are magenta, (1, -1, 1).

    A picture's own magenta counts where another colour is below it and to the right. The rim of a patch is not looked
    at: JPEG mixes colours across it.
    """
    magenta_C = torch.tensor([1.0, -1.0, 1.0], device=patches_NHXPPC.device)
    inner_NHXPPC = patches_NHXPPC[..., 2:-2, 2:-2, :].float()
    picture_NHX = ((inner_NHXPPC - magenta_C).abs() > MAGENTA_TOLERANCE).flatten(3).any(-1)
    places_H, places_X = (torch.arange(1, size + 1, device=picture_NHX.device) for size in picture_NHX.shape[1:])
    return torch.stack([(picture_NHX.any(2) * places_H).amax(1), (picture_NHX.any(1) * places_X).amax(1)], 1
                       ).clamp(min=1)


def _open_clip_image(towers: Towers, pixels_NCHX: Tensor, _: bool) -> Tensor:
    return towers.clip.encode_image(pixels_NCHX)


def _open_clip_text(towers: Towers, input_ids_BW: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor is the library's own sentence vector. The states of tokens are what it is projected from.

    The library's text towers take the full number of positions. They have no output for the states in common, so these
    are read where they pass.
    """
    text_config, clip = towers.config.text_config, towers.clip
    missing = text_config.max_position_embeddings - input_ids_BW.shape[1]
    padded_BL = F.pad(input_ids_BW, (0, max(missing, 0)), value=text_config.pad_token_id)
    text = getattr(clip, "text", clip)
    last, project = (text.transformer, text.proj) if hasattr(text, "pooler") else (text.ln_final, text.text_projection)
    seen: list[Any] = []
    hook = last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        anchor_BD = clip.encode_text(padded_BL)
    finally:
        hook.remove()
    states = getattr(seen[0], "last_hidden_state", seen[0])[:, :input_ids_BW.shape[1]]
    if project is not None:
        states = states @ project if isinstance(project, Tensor) else project(states)
    return states, anchor_BD


_CLIP = Family(_clip_image, _clip_text, lambda config: config.projection_dim, ("vision_model", "visual_projection"))
_SIGLIP = Family(_siglip_image, _siglip_text, lambda config: config.text_config.projection_size, ("vision_model",),
                 lower_case=True)

# `model_type` of a checkpoint's config.json -> how it is used
FAMILIES = {
    "clip": _CLIP,
    "clip_conv_stem": _CLIP,        # towers from scratch, see stem.py
    "metaclip_2": _CLIP,
    "siglip": _SIGLIP,              # and SigLIP 2 of a fixed size
    "siglip2": replace(_SIGLIP, image=_naflex_image),       # NaFlex
    # Its text positions are sinusoids, which cannot be stretched: the table of tokens always is long enough.
    "videoprism": Family(clip_vectors, text_vectors, lambda config: config.text_config.hidden_size,
                         ("video_model",), text_positions="token_embedding", clean="videoprism", whole_clips=True),
    "open_clip": Family(_open_clip_image, _open_clip_text, lambda own: own.model["embed_dim"], ("vision",)),
}


def clip_frames(config: PretrainedConfig) -> int:
    """How many frames towers of this configuration see together; 0 where each frame has a vector of its own."""
    return config.vision_config.num_frames if FAMILIES[config.model_type].whole_clips else 0


def check_frames_alone(config: PretrainedConfig, subject: str) -> None:
    """Raises: ModelError for towers that see the frames of a clip together: shards, training and heads need each alone.

    `subject`: what the message calls the model.
    """
    if clip_frames(config):
        raise ModelError(f"{subject}: need a backbone with a vector for each frame, got {config.model_type}, which has "
                         f"one for each clip. Search folders with it as it is (--videos), or choose another backbone.")
