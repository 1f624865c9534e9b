"""A frame of any shape as a square, the way CLIP wants it."""

import numpy as np
from PIL import Image

MAX_ASPECT = 8              # a longer strip is cropped to this before it is resized, to bound memory


def centre_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """CLIP's geometry: shortest side to `size` (bicubic, the longer one rounded down), then the centre."""
    height, width = picture.shape[:2]
    limit = MAX_ASPECT * min(height, width)
    top, left = max(height - limit, 0) // 2, max(width - limit, 0) // 2
    picture = picture[top:top + limit, left:left + limit]
    height, width, short = *picture.shape[:2], min(picture.shape[:2])
    wide, high = size * width // short, size * height // short
    left, top = (wide - size) // 2, (high - size) // 2
    image = Image.fromarray(np.ascontiguousarray(picture))
    if width > height:
        # Pillow's own two passes, across and then down, cropped in between: the same pixels, a tenth sooner
        image = image.resize((wide, height), Image.Resampling.BICUBIC).crop((left, 0, left + size, height))
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC).crop((0, top, size, top + size)))
