"""The image tower and the text tower: a CLIP or SigLIP of `transformers`, pretrained or a small one from scratch.

A pair of towers is a `transformers` model used unchanged, so that its weights load and save under their own names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPConfig, PretrainedConfig
from transformers.utils import logging

from hcmi.config import ScratchConfig
from hcmi.errors import ModelError
from hcmi.model.checkpoint_files import reading
from hcmi.model.families import FAMILIES, Towers
from hcmi.model.layers import ATTENTION, stretch_positions
from hcmi.model.stem import ConvStemClipConfig


def scratch_config(config: ScratchConfig, image_size: int, num_words: int, vocab_size: int, bos_id: int, eos_id: int,
                   pad_id: int) -> CLIPConfig:
    """The shape of a small CLIP whose two towers and embedding have the same width.

    Its activation is GELU's tanh form, one operation. CLIP's own, x sigmoid(1.7 x), is three on a CPU and was a tenth
    of a training step.
    """
    common = {"hidden_size": config.width, "intermediate_size": 4 * config.width, "num_attention_heads": config.heads,
              "projection_dim": config.width, "hidden_act": "gelu_pytorch_tanh"}
    return (ConvStemClipConfig if config.stem == "conv" else CLIPConfig)(
        projection_dim=config.width,
        vision_config=dict(common, num_hidden_layers=config.vision_layers, image_size=image_size,
                           patch_size=config.patch),
        text_config=dict(common, num_hidden_layers=config.text_layers, vocab_size=vocab_size,
                         max_position_embeddings=num_words, bos_token_id=bos_id, eos_token_id=eos_id,
                         pad_token_id=pad_id))


def load_towers(folder: str | Path, num_words: int, name: str = "model.backbone") -> Towers:
    """A pretrained CLIP or SigLIP by the folder of its checkpoint. `name`: what messages call it.

    Text positions are interpolated when captions are longer than the checkpoint allows. Weights are float32 whatever
    the checkpoint stores, because the new layers that are trained with them are float32.

    Raises: ModelError when it cannot be read, is of another family, or a tensor is missing or has the wrong shape.
    """
    with reading(name, "a CLIP or SigLIP checkpoint that transformers can read", "Copy or download it again."), quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_family(name, config.model_type)
        towers, problems = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32,
                                                     ignore_mismatched_sizes=True, output_loading_info=True,
                                                     trust_remote_code=False)
    check_loaded(name, problems | {"unexpected_keys": ()}, "Choose a complete checkpoint.")
    towers.set_attn_implementation(ATTENTION)
    _stretch_text_positions(towers, num_words)
    return towers


def build_towers(config: PretrainedConfig) -> Towers:
    """Untrained towers of the given shape, whose weights are loaded or learned afterwards."""
    check_family("model.backbone 'model'", config.model_type)
    return AutoModel.from_config(config, attn_implementation=ATTENTION)


def frame_features(towers: Towers, pixels_NCHX: Tensor) -> Tensor:
    """The towers' embedding of each image, [N, D].

    Images of another size than the one the tower was trained on work too: patch positions are interpolated.
    """
    trained = towers.config.vision_config.image_size
    resized = pixels_NCHX.shape[-2:] != (trained, trained)
    return FAMILIES[towers.config.model_type].image(towers, pixels_NCHX, resized)


def text_features(towers: Towers, input_ids_BW: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
    """Projected states of all tokens, [B, W, D], and of the sentence anchor, [B, D]."""
    return FAMILIES[towers.config.model_type].text(towers, input_ids_BW, mask_BW)


def embedding_dim(config: PretrainedConfig) -> int:
    return FAMILIES[config.model_type].embedding_dim(config)


def drop_vision_tower(towers: Towers) -> None:
    """Free the parts that encoding a text does not need; the towers cannot encode images any more."""
    for part in FAMILIES[towers.config.model_type].vision_parts:
        setattr(towers, part, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and notes of `transformers`.

    Loading or saving takes a second, and problems with it raise errors here.
    """
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def check_loaded(subject: str, problems: dict, next_step: str) -> None:
    """Refuse weights that do not fit, from the loading information that `from_pretrained` returns.

    Raises: ModelError naming the first tensor that has the wrong shape (with both shapes), is missing or is unknown.
    """
    for name, saved, needed in sorted(problems["mismatched_keys"]):
        raise ModelError(f"{subject}, tensor {name}: need shape {tuple(needed)}, got {tuple(saved)}. {next_step}")
    for kind, words in (("missing_keys", "need it in the weights, got none"),
                        ("unexpected_keys", "need no such tensor, got one")):
        for name in sorted(problems[kind]):
            raise ModelError(f"{subject}, tensor {name}: {words}. {next_step}")


def check_family(name: str, model_type: Any) -> None:
    """Raises: ModelError when `model_type` of a config.json is none of FAMILIES."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(f"{name}: need a dual tower of family {' or '.join(FAMILIES)}, "
                         f"got {model_type!r}. Choose a CLIP or SigLIP checkpoint.")


def _stretch_text_positions(towers: Towers, length: int) -> None:
    """Interpolate the text positions when there are fewer than `length`."""
    embeddings, name = towers.text_model.embeddings, FAMILIES[towers.config.model_type].text_positions
    positions = getattr(embeddings, name)
    if length <= positions.num_embeddings:
        return
    new_LD = stretch_positions(positions.weight.data, length)
    setattr(embeddings, name, nn.Embedding.from_pretrained(new_LD.contiguous(), freeze=False))
    embeddings.register_buffer("position_ids", torch.arange(length)[None], persistent=False)
    towers.config.text_config.max_position_embeddings = length
