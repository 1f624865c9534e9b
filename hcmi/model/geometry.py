"""How a checkpoint's own preprocessing gives frames their shape, and what shards must therefore hold.

A geometry is a square, which is a pair of how a frame becomes square and the name of a Pillow filter, and its side in
pixels. `hcmi.video` makes frames of it:

- `crop`: the shortest side is resized and the middle kept, as CLIP does; half pixels are rounded down.
- `crop_even`: the same, but half pixels are rounded to the even number, as torchvision does for open_clip.
- `squash`: all of the frame, its shape changed, as SigLIP does.
- `whole`: all of the frame, its shape kept, as SigLIP 2 NaFlex does; the rest of the square is magenta.
"""

import warnings
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hcmi.errors import ConfigError, ModelError
from hcmi.model.checkpoint_files import (
    CONFIG,
    OPEN_CLIP,
    checkpoint_folder,
    open_clip_part,
    read_json,
    read_open_clip,
    reading,
)

Square = tuple[str, str]
CLIP_SQUARE: Square = ("crop", "BICUBIC")
CROPS = ("crop", "crop_even")
FILTERS = ("NEAREST", "LANCZOS", "BILINEAR", "BICUBIC", "BOX", "HAMMING")       # by Pillow's numbers
WHOLE_PATCH = 16            # pixels of a NaFlex patch; `hcmi.video` has it too
VIDEO_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
SHOWN = {"crop": "cropped", "crop_even": "cropped", "squash": "squashed", "whole": "whole"}


def image_processor(folder: str | Path) -> Any:
    """The Pillow variant, which resizes as in the checkpoints' training, and does not need torchvision."""
    if (read_json(Path(folder, CONFIG)) or {}).get("model_type") == "videoprism":
        return video_processor(Path(folder))
    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def own_geometry(name: str, images: Any) -> tuple[Square, int]:
    """The geometry of `transformers`' image preprocessing. `name` is what messages call the checkpoint.

    Raises: ModelError when it is none of the kinds above.
    """
    size, crop = ({side: length for side, length in dict(getattr(images, field, None) or {}).items() if length}
                  for field in ("size", "crop_size"))
    cropped = bool(getattr(images, "do_center_crop", False))
    if images.do_resize and images.do_rescale and images.do_normalize and abs(images.rescale_factor * 255 - 1) < 1e-6:
        resample = FILTERS[int(images.resample)]
        patches = getattr(images, "max_num_patches", None)
        if patches and images.patch_size == WHOLE_PATCH and [*images.image_mean, *images.image_std] == [0.5] * 6:
            return ("whole", resample), canvas_side(patches)
        sides = set(crop.values() if cropped else size.values())
        side = sides.pop() if len(sides) == 1 else 0
        whole = {"height": side, "width": side}
        if cropped and size == {"shortest_edge": side} and crop == whole:
            return ("crop", resample), side
        if size == whole and not patches and (not cropped or crop == whole):
            return ("squash", resample), side
    raise ModelError(f"{name}, preprocessor_config.json: need images resized to one size and then cropped to it or "
                     f"not, scaled by 1/255 and normalised, got resize {size}, crop {crop if cropped else 'none'}. "
                     f"Choose another checkpoint.")


def video_processor(folder: Path) -> Any:
    """The image preprocessing of a model of whole videos (VideoPrism), from the file that says how its frames are made.

    `transformers` itself makes such frames with torchvision alone. The size is the model's; colours lie in [0, 1].
    Raises: ValueError when there is no such file, or it does not say the size.
    """
    for name in VIDEO_FILES:
        found = read_json(folder / name)
        if found is not None:
            found = found.get("video_processor", found)
            size = {"height": 0, "width": 0} | dict(found.get("size") or {})
            if not size["height"] or set(size) != {"height", "width"} or not found.get("do_resize", True):
                raise ValueError(f"{name}: need size with height and width, got {found.get('size')}.")
            return CLIPImageProcessorPil(size=size, resample=found.get("resample", 3), do_center_crop=False,
                                         image_mean=[0.0] * 3, image_std=[1.0] * 3)
    raise ValueError(f"{VIDEO_FILES[0]}: need it, found none.")


def canvas_side(max_patches: int) -> int:
    """Side of the square that holds a frame of up to `max_patches` patches, of any shape up to 4 : 1."""
    return 2 * WHOLE_PATCH * int(max_patches**0.5)


def open_clip_preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """What an `open_clip_config.json` says about pixels. As to the library, null says nothing."""
    return {key: value for key, value in (config.get("preprocess_cfg") or {}).items() if value is not None}


def open_clip_geometry(name: str, config: dict[str, Any]) -> tuple[Square, int]:
    """The geometry of an `open_clip_config.json`. Raises: ModelError when we cannot make such frames."""
    own = {"interpolation": "bicubic", "resize_mode": "shortest"} | open_clip_preprocessing(config)
    size = open_clip_part(config, "vision_cfg").get("image_size", 224)
    square = {"shortest": "crop_even", "squash": "squash"}.get(own["resize_mode"])
    if square is None or own["interpolation"] not in ("bicubic", "bilinear") or not isinstance(size, int):
        raise ModelError(f"{name}, {OPEN_CLIP}: need square images, resize_mode shortest or squash, and bicubic or "
                         f"bilinear interpolation, got {size}, {own['resize_mode']}, {own['interpolation']}. Choose "
                         f"another checkpoint.")
    return (square, own["interpolation"].upper()), size


def checkpoint_geometry(folder: Path, name: str) -> tuple[Square, int]:
    """The geometry of the checkpoint in a folder. `name`: what messages call it.

    Raises: ModelError when its files do not say it.
    """
    config = read_open_clip(folder)
    with reading(name, f"its {'preprocessor_config.json' if config is None else OPEN_CLIP}, which says what shape its "
                       f"frames have", "Copy all files of the checkpoint into its folder."):
        return own_geometry(name, image_processor(folder)) if config is None else open_clip_geometry(name, config)


def shards_square(fit: str, backbone: str) -> Square:
    """What frames in shards look like: as `backbone` was trained on them (`auto`), or as `fit` says.

    Warns when `fit` is not what the backbone was trained on. Raises: ModelError as `checkpoint_geometry`; ConfigError
    when the backbone cannot use such frames at all.
    """
    scratch = backbone == "scratch"
    own = CLIP_SQUARE if scratch else checkpoint_geometry(checkpoint_folder(backbone, weights=False),
                                                          f"model.backbone {backbone!r}")[0]
    if fit in ("auto", own[0]) or (fit == "crop" and own[0] in CROPS):
        return own
    if scratch and fit == "squash":
        return fit, "BICUBIC"
    if "whole" in (fit, own[0]):
        raise ConfigError(f"shards.fit: need {own[0].removesuffix('_even')} for model.backbone {backbone!r}, got {fit}."
                          f" Set shards.fit to auto.")
    warnings.warn(f"shards.fit: frames are {SHOWN[fit]}; model.backbone {backbone!r} was trained on frames that are "
                  f"{SHOWN[own[0]]}. Set shards.fit to auto.", stacklevel=2)
    return fit, "BICUBIC"


def check_square(own: Square, found: Square, place: str | Path) -> None:
    """Compare the frames that a model was made for with those of the shards at `place`.

    Warns when they have another shape. Raises: ModelError when the model cannot read them at all.
    """
    if SHOWN[own[0]] == SHOWN[found[0]]:
        return
    fact = f"{place}: frames are {SHOWN[found[0]]}, and the model was made for frames that are {SHOWN[own[0]]}"
    if "whole" in (own[0], found[0]):
        raise ModelError(f"{fact}: need such frames. Set shards.fit to auto and model.backbone to this model's, and "
                         f"run `hcmi shards`.")
    warnings.warn(f"{fact}. It sees less well. Set shards.fit to auto, and run `hcmi shards`.", stacklevel=3)
