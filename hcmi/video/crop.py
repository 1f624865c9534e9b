"""Make a frame of any shape a square, as the preprocessing of CLIP, open_clip, SigLIP or SigLIP 2 NaFlex does."""

import math

import numpy as np
from PIL import Image

MAX_ASPECT = 8              # a longer strip is first cropped to this, to bound the memory of resizing
CROP, CROP_EVEN, SQUASH, WHOLE = "crop", "crop_even", "squash", "whole"
Square = tuple[str, str]    # one of these, and the name of a Pillow filter such as BICUBIC
CLIP_SQUARE: Square = (CROP, "BICUBIC")
PATCH = 16                  # pixels; of SigLIP 2 NaFlex
MAGENTA = (255, 0, 255)     # the rest of the square around a WHOLE picture; the model leaves such patches out


def to_square(picture: np.ndarray, size: int, square: Square = CLIP_SQUARE) -> np.ndarray:
    """`picture` [H,X,3] as [size,size,3].

    CROP and CROP_EVEN: its centre. SQUASH: all of it with its shape changed. WHOLE: all of it with its shape kept, in
    the upper left corner.
    """
    how, name = square
    resample = Image.Resampling[name]
    if how in (CROP, CROP_EVEN):
        return centre_crop(picture, size, resample, even=how == CROP_EVEN)
    high, wide = whole_shape(picture.shape[0], picture.shape[1], size) if how == WHOLE else (size, size)
    assert how in (SQUASH, WHOLE), f"need {SQUASH} or {WHOLE}, got {how!r}"
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((wide, high), resample))
    if how == SQUASH:
        return resized
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = MAGENTA
    canvas[:high, :wide] = resized
    return canvas


def whole_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of a WHOLE picture on a square of `size` pixels: multiples of PATCH, at least one patch.

    As many patches as fit into a quarter of the square, which holds shapes up to 4 : 1; longer ones are squashed.
    Source: SigLIP 2's preprocessing (Tschannen et al. 2025, arXiv 2502.14786), whose search for the scale this is, with
    its bounds and precision, so that rounding is equal too.
    """
    patches = (size // (2 * PATCH)) ** 2

    def scaled(scale: float) -> tuple[int, int]:
        return max(math.ceil(height * scale / PATCH), 1), max(math.ceil(width * scale / PATCH), 1)

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        fits = math.prod(scaled(middle)) <= patches
        low, high = (middle, high) if fits else (low, middle)
    rows, columns = (min(side, size // PATCH) for side in scaled(low))
    return PATCH * rows, PATCH * columns


def centre_crop(picture: np.ndarray, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC,
                even: bool = False) -> np.ndarray:
    """The centre of `picture` [H,X,3] as [size,size,3], after its shortest side is resized to `size`.

    The length of the longer side is rounded down, and so is the place of the crop unless `even`: then half a pixel is
    rounded to the even number. Source: CLIP's preprocessing, which is bicubic; torchvision's for `even`.
    """
    height, width = picture.shape[:2]
    limit = MAX_ASPECT * min(height, width)
    top, left = max(height - limit, 0) // 2, max(width - limit, 0) // 2
    picture = picture[top:top + limit, left:left + limit]
    height, width, short = *picture.shape[:2], min(picture.shape[:2])
    wide, high = size * width // short, size * height // short
    left, top = (round(spare / 2) if even else spare // 2 for spare in (wide - size, high - size))
    image = Image.fromarray(np.ascontiguousarray(picture))
    if width > height:
        # Pillow resizes across and then down. Cropping in between gives the same pixels in 10 % less time.
        image = image.resize((wide, height), resample).crop((left, 0, left + size, height))
        return np.asarray(image.resize((size, size), resample))
    return np.asarray(image.resize((wide, high), resample).crop((0, top, size, top + size)))
