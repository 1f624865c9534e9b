"""The typed sections of params.yaml. Every key is documented here; unknown keys are errors; no key has a default."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hcmi.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
LEAST_STEP_S = 0.05     # between the starts of two windows: an hour has 72,000 of them then
NO_PARAMS = "Run from the project's folder; `hcmi init DIR` makes one."
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ScenesConfig(Section):
    """The generated data set (`hcmi/scenes`)."""

    version: Literal[1, 2]          # 2 has more colours, shapes and actions, and two of a kind (docs/scenes.md)
    num_train: Positive
    num_val: Positive
    num_test: Positive
    num_incoming: Positive          # clips in each of the two batches for data/incoming/
    max_events: Annotated[int, Field(ge=1, le=6)]
    captions_per_clip: Annotated[int, Field(ge=1, le=4)]    # each worded differently
    part_captions: Annotated[int, Field(ge=0, le=4)]        # more of a training clip, each of some of its steps
    event_captions: Annotated[int, Field(ge=0, le=6)]       # and of single events of it
    brief_captions: Annotated[int, Field(ge=0, le=6)]       # and of events without their colour, shape or action
    wording: Literal["sentence", "paragraph"]               # paragraph: one sentence per step
    duplicate_rate: Fraction        # share of the training clips that show the events of an earlier one
    neighbour_rate: Fraction        # share of the clips that differ from an earlier one in one word or in order only
    width: Annotated[int, Field(ge=128, multiple_of=2)]
    height: Annotated[int, Field(ge=128, multiple_of=2)]
    fps: Positive


class DatasetConfig(Section):
    name: Literal["scenes", "folder", "webdataset", "msrvtt", "msvd", "lsmdc", "didemo", "activitynet", "vatex",
                  "tvr", "charades_sta", "qvhighlights"]
    path: str                       # folder of the data set's files (webdataset: docs/datasets.md); unused by scenes
    protocol: str                   # of a published data set (docs/datasets.md), or `default`
    val_fraction: Fraction          # share of the videos without a given split
    test_fraction: Fraction
    seed: int
    scenes: ScenesConfig


class ShardsConfig(Section):
    size: Annotated[int, Field(ge=16)]                  # pixels, square
    # how frames become square: cropped (CLIP), squashed (SigLIP), whole (NaFlex); auto: as model.backbone needs it
    fit: Literal["auto", "crop", "squash", "whole"]
    num_frames: Positive                                # stored per clip, evenly spread
    quality: Annotated[int, Field(ge=1, le=100)]        # JPEG
    max_clips_per_shard: Positive
    max_skip_fraction: Fraction                         # the stage fails above this share
    decode_timeout_s: Annotated[float, Field(gt=0)]     # of one clip; then its worker process is replaced
    num_workers: Annotated[int, Field(ge=0)]            # 0: one per core
    executor: Literal["local", "ray"]                   # processes on this machine, or tasks on a Ray cluster
    ray_address: str                                    # host:port, auto, or local for a new cluster


class ScratchConfig(Section):
    """Shape of the small CLIP-shaped towers that are trained from scratch."""

    width: Positive                 # of both towers and the embedding
    vision_layers: Positive
    text_layers: Positive
    heads: Positive
    stem: Literal["conv", "patch"]  # how pixels become tokens: overlapping convolutions, or CLIP's patch embedding
    patch: Positive                 # pixels between two tokens; an even number for conv
    vocab_size: Positive            # upper limit; the tokenizer is trained on the training captions

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.width % self.heads:
            raise ValueError(f"heads: need a divisor of width={self.width}, got {self.heads}")
        return self

    @model_validator(mode="after")
    def _stem_halves(self):
        if self.stem == "conv" and (self.patch % 2 or self.width % 4):
            raise ValueError(f"patch and width: need multiples of 2 and 4 for stem=conv, got {self.patch} and "
                             f"{self.width}")
        return self


class ModelConfig(Section):
    head: Literal["hcmi", "mean_pool", "seq_transf", "wti", "xclip"]
    backbone: Annotated[str, Field(min_length=1)]       # scratch, or name or folder of a checkpoint (docs/backbones.md)
    num_frames: Positive            # T
    num_words: Annotated[int, Field(ge=3)]    # W, start and end tokens included
    num_clips: Positive             # C
    num_phrases: Positive           # P
    temporal_layers: Annotated[int, Field(ge=0)]
    aggregation: Literal["assign", "queries"]           # how clips and phrases are made
    coarse_gradient: Annotated[float, Field(ge=0, le=1)]    # share of it that reaches words and frames
    scratch: ScratchConfig

    @model_validator(mode="after")
    def _levels_shrink(self):
        if self.num_clips > self.num_frames:
            raise ValueError(f"num_clips: need at most num_frames={self.num_frames}, got {self.num_clips}")
        if self.num_phrases > self.num_words:
            raise ValueError(f"num_phrases: need at most num_words={self.num_words}, got {self.num_phrases}")
        return self


class LevelWeights(Section):
    frame_word: Annotated[float, Field(ge=0)]
    clip_phrase: Annotated[float, Field(ge=0)]
    video_sentence: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _one_counts(self):
        if self.frame_word + self.clip_phrase + self.video_sentence == 0:
            raise ValueError("need at least one level with a weight above 0, got none")
        return self


class LossConfig(Section):
    level_weights: LevelWeights
    sum_weight: Annotated[float, Field(ge=0)]           # weight of the loss on the sum of the levels; 0: off
    balance_weight: Annotated[float, Field(ge=0)]       # videos that are hard to tell apart score alike; 0: off
    margin: Annotated[float, Field(ge=0)]
    margin_weight: Annotated[float, Field(ge=0)]        # 0: no marginal sample enhancement
    marginal_group: Positive                            # number of similar clips that share a batch; 1: random batches
    denoise: Literal["positive", "mask", "off"]         # adaptive label denoising
    # what denoising compares: two views of a clip, two captions of a clip, both, or the tag `meaning`
    denoise_by: Literal["video", "text", "both", "tag"]
    warmup_epochs: Annotated[int, Field(ge=0)]          # epochs before denoising and marginal groups begin


class LoraConfig(Section):
    """Low-rank adapters, which `train.towers: lora` trains in place of the towers. They are merged when it saves."""

    rank: Positive
    alpha: Positive                 # the adapter's output counts alpha / rank


class TrainConfig(Section):
    seed: int
    device: str                     # auto, cpu, cuda, cuda:N
    precision: Literal["auto", "float32", "bfloat16"]   # auto: bfloat16 where the hardware multiplies it natively
    epochs: Annotated[int, Field(ge=0)]     # 0: the pretrained backbone as it is, the baseline that training must beat
    batch_size: Positive
    captions_per_clip: Positive             # in a step; a video is encoded once for all of them
    optimizer: Literal["muon", "adamw"]     # muon: for the matrices of new layers, adamw for the rest
    lr: Annotated[float, Field(gt=0)]
    # train: all weights of the towers; lora: adapters beside them, at `lr`; frozen: nothing in them, and their features
    # are computed once and kept (docs/training.md). The last two need a pretrained backbone.
    towers: Literal["train", "lora", "frozen"]
    backbone_lr: Annotated[float, Field(ge=0)]          # above 0, for towers: train
    # a layer of a tower learns this many times as fast as the layer after it; 1: all alike
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    lora: LoraConfig
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_fraction: Fraction
    max_grad_norm: Annotated[float, Field(gt=0)]
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)]  # loader processes of each training process; auto: 1 on
                                                        # a CPU, by the number of cores with a GPU
    num_processes: Literal["auto"] | Positive           # of one run (docs/training.md); auto: one per GPU, else 1
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=0)]  # clips encoded at a time; 0: the batch; auto: what fits
    compile: Literal["auto"] | bool                     # towers and head by torch.compile; auto: long runs on a GPU
    activation_checkpointing: bool                      # towers keep only the inputs of their layers: less memory
    loss: LossConfig

    @model_validator(mode="after")
    def _towers_learn(self):
        if self.backbone_lr == 0:
            raise ValueError("backbone_lr: need a rate above 0, got 0; `towers: frozen` keeps the towers as they are")
        return self

    @model_validator(mode="after")
    def _two_captions(self):
        if self.loss.denoise != "off" and self.loss.denoise_by in ("text", "both") and self.captions_per_clip < 2:
            raise ValueError(f"need captions_per_clip of 2 or more for loss.denoise_by {self.loss.denoise_by}, "
                             f"got {self.captions_per_clip}")
        return self


class EvaluateConfig(Section):
    split: Literal["val", "test"]
    batch_size: Positive
    bank_size: Positive             # number of training captions that the deployable post-processing uses
    bootstrap_samples: Positive


class ExportConfig(Section):
    batch_size: Positive
    precision: Literal["float16", "int8"]               # of the stored vectors; meta.json holds what it costs
    parquet: bool                                       # also write the tokens as Parquet, for Ray or Spark


class SearchConfig(Section):
    # a folder: FAISS; a path ending in .db: Milvus Lite; http(s)://host:port: Milvus. With the default, export/index,
    # the current release is searched where there is one.
    uri: str
    candidates: Positive            # of the first stage; these are re-ranked exactly


class WindowsConfig(Section):
    """How long videos are divided for search, and where a folder has no captions (docs/long-videos.md)."""

    # fixed: windows of equal length; shots: from cut to cut (the extra hcmi[shots]), and longer shots like whole films.
    # Batches that `hcmi drift` and `hcmi add` read are always divided into fixed windows.
    cut: Literal["fixed", "shots"]
    seconds: Annotated[float, Field(ge=0.5)]            # length of a window, which has model.num_frames frames
    overlap_seconds: Annotated[float, Field(ge=0)]      # that two neighbouring windows share
    whole_seconds: Annotated[float, Field(ge=0)]        # a video of at most this length is not divided

    @model_validator(mode="after")
    def _moves_on(self):
        if self.seconds - self.overlap_seconds < LEAST_STEP_S:
            raise ValueError(f"overlap_seconds: need at least {LEAST_STEP_S} less than seconds={self.seconds:g}, got "
                             f"{self.overlap_seconds:g}")
        return self


class DriftConfig(Section):
    # Share of batches without a change for which a comparison is beyond its limit. 10 / rate random splits of all clips
    # are drawn at once: 0.0001 takes several GB, and 0.000001 would take hundreds.
    false_alarm_rate: Annotated[float, Field(ge=0.0001, lt=1)]
    seed: int


class PromoteConfig(Section):
    """The gate before what is served (`hcmi promote`)."""

    margin: Annotated[float, Field(ge=0)]       # points of R@1 that a new model may lose on the test set


class Params(Section):
    """All of params.yaml."""

    dataset: DatasetConfig
    shards: ShardsConfig
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    search: SearchConfig
    windows: WindowsConfig
    drift: DriftConfig
    promote: PromoteConfig


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml (YAML 1.2: `1e-3` is a number, `off` is a word).

    Raises: ConfigError naming the first wrong key, what it needs and what it holds.
    """
    return _checked(path, _read(path, NO_PARAMS))


def load_overrides(paths: Sequence[str | Path], params: str | Path = "params.yaml") -> dict[str, Any]:
    """Dotted key -> value of all files, each a part of params.yaml. When two have the same key, the later one counts.

    Raises: ConfigError naming the first key that is wrong or does not fit the other parameters.
    """
    raw, changes = _read(params, NO_PARAMS), dict[str, Any]()
    for path in paths:
        found = _leaves(_read(path, "Give a file of presets/, or one of your own."))
        for key, value in found.items():
            *names, last = key.split(".")
            section = raw
            for name in names:
                section = section.setdefault(name, {})
                if not isinstance(section, dict):
                    raise ConfigError(f"{path}: {key}: need a known key, got one below {name}, which is a value. Known "
                                      "keys are in hcmi/config.py.")
            section[last] = value
        _checked(path, raw)
        changes |= found
    return changes


def _leaves(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _read(path: str | Path, next_step: str) -> dict[str, Any]:
    try:
        raw = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: need a parameter file, found none. {next_step}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: need YAML in UTF-8, got: {' '.join(str(error).split())}. Correct it.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: need a mapping of sections, got {type(raw).__name__}. Restore it from git.")
    return raw


def _checked(path: str | Path, raw: dict[str, Any]) -> Params:
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_first_problem(path, error)) from error


def _first_problem(path: str | Path, error: ValidationError) -> str:
    problems = error.errors()       # a misspelt key is reported as missing too: report the misspelling
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: need only known keys, got {key}={problem['input']!r}. Known keys are in hcmi/config.py."
    if problem["type"] == "missing":
        return f"{path}: need the key {key}, got none. Add it; hcmi/config.py says what it means."
    message = re.sub(r"^(Input|String) should (be|have)", "need", problem["msg"].removeprefix("Value error, "))
    got = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{path}: {key}: {message}{got}. Correct the value."
