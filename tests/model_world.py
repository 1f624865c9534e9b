"""Small things to try models on: parameters, real shards of plain films, and CLIP and SigLIP folders on disk."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.initialization import no_init_weights
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from video_files import write_pictures

from hcmi.config import LossConfig, ModelConfig, TrainConfig, load_params
from hcmi.dataset import write_manifest
from hcmi.model import HcmiModel, new_retriever
from hcmi.model.towers import quiet
from hcmi.shards import write_shards
from hcmi.types import Clip

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 210), "yellow": (210, 200, 20),
           "white": (240, 240, 240), "black": (10, 10, 10)}
SIZE, PATCH, FRAMES, WORDS = 16, 8, 4, 16


PARAMS = load_params(Path(__file__).resolve().parents[1] / "params.yaml")


def changed(config, **changes):
    """A parameter section with other values, checked."""
    return type(config).model_validate({**config.model_dump(), **changes})


def section(**changes) -> ModelConfig:
    """A model that trains in a moment: 4 frames of 16 pixels, width 32."""
    scratch = {"width": 32, "vision_layers": 2, "text_layers": 1, "heads": 2, "stem": "patch", "patch": PATCH,
               "vocab_size": 320}
    values = {"head": "hcmi", "num_frames": FRAMES, "num_words": WORDS, "num_clips": 3, "num_phrases": 3,
              "temporal_layers": 1, "scratch": {**PARAMS.model.scratch.model_dump(), **scratch}}
    return changed(PARAMS.model, **{**values, **changes})


def train_config(**changes) -> TrainConfig:
    """2 epochs in float32; what belongs to the loss may be given by its own name too."""
    loss = {"margin": 0.2, "margin_weight": 1.0, "denoise": "off",
            "denoise_by": "video", "marginal_group": 1, "warmup_epochs": 0}
    loss |= {key: changes.pop(key) for key in list(changes) if key in LossConfig.model_fields}
    values = {"seed": 0, "device": "cpu", "precision": "float32", "epochs": 2, "batch_size": 8, "lr": 2e-3,
              "backbone_lr": 2e-3, "num_workers": 0, "loss": {**PARAMS.train.loss.model_dump(), **loss}}
    return changed(PARAMS.train, **{**values, **changes})


def tiny_model(head: str = "hcmi", seed: int = 0, wild: bool = False, captions: Sequence[str] = (),
               **changes) -> HcmiModel:
    """An untrained model in evaluation mode that knows the words of `captions`, by default those of films.

    A `wild` one has no zero left in its weights, so nothing hides behind a zero.
    """
    torch.manual_seed(seed)
    films = [f"a {one} film then {other}" for one in COLOURS for other in COLOURS]
    model = new_retriever(section(head=head, **changes), SIZE, list(captions or films)).eval()
    return shake(model, seed) if wild else model


def shake(module: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Add noise to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return module


def write_film(path: Path, colours: list[str], frames_each: int = 6) -> Path:
    """A real mp4: one colour after the other."""
    return write_pictures(path, (np.broadcast_to(np.array(COLOURS[colour], np.uint8), (32, 32, 3)) for colour in colours
                                 for _ in range(frames_each)), fps=12)


def film_clips(folder: Path, num_train: int = 24) -> list[Clip]:
    """Films of two colours, both in the caption in order; of the 30 pairs some train, 3 validate, 3 test."""
    pairs = [(one, other) for one in COLOURS for other in COLOURS if one != other]
    order = np.random.default_rng(0).permutation(len(pairs))
    clips = []
    for place, number in enumerate(order[:num_train + 6]):
        one, other = pairs[number]
        split = "train" if place < num_train else ("val", "test")[place % 2]
        name = f"{split}_{one}_{other}"
        path = write_film(folder / f"{name}.mp4", [one, other])
        clips.append(Clip(name, str(path), split, (f"a {one} film then {other}", f"first {one} and {other} later"), 0.0,
                          1.0, 1.0, hashlib.sha256(path.read_bytes()).hexdigest(), {}))
    return sorted(clips, key=lambda clip: clip.video_id)


def make_shards(folder: Path, num_train: int = 24, uncaptioned: Collection[str] = ()) -> Path:
    """Shards of `film_clips`, made by the real stage; `uncaptioned` are splits and clips without captions."""
    clips = [replace(clip, captions=()) if {clip.split, clip.video_id} & set(uncaptioned) else clip
             for clip in film_clips(folder / "films", num_train)]
    write_manifest(clips, folder / "manifest.parquet")
    write_shards(manifest_path=folder / "manifest.parquet", out_dir=folder / "shards",
                 config=changed(PARAMS.shards, size=SIZE, num_frames=8, max_skip_fraction=0, num_workers=1))
    return folder / "shards"


def clip_tokenizer(vocabulary: Path | None = None) -> CLIPTokenizer:
    """CLIP's own from `vocab.json` and `merges.txt`, or one that spells everything in single bytes."""
    if vocabulary is not None:
        words = json.loads((vocabulary / "vocab.json").read_text(encoding="utf-8"))
        lines = (vocabulary / "merges.txt").read_text(encoding="utf-8").strip().splitlines()
        merges = [tuple(line.split()) for line in lines if not line.startswith("#version")]
        return CLIPTokenizer(vocab=words, merges=merges, model_max_length=77)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def save_clip(folder: Path, vocabulary: Path | None = None, dtype=torch.float32, **shape) -> Path:
    """A CLIP folder as people download them, of random weights: weights, tokenizer and preprocessor."""
    tokenizer = clip_tokenizer(vocabulary)
    config = CLIPConfig(**shape)
    for name, value in (("vocab_size", len(tokenizer)), ("bos_token_id", tokenizer.bos_token_id),
                        ("eos_token_id", tokenizer.eos_token_id), ("pad_token_id", tokenizer.pad_token_id)):
        setattr(config.text_config, name, value)
    with quiet(), no_init_weights():
        randomised(CLIPModel(config)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = config.vision_config.image_size
    square = {"height": size, "width": size}
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square).save_pretrained(folder)
    return folder


def save_small_clip(folder: Path, vocabulary: Path | None = None, dtype=torch.float32, image_size: int = 32) -> Path:
    """CLIP's parts at a hundredth of its size, with its own 77 text positions."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "projection_dim": 24}
    return save_clip(folder, vocabulary, dtype, projection_dim=24, text_config=dict(common, hidden_size=40),
                     vision_config=dict(common, image_size=image_size, patch_size=8))


def save_siglip(folder: Path, pad_id: int = 1, **shape) -> Path:
    """A SigLIP folder of random weights: captions end with </s>, and its tokenizer gives no mask."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "</s>", "<unk>", *letters]
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(names)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token=names[pad_id],
                                        model_max_length=64, model_input_names=["input_ids"])
    config = SiglipConfig(**shape)
    config.text_config.vocab_size = len(names)
    with quiet(), no_init_weights():
        randomised(SiglipModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = config.vision_config.image_size
    SiglipImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def save_small_siglip(folder: Path, pad_id: int = 1) -> Path:
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return save_siglip(folder, pad_id, text_config=dict(common, projection_size=32),
                       vision_config=dict(common, image_size=32, patch_size=8))


def save_small_siglip_1(folder: Path, captions: list[str]) -> Path:
    """As the hub has SigLIP 1: its words in a SentencePiece file, here learned from `captions`; no tokenizer.json."""
    save_small_siglip(folder)
    (folder / "tokenizer.json").unlink()
    SentencePieceTrainer.train(sentence_iterator=iter(captions), model_prefix=str(folder / "spiece"), vocab_size=80,
                               hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    (folder / "spiece.vocab").unlink()
    shape = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": {"1": {"content": "</s>", **shape}, "2": {"content": "<unk>", **shape}},
        "additional_special_tokens": [], "clean_up_tokenization_spaces": True, "do_lower_case": True,
        "eos_token": "</s>", "model_input_names": ["input_ids"], "model_max_length": 64, "pad_token": "</s>",
        "processor_class": "SiglipProcessor", "sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer",
        "unk_token": "<unk>"}), encoding="utf-8")
    return folder


def randomised(towers: nn.Module, seed: int = 1) -> nn.Module:
    """Weights large enough that different images and texts get clearly different embeddings, drawn fast."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in towers.named_parameters():
            if "norm" in name.lower():
                weight.fill_(0 if name.endswith("bias") else 1)
            elif weight.dim() > 1:
                weight.uniform_(-1, 1, generator=generator).mul_((3 / weight[0].numel()) ** 0.5)
            else:
                weight.uniform_(-0.1, 0.1, generator=generator)
        towers.logit_scale.fill_(4.6)
    return towers


def pictures(*shape: int, size: int, seed: int = 0) -> Tensor:
    """uint8 [..., size, size, 3]: coarse random blocks, so that pictures differ in what a tower sees."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return blocks.repeat_interleave(size // 4, -3).repeat_interleave(size // 4, -2)


def mask_of(lengths: list[int], longest: int) -> Tensor:
    """Bool [B, longest], the first `lengths[b]` of each row valid."""
    return torch.arange(longest) < torch.tensor(lengths)[:, None]
