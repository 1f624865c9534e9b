"""The retriever as a `transformers` model folder: towers, head, tokenizer and preprocessing, saved and loaded as one.

    model = load_retriever("models/hcmi")
    videos = model.encode_videos(model.processor.frames(frames_BTHXC), mask_BT)
    texts = model.encode_texts(*model.processor.texts(["a red ring slides left"]))
    model.combine(model.similarities(texts, videos))        # [Q, V]
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hcmi.config import ModelConfig
from hcmi.errors import ModelError
from hcmi.model.heads import build_head
from hcmi.model.processor import HcmiProcessor
from hcmi.model.towers import (
    build_towers,
    check_loaded,
    embedding_dim,
    frame_features,
    load_towers,
    quiet,
    scratch_config,
    text_features,
)
from hcmi.runtime import single_after_fork
from hcmi.types import TextTokens, VideoTokens

FILES = ("config.json", "model.safetensors", "tokenizer_config.json", "preprocessor_config.json")
VOCABULARIES = ("tokenizer.json", "spiece.model")       # a folder has one of them; SigLIP 1 has the second


class HcmiConfig(PretrainedConfig):
    """What config.json holds: the head's options, and the towers' own configuration in `towers`.

    `level_weights` were chosen on validation.
    """

    model_type = "hcmi"

    def __init__(self, towers: dict | None = None, head: str = "hcmi", backbone: str = "scratch", num_frames: int = 12,
                 num_words: int = 32, num_clips: int = 4, num_phrases: int = 8, temporal_layers: int = 2,
                 aggregation: str = "assign", coarse_gradient: float = 1.0,
                 level_weights: dict[str, float] | None = None, **kwargs):
        self.towers = towers
        self.head = head
        self.backbone = backbone
        self.num_frames = num_frames
        self.num_words = num_words
        self.num_clips = num_clips
        self.num_phrases = num_phrases
        self.temporal_layers = temporal_layers
        self.aggregation = aggregation
        self.coarse_gradient = coarse_gradient
        self.level_weights = level_weights
        super().__init__(**kwargs)


AutoConfig.register("hcmi", HcmiConfig)     # otherwise AutoTokenizer warns that the folder is another model's


class HcmiModel(PreTrainedModel):
    """Towers and a head. `model.processor` turns pixels and strings into the model's inputs."""

    config_class = HcmiConfig
    base_model_prefix = "hcmi"
    processor: HcmiProcessor

    def __init__(self, config: HcmiConfig, towers: PreTrainedModel | None = None):
        super().__init__(config)
        single_after_fork(torch.set_num_threads)
        if towers is None:
            towers_config = dict(config.towers or {})
            towers = build_towers(AutoConfig.for_model(towers_config.pop("model_type", "unknown"), **towers_config))
        self.towers = towers
        dim = embedding_dim(towers.config)
        heads = next(heads for heads in range(max(dim // 64, 1), 0, -1) if dim % heads == 0)
        self.head = build_head(config.head, dim=dim, heads=heads, temporal_layers=config.temporal_layers,
                               num_frames=config.num_frames, num_words=config.num_words, num_clips=config.num_clips,
                               num_phrases=config.num_phrases, aggregation=config.aggregation,
                               coarse_gradient=config.coarse_gradient)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Change nothing: layers are initialised where they are made, and zero branches must stay zero."""

    @property
    def level_weights(self) -> dict[str, float]:
        return self.config.level_weights or dict.fromkeys(self.head.levels, 1.0)

    @property
    def fingerprint(self) -> str:
        """sha256 of weights, configuration, tokens and preprocessing. An index is valid for one fingerprint."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        ignored = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
        config = {key: value for key, value in self.config.to_dict().items() if key not in ignored}
        tokens = [self.processor.tokenizer.get_vocab(), self.processor.untrained.tolist()]
        digest.update(json.dumps([config, tokens, self.processor.describe()], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def checkpoint_activations(self) -> None:
        """Let the towers keep only the inputs of their layers in training, and compute the rest again for gradients."""
        self.towers.activation_checkpointing_enable({"use_reentrant": False})

    def frame_features(self, pixel_values_BTCHX: Tensor) -> Tensor:
        """The towers' features of every frame, [B, T, D]."""
        batch, frames = pixel_values_BTCHX.shape[:2]
        return frame_features(self.towers, pixel_values_BTCHX.flatten(0, 1)).view(batch, frames, -1)

    def encode_videos(self, pixel_values_BTCHX: Tensor, frame_mask_BT: Tensor) -> VideoTokens:
        """Tokens of each video at all levels. Masks are left-aligned: valid frames first."""
        return self.head.video(self.frame_features(pixel_values_BTCHX), frame_mask_BT)

    def encode_texts(self, input_ids_BW: Tensor, attention_mask_BW: Tensor) -> TextTokens:
        """Tokens of each caption at all levels."""
        mask_BW = attention_mask_BW.bool()
        return self.head.text(*text_features(self.towers, input_ids_BW, mask_BW), mask_BW)

    def similarities(self, texts: TextTokens, videos: VideoTokens) -> dict[str, Tensor]:
        """Level -> [Q, V], for the levels of the head."""
        return self.head.similarities(texts, videos)

    def combine(self, levels: dict[str, Tensor]) -> Tensor:
        """Weighted sum over levels, [Q, V]."""
        total = None
        for name, sims_QV in levels.items():
            weighted_QV = self.level_weights[name] * sims_QV
            total = weighted_QV if total is None else total + weighted_QV
        assert total is not None, "a head has at least one level"
        return total

    def save_pretrained(self, save_directory, **kwargs):        # type: ignore[override]
        with quiet():
            super().save_pretrained(save_directory, **kwargs)
            self.processor.save_pretrained(save_directory)


def new_retriever(config: ModelConfig, image_size: int, captions: list[str]) -> HcmiModel:
    """An untrained retriever. The tokenizer of scratch towers is learned from `captions`, those of the training split.

    Raises: ModelError when the backbone cannot be loaded or its patches do not fit the image size.
    """
    if config.backbone == "scratch":
        processor = HcmiProcessor.from_captions(captions, config.scratch.vocab_size, config.num_words, image_size)
        tokenizer = processor.tokenizer
        if image_size % config.scratch.patch:
            raise ModelError(f"model.scratch.patch: need a divisor of shards.size={image_size}, "
                             f"got {config.scratch.patch}. Change one of them.")
        towers = build_towers(scratch_config(config.scratch, image_size, config.num_words, len(tokenizer),
                                             tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id))
    else:
        towers = load_towers(config.backbone, config.num_words)
        processor = HcmiProcessor.from_backbone(config.backbone, config.num_words, image_size)
        towers.config.text_config.pad_token_id = processor.tokenizer.pad_token_id   # SigLIP 2's files disagree
        patch = towers.config.vision_config.patch_size
        if image_size < patch:
            raise ModelError(f"shards.size: need at least the {patch} pixels of a patch of {config.backbone!r}, "
                             f"got {image_size}. Raise shards.size.")
    hcmi_config = HcmiConfig(towers=towers.config.to_dict(), **config.model_dump(exclude={"scratch"}))
    model = HcmiModel(hcmi_config, towers)
    model.processor = processor
    return model


def load_retriever(folder: str | Path, device: str | torch.device = "cpu") -> HcmiModel:
    """Load a folder that `save_pretrained` wrote. The model is in evaluation mode.

    Raises: ModelError when the folder is missing or incomplete, or a tensor has the wrong shape (naming both shapes).
    """
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in VOCABULARIES):
        missing.append(VOCABULARIES[0])
    if missing:
        raise ModelError(f"model folder {folder}: need {missing[0]}, found none. Train first (`dvc repro train`) or "
                         f"give the folder of a trained model.")
    try:
        with quiet():
            loaded: Any = HcmiModel.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
            model, problems = loaded
            model.processor = HcmiProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model folder {folder}: need a model that `hcmi train` saved, got: "
                         f"{' '.join(str(error).split())[:300]} Train again or copy the whole folder.") from error
    check_loaded(f"model folder {folder}", problems,
                 "config.json does not belong to these weights, or another version of hcmi wrote them. Train again, or "
                 "copy both from one training run.")
    return model.to(device).eval()
