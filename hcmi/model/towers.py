"""The image tower and the text tower: a CLIP or SigLIP of `transformers`, pretrained or a small one from scratch.

A pair of towers is a `transformers` model used unchanged, so that its weights load and save under their own names.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPConfig, PretrainedConfig
from transformers.utils import logging

from hcmi.config import ScratchConfig
from hcmi.errors import WRITING, ModelError, machine_error, system_error
from hcmi.model.families import FAMILIES, Towers
from hcmi.model.layers import ATTENTION, stretch_positions
from hcmi.model.stem import ConvStemClipConfig

BACKBONES = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14",
             "google/siglip-base-patch16-224", "google/siglip2-base-patch16-224")       # and others of these families


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


def load_towers(backbone: str, num_words: int, subject: str = "model.backbone") -> Towers:
    """A pretrained CLIP or SigLIP by checkpoint name or folder. `subject`: what messages call it.

    Text positions are interpolated when captions are longer than the checkpoint allows. Weights are float32 whatever
    the checkpoint stores, because the new layers that are trained with them are float32.

    Raises: ModelError when it cannot be downloaded or read, is of another family, or a tensor is missing or has the
    wrong shape.
    """
    local, name = Path(backbone).is_dir(), f"{subject} {backbone!r}"
    if not local:
        _check_name(name, backbone)
    try:
        # not quiet for a name: a download shows its progress
        with explain_missing_package(name), quiet() if local else nullcontext():
            config = AutoConfig.from_pretrained(backbone)
            _check_family(name, config)
            towers, problems = AutoModel.from_pretrained(backbone, config=config, dtype=torch.float32,
                                                         ignore_mismatched_sizes=True, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{name}: need a CLIP or SigLIP checkpoint that transformers can read, got: "
                         f"{' '.join(str(error).split())[:300]} Copy or download it again.") from error
    check_loaded(name, problems | {"unexpected_keys": ()}, "Choose a complete checkpoint.")
    towers.set_attn_implementation(ATTENTION)
    _stretch_text_positions(towers, num_words)
    return towers


def checkpoint_folder(backbone: str) -> Path:
    """The folder of a checkpoint that has been loaded by folder or by name; the latter is in this machine's cache."""
    folder = Path(backbone)
    return folder if folder.is_dir() else Path(snapshot_download(backbone, local_files_only=True))


def build_towers(config: PretrainedConfig) -> Towers:
    """Untrained towers of the given shape, whose weights are loaded or learned afterwards."""
    _check_family("model.backbone 'model'", config)
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


@contextmanager
def explain_missing_package(subject: str) -> Iterator[None]:
    """Replace an ImportError by an error that says which package is missing.

    Some checkpoints need a package that this project does not: one stored in 8 bits, or with another tokenizer.

    Raises: ModelError with the first sentence of the ImportError.
    """
    try:
        yield
    except ImportError as error:
        reason = " ".join(str(error).split()).partition(". ")[0].removesuffix(".")
        raise ModelError(f"{subject}: need a Python package to read it, got none: {reason}. Install that package, or "
                         f"choose another checkpoint.") from error


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


def _check_name(name: str, backbone: str) -> None:
    """Try once to get the smallest file: without a network, `from_pretrained` retries for 23 s."""
    known = f"Known: scratch, a folder, {', '.join(BACKBONES)}"
    or_scratch = ", or set model.backbone to scratch"
    if not name.startswith("model.backbone"):
        known, or_scratch = known.replace("scratch, ", ""), ""
    try:
        snapshot_download(backbone, allow_patterns=["config.json"])
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"{name}: need a folder or the name of a checkpoint, got neither. {known}.") from error
    except Exception as error:      # no network, a proxy, a broken answer: raised by libraries below huggingface_hub
        if (found := system_error(error)) is not None and found.errno in WRITING:
            raise machine_error("the cache of model.backbone", "to write it", found) from error
        raise ModelError(f"{name}: need a network to download it or a copy in this machine's "
                         f"cache, got neither. Download it elsewhere and give its folder{or_scratch}. {known}."
                         ) from error


def _check_family(name: str, config: PretrainedConfig) -> None:
    if config.model_type not in FAMILIES:
        raise ModelError(f"{name}: need a dual tower of family {' or '.join(FAMILIES)}, "
                         f"got {config.model_type!r}. Choose a CLIP or SigLIP checkpoint.")


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
