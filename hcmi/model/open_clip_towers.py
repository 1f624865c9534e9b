"""Checkpoints of the library open_clip (the extra `hcmi[open_clip]`): PE-Core, DFN, MobileCLIP 2, EVA and others.

A folder of open_clip has `open_clip_config.json`, the weights as safetensors, and mostly a tokenizer. The library
makes the towers and reads the weights. `OpenClipTowers` gives them the form of a `transformers` model, in which a
trained model keeps them. The library is imported when towers are made, because it may be missing.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTokenizer, PretrainedConfig, PreTrainedModel

from hcmi.errors import ModelError
from hcmi.model.checkpoint_files import CONFIG, OPEN_CLIP, OPEN_CLIP_WEIGHTS, reading
from hcmi.model.videoprism import words_and_a_period

NOT_KEPT = ("_name_or_path", "auto_map", "transformers_version")       # of the configuration of a text tower
INSTALL = "Install it: pip install 'hcmi[open_clip]'."


class OpenClipConfig(PretrainedConfig):
    """`model` is the `model_cfg` of open_clip_config.json; the parts hold what this project asks of every family.

    Where the text tower is a model of `transformers`, `text_cfg` also has its configuration, as `hf_config`.
    """

    model_type = "open_clip"
    sub_configs = {"vision_config": PretrainedConfig, "text_config": PretrainedConfig}      # noqa: RUF012

    def __init__(self, model: dict | None = None, vision_config: Any = None, text_config: Any = None, **kwargs):
        model = model or {}
        vision, text = (model.get(part, {}) for part in ("vision_cfg", "text_cfg"))
        self.model = model
        self.vision_config = _part(vision_config, {"image_size": vision.get("image_size", 224),
                                                   "patch_size": vision.get("patch_size")})
        self.text_config = _part(text_config, {"max_position_embeddings": text.get("context_length", 77),
                                               "pad_token_id": text.get("pad_id", 0)})
        super().__init__(**kwargs)


def _part(given: Any, default: dict) -> PretrainedConfig:
    if isinstance(given, PretrainedConfig):
        return given
    return PretrainedConfig(**(default if given is None else given))


class OpenClipTowers(PreTrainedModel):
    """A model of open_clip as `clip`. Its image tower is `clip.visual`; the rest is the text tower."""

    config_class = OpenClipConfig
    _supports_attention_backend = True      # the library's own attention runs, whatever is asked for
    _supports_sdpa = True

    def __init__(self, config: OpenClipConfig, clip: Any = None):
        super().__init__(config)
        self.clip: Any = _make(config.model) if clip is None else clip
        for name, table in list(self.clip.named_buffers()):
            # Saved with the weights: `from_pretrained` makes models without memory, and loses what no file holds.
            owner, _, last = name.rpartition(".")
            self.clip.get_submodule(owner).register_buffer(last, table)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Change nothing: the library has initialised its layers, or a file holds them."""

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Keep only the inputs of layers in training, by the library's own means."""
        self.clip.set_grad_checkpointing()

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the text tower has a vector of."""
        text = self.config.model["text_cfg"]
        return text.get("hf_config", text).get("vocab_size", 49408)      # CLIP's, which is the library's default

    @property
    def vision(self) -> Any:
        return self.clip.visual

    @vision.setter
    def vision(self, tower: Any) -> None:
        self.clip.visual = tower


AutoConfig.register(OpenClipConfig.model_type, OpenClipConfig)
AutoModel.register(OpenClipConfig, OpenClipTowers)


def _library(subject: str) -> Any:
    """Raises: ModelError when it is not installed."""
    try:
        import open_clip
    except ImportError as error:
        raise ModelError(f"{subject}: need the library open_clip to read it, got none: {error}. {INSTALL}") from error
    return open_clip


def _make(model: dict[str, Any]) -> Any:
    """Raises: ModelError when the library is missing or does not know such a model."""
    library = _library("an open_clip model")
    options = json.loads(json.dumps(_with_text_config(model, "an open_clip model")))
    text = options["text_cfg"]
    options["vision_cfg"]["timm_model_pretrained"] = False       # no download: our folder has all weights
    text["hf_model_pretrained"] = False
    custom = options.pop("custom_text", False) or "hf_model_name" in text
    if "multimodal_cfg" in options:
        raise ModelError("an open_clip model: need a dual tower, got CoCa, which also writes captions. Choose another "
                         "checkpoint.")
    kind = library.CustomTextCLIP if custom else library.CLIP
    if "hf_config" not in text:
        return kind(**options)
    with tempfile.TemporaryDirectory() as folder:       # the library reads this configuration from a folder alone
        Path(folder, CONFIG).write_text(json.dumps(text.pop("hf_config")), encoding="utf-8")
        text["hf_model_name"] = folder
        return kind(**options)


def _with_text_config(model: dict[str, Any], name: str) -> dict[str, Any]:
    """`model` with the configuration of a text tower of `transformers`, so that a saved model needs no other folder."""
    source = model["text_cfg"].get("hf_model_name")
    if not source or "hf_config" in model["text_cfg"]:
        return model
    with reading(name, f"{CONFIG} of its text tower {source!r} (text_cfg.hf_model_name in {OPEN_CLIP})",
                 "Download it where there is a network, or give the folder that has it."):
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        except OSError:         # not in this machine's cache
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    kept = {key: value for key, value in config.to_dict().items() if key not in NOT_KEPT}
    return model | {"text_cfg": model["text_cfg"] | {"hf_config": kept}}


def load_open_clip(folder: Path, config: dict[str, Any], name: str) -> OpenClipTowers:
    """The towers of an open_clip folder, in float32. `name` is what messages call it.

    Raises: ModelError when the library is missing, or the weights are missing or do not fit.
    """
    library = _library(name)
    found = next((folder / file for file in OPEN_CLIP_WEIGHTS if (folder / file).is_file()), None)
    if found is None:
        raise ModelError(f"{name}: need the weights as {OPEN_CLIP_WEIGHTS[0]}, found none. Copy or download it; other "
                         f"formats can run code, and are not read.")
    with reading(name, f"{OPEN_CLIP} and weights that belong together", "Copy or download it again."):
        model = _with_text_config(config["model_cfg"], name)
        clip = _make(model)
        library.load_checkpoint(clip, str(found), strict=True)
        return OpenClipTowers(OpenClipConfig(model), clip)


def open_clip_tokenizer(folder: Path, config: dict[str, Any], name: str) -> tuple[Any, str, int]:
    """The tokenizer as `transformers` has it, the rule that cleans texts, and the id of padding.

    Raises: ModelError when it is used in a way that we cannot repeat.
    """
    text = config["model_cfg"]["text_cfg"]
    options = dict(text.get("tokenizer_kwargs", {}))
    odd = {key for key in ("strip_sep_token", "language", "reduction_mask") if options.pop(key, None)}
    if odd or text.get("tokenizer_mode"):
        raise ModelError(f"{name}, {OPEN_CLIP}: need a tokenizer without {' or '.join(sorted(odd | {'a mode'}))}, got "
                         f"one with it. Choose another checkpoint.")
    if not text.get("hf_tokenizer_name"):
        return _clip_tokenizer(name), f"open_clip:{options.get('clean', 'lower')}", 0
    clean = options.pop("clean", "whitespace")
    tokenizer = AutoTokenizer.from_pretrained(folder, **options | {"trust_remote_code": False})
    return tokenizer, f"open_clip:{clean}", tokenizer.pad_token_id


def _clip_tokenizer(name: str) -> CLIPTokenizer:
    """CLIP's own, which the library has without a folder. It pads with 0; `transformers` would use the end token."""
    own = _library(name).tokenizer.SimpleTokenizer()
    words = {token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): number
             for token, number in own.encoder.items()}
    return CLIPTokenizer(vocab=words, merges=list(own.bpe_ranks), model_max_length=77)


def clean_function(rule: str) -> Callable[[str], str]:
    """How texts are cleaned before the tokenizer sees them.

    Not at all, `lower`, `videoprism`, or `open_clip:` and that library's name of the rule.
    """
    if not rule:
        return lambda text: text
    if rule == "lower":
        return str.lower
    if rule == "videoprism":
        return words_and_a_period
    return _library("this model's texts").tokenizer.get_clean_fn(rule.removeprefix("open_clip:"))
