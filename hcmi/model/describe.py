"""What a model folder or a checkpoint holds, for people and as JSON."""

from pathlib import Path
from typing import Any

from torch import nn

from hcmi.files import project_path
from hcmi.model.checkpoint import is_trained, load_retriever
from hcmi.model.checkpoint_files import checkpoint_folder
from hcmi.model.families import FAMILIES
from hcmi.model.languages import SCRIPTS, readable_scripts
from hcmi.model.modeling import HcmiModel

NAMES = {"clip": "CLIP", "siglip": "SigLIP", "siglip2": "SigLIP 2 NaFlex", "metaclip_2": "MetaCLIP 2",
         "open_clip": "a model of open_clip", "videoprism": "VideoPrism",
         "clip_conv_stem": "CLIP with a convolutional stem, from scratch"}


def describe_model(source: str | Path) -> dict[str, Any]:
    """Family, parameters, levels, input sizes, size on disk and fingerprint of what `load_retriever` takes.

    `levels`: weight of each level in the score; 0 where it does not count, as for what is untrained.
    Raises: ModelError as `load_retriever` does.
    """
    model = load_retriever(source)
    processor, towers = model.processor, model.towers
    vision = sum(_count(getattr(towers, part)) for part in FAMILIES[towers.config.model_type].vision_parts)
    return {"model": project_path(source), "trained": is_trained(model), "family": towers.config.model_type,
            "backbone": model.config.backbone, "head": model.config.head, "dim": model.head.dim,
            "levels": {level: model.level_weights[level] for level in model.head.levels},
            "parameters": {"image_tower": vision, "text_tower": _count(towers) - vision, "head": _count(model.head)},
            "image_size": processor.image_size, "patch": _patch(towers.config.vision_config),
            "square": list(processor.square), "num_frames": model.config.num_frames, "num_words": processor.num_words,
            "vocabulary": len(processor.tokenizer),
            "scripts": readable_scripts(processor.tokenizer), "size_bytes": _size_bytes(model, source),
            "fingerprint": model.fingerprint}


def description_text(found: dict[str, Any]) -> str:
    """The description as a table for people."""
    (how, resample), counts = found["square"], dict(found["parameters"])
    if not found["trained"]:
        del counts["head"]          # it has none of its own
    levels = ", ".join(f"{name.replace('_', '-')} x {weight:g}" for name, weight in found["levels"].items() if weight)
    shape = {"squash": "squeezed into a square", "whole": "with their own shape"}.get(how, "cropped to a square")
    rows = {"model": found["model"],
            "kind": f"trained by hcmi, towers {found['backbone']}" if found["trained"]
            else "checkpoint, not trained by hcmi: it ranks as the checkpoint itself does",
            "family": f"{NAMES.get(found['family'], found['family'])}, embeddings of {found['dim']}",
            "parameters": f"{_millions(sum(counts.values()))}: "
                          + ", ".join(f"{part.replace('_', ' ')} {_millions(count)}" for part, count in counts.items()),
            "head": found["head"] if found["trained"] else "none",
            "score": levels,
            "images": f"{found['image_size']} x {found['image_size']} pixels, {shape} ({resample.lower()})"
                      + (f", patches of {found['patch']}" if found["patch"] else ""),
            "video": f"{found['num_frames']} frames a clip",
            "text": f"at most {found['num_words']} tokens, vocabulary of {found['vocabulary']:,}",
            "letters": f"{', '.join(found['scripts']) or 'none'}, of {len(SCRIPTS)} scripts that were tried",
            "on disk": f"{found['size_bytes'] / 1e6:,.1f} MB",
            "fingerprint": found["fingerprint"][:12]}
    return "\n".join(f"{name:12} {value}" for name, value in rows.items())


def _patch(vision: Any) -> int | None:
    """Side of an image patch in pixels; None where the configuration does not say it, as of timm's towers."""
    tube = getattr(vision, "tubelet_size", None)        # VideoPrism's (frames, rows, columns)
    return tube[1] if tube else vision.patch_size


def _size_bytes(model: HcmiModel, source: str | Path) -> int:
    folder = checkpoint_folder(model.checkpoint) if model.checkpoint else Path(source)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"
