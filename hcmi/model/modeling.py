"""The retriever as a `transformers` model folder: towers, head, tokenizer and preprocessing, saved and loaded as one.

    model = load_retriever("models/hcmi")
    videos = model.encode_videos(model.processor.frames(frames_BTHXC), mask_BT)
    texts = model.encode_texts(*model.processor.texts(["a red ring slides left"]))
    model.combine(model.similarities(texts, videos))        # [Q, V]
"""

import hashlib
import json

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hcmi.model.families import clip_frames
from hcmi.model.heads import build_head
from hcmi.model.processor import HcmiProcessor
from hcmi.model.towers import (
    build_towers,
    embedding_dim,
    frame_features,
    quiet,
    text_features,
)
from hcmi.runtime import single_after_fork
from hcmi.types import TextTokens, VideoTokens

# Precisions that towers may be stored in for inference. The head, which is small, stays float32.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of a checkpoint that nothing was trained on: only the vectors that it was itself trained to compare.
ZERO_SHOT_WEIGHTS = {"frame_word": 0.0, "clip_phrase": 0.0, "video_sentence": 1.0}
# Parts of a configuration that say nothing about what a model computes.
LOCAL = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
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
    """Towers and a head. `model.processor` turns pixels and strings into the model's inputs.

    `checkpoint` is the name or folder of the CLIP or SigLIP that an untrained model was made of by `load_retriever`,
    and empty for others.
    """

    config_class = HcmiConfig
    base_model_prefix = "hcmi"
    processor: HcmiProcessor
    checkpoint = ""
    kept_fingerprint = ""       # of the whole model in float32, once that is not in memory any more

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
        """sha256 of weights, configuration, tokens and preprocessing. An index is valid for one fingerprint.

        It does not depend on where a checkpoint lies, nor on the precision that the towers were loaded in.
        """
        if self.kept_fingerprint:
            return self.kept_fingerprint
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        ignored = {*LOCAL, "backbone"} if self.checkpoint else set(LOCAL)
        config = {key: value for key, value in self.config.to_dict().items() if key not in ignored}
        tokens = [self.processor.tokenizer.get_vocab(), self.processor.untrained.tolist()]
        digest.update(json.dumps([config, tokens, self.processor.describe()], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def checkpoint_activations(self) -> None:
        """Let the towers keep only the inputs of their layers in training, and compute the rest again for gradients."""
        self.towers.activation_checkpointing_enable({"use_reentrant": False})

    @property
    def frames_together(self) -> int:
        """How many frames the towers see together; 0 where each frame has a vector of its own."""
        return clip_frames(self.towers.config)

    @property
    def uses_words(self) -> bool:
        """Whether a level counts that compares words or phrases; otherwise the sentence alone makes the score."""
        return any(weight > 0 for level, weight in self.level_weights.items() if level != "video_sentence")

    def store_towers(self, precision: str) -> None:
        """Store the towers in one of PRECISIONS, for inference. The fingerprint stays that of the float32 weights."""
        if PRECISIONS[precision] != self.dtype:
            self.kept_fingerprint = self.fingerprint
            nn.Module.to(self.towers, PRECISIONS[precision])

    def frame_features(self, pixel_values_BTCHX: Tensor) -> Tensor:
        """The towers' features of every frame, [B, T, D]."""
        batch, frames = pixel_values_BTCHX.shape[:2]
        pixels_NCHX = pixel_values_BTCHX.flatten(0, 1).to(self.dtype)
        return self._for_head(frame_features(self.towers, pixels_NCHX)).view(batch, frames, -1)

    def encode_videos(self, pixel_values_BTCHX: Tensor, frame_mask_BT: Tensor) -> VideoTokens:
        """Tokens of each video at all levels. Masks are left-aligned: valid frames first."""
        return self.head.video(self.frame_features(pixel_values_BTCHX), frame_mask_BT)

    def encode_texts(self, input_ids_BW: Tensor, attention_mask_BW: Tensor) -> TextTokens:
        """Tokens of each caption at all levels."""
        mask_BW = attention_mask_BW.bool()
        states_BWD, anchor_BD = text_features(self.towers, input_ids_BW, mask_BW)
        return self.head.text(self._for_head(states_BWD), self._for_head(anchor_BD), mask_BW)

    def _for_head(self, features: Tensor) -> Tensor:
        """Features of towers that are stored in another precision than the head, in float32."""
        return features if self.dtype == torch.float32 else features.float()

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
