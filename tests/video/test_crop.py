import numpy as np
import pytest
from PIL import Image

from hcmi.video.crop import MAX_ASPECT, centre_crop, to_square


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (33, 91), (1, 1), (2, 400), (400, 2), (32, 32)])
def test_square_is_clips_geometry_when_shapes_vary(shape):
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    size = 32
    found = centre_crop(picture, size)
    assert found.shape == (size, size, 3)
    height, width = shape
    if max(shape) <= MAX_ASPECT * min(shape):
        short = min(shape)
        whole = Image.fromarray(picture).resize((size * width // short, size * height // short), Image.BICUBIC)
        left, top = (whole.width - size) // 2, (whole.height - size) // 2
        assert np.array_equal(found, np.asarray(whole)[top:top + size, left:left + size])


@pytest.mark.parametrize("name", ["BICUBIC", "BILINEAR"])
@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (33, 91), (32, 32)])
def test_square_is_the_whole_picture_when_it_is_squashed(shape, name):
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    needed = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling[name]))
    assert np.array_equal(to_square(picture, 32, ("squash", name)), needed)
    assert not np.array_equal(to_square(picture, 32, ("crop", name)), needed) or shape == (32, 32)


def test_square_is_cropped_with_the_filter_that_is_asked_for():
    picture = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    whole = Image.fromarray(picture).resize((32, 42), Image.Resampling.BILINEAR)
    assert np.array_equal(to_square(picture, 32, ("crop", "BILINEAR")), np.asarray(whole)[5:37])
    assert np.array_equal(to_square(picture, 32), centre_crop(picture, 32))
