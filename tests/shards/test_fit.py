"""How frames become square in shards: as the backbone's own preprocessing does it, on real files."""

import json
import warnings

import av
import numpy as np
import pytest
import torch
from checkpoint_world import CHECKPOINTS, own_outputs
from model_world import PARAMS, changed
from PIL import Image

from hcmi.dataset import write_manifest
from hcmi.errors import ConfigError, ModelError
from hcmi.model import check_square, load_retriever, shards_square
from hcmi.model.towers import frame_features
from hcmi.shards import ShardReader, read_square, write_shards
from hcmi.types import Clip

FRAMES = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint that crops, one that squashes and one that keeps shapes."""
    return {name: CHECKPOINTS[name](tmp_path_factory.mktemp(name)) for name in ("clip", "siglip", "siglip_2_naflex")}


@pytest.fixture(scope="module")
def clips(shared_data):
    """A wide and a high real clip, and one of another width."""
    paths = sorted((shared_data / "real_clips/videos").glob("*.mp4"))[:12:4]
    return [Clip(f"v{number}", str(path), "test", ("a clip",), 0.0, 0.0, 0.0, f"{number}", {})
            for number, path in enumerate(paths)]


def shards_of(clips, folder, square, size=32):
    write_manifest(clips, folder / "manifest.parquet")
    write_shards(manifest_path=folder / "manifest.parquet", out_dir=folder / "shards", square=square,
                 config=changed(PARAMS.shards, size=size, num_frames=FRAMES, quality=100, num_workers=1))
    return ShardReader(folder / "shards", "test")


def real_frames(path):
    """The middle frame of each third, by PyAV alone."""
    with av.open(path) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[(2 * part + 1) * len(frames) // (2 * FRAMES)] for part in range(FRAMES)]


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip_2_naflex"])
def test_vectors_from_shards_are_those_of_the_librarys_own_preprocessing(folders, clips, tmp_path, name):
    model = load_retriever(folders[name])
    square = shards_square("auto", str(folders[name]))
    reader = shards_of(clips, tmp_path, square, model.processor.image_size)
    assert reader.square == read_square(tmp_path / "shards") == square == model.processor.square
    for row, clip in enumerate(reader.clips):
        own = own_outputs(folders[name], real_frames(clip.path), ["a clip"]).images_BD
        pixels = model.processor.frames(reader.frames(row, range(FRAMES)))
        with torch.no_grad():
            found = frame_features(model.towers, pixels)
        cosines = torch.nn.functional.cosine_similarity(found, own)
        # JPEG mixes some of the magenta into the last column of a whole picture
        assert cosines.min() > (0.98 if square[0] == "whole" else 0.995), (name, clip.path, cosines)


def test_cropped_frames_are_not_what_a_squashing_backbone_was_trained_on(folders, clips, tmp_path):
    """Else the test above would pass with any frames."""
    model, reader = load_retriever(folders["siglip"]), shards_of(clips, tmp_path, ("crop", "BICUBIC"))
    wide = next(row for row, stored in enumerate(reader.stored) if stored.width > 1.5 * stored.height)
    own = own_outputs(folders["siglip"], real_frames(reader.clips[wide].path), ["a clip"]).images_BD
    with torch.no_grad():
        found = frame_features(model.towers, model.processor.frames(reader.frames(wide, range(FRAMES))))
    assert torch.nn.functional.cosine_similarity(found, own).max() < 0.98


def test_frames_of_another_shape_are_decoded_again_and_equal_ones_are_not(clips, tmp_path):
    def write(square):
        return write_shards(manifest_path=tmp_path / "manifest.parquet", out_dir=tmp_path / "shards", square=square,
                            config=changed(PARAMS.shards, size=32, num_frames=FRAMES, num_workers=1))["decoded"]

    write_manifest(clips[:2], tmp_path / "manifest.parquet")
    squash = ("squash", "BICUBIC")
    assert [write(square) for square in (("crop", "BICUBIC"), ("crop", "BICUBIC"), squash, squash)] == [2, 0, 2, 0]
    assert json.loads((tmp_path / "shards/stats.json").read_text())["square"] == ["squash", "BICUBIC"]


def test_fit_is_the_backbones_own_or_the_one_that_is_asked_for(folders):
    clip, siglip, naflex = (str(folders[name]) for name in ("clip", "siglip", "siglip_2_naflex"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shards_square("auto", "scratch") == shards_square("crop", "scratch") == ("crop", "BICUBIC")
        assert shards_square("squash", "scratch") == ("squash", "BICUBIC")
        assert shards_square("auto", clip) == shards_square("crop", clip) == ("crop", "BICUBIC")
        assert shards_square("auto", siglip) == shards_square("squash", siglip) == ("squash", "BICUBIC")
        assert shards_square("auto", naflex) == shards_square("whole", naflex) == ("whole", "BILINEAR")
    with pytest.warns(UserWarning, match=r"shards.fit: frames are cropped; .* was trained on frames that are squashed"):
        assert shards_square("crop", siglip) == ("crop", "BICUBIC")
    for fit, backbone in (("whole", clip), ("crop", naflex), ("whole", "scratch")):
        with pytest.raises(ConfigError, match=r"^shards.fit: need (crop|whole) for model.backbone"):
            shards_square(fit, backbone)


def test_backbone_without_its_preprocessing_is_named(folders, tmp_path):
    with pytest.raises(ModelError, match=r"need its preprocessor_config.json, which says what shape"):
        shards_square("auto", str(tmp_path))


def test_whole_frames_need_a_size_that_holds_patches(clips, tmp_path):
    with pytest.raises(ConfigError, match=r"^shards.size: need a multiple of 32 for frames that are whole, got 40"):
        shards_of(clips[:1], tmp_path, ("whole", "BILINEAR"), size=40)


def test_model_and_shards_of_other_frames_are_warned_of_or_refused():
    check_square(("crop", "BICUBIC"), ("crop_even", "BILINEAR"), "data/shards")
    with pytest.warns(UserWarning, match=r"^data/shards: frames are cropped, and the model was made for .* squashed"):
        check_square(("squash", "BICUBIC"), ("crop", "BICUBIC"), "data/shards")
    with pytest.raises(ModelError, match=r"^data/shards: frames are whole, .* need such frames"):
        check_square(("squash", "BICUBIC"), ("whole", "BICUBIC"), "data/shards")


def test_whole_pictures_lie_in_the_upper_left_corner():
    from hcmi.video import to_square

    picture = np.random.default_rng(0).integers(0, 255, (48, 88, 3), np.uint8)
    found = to_square(picture, 128, ("whole", "BILINEAR"))
    assert np.array_equal(found[:48, :80], np.asarray(Image.fromarray(picture).resize((80, 48), 2)))
    assert (found[48:] == (255, 0, 255)).all()
    assert (found[:, 80:] == (255, 0, 255)).all()
