"""VideoPrism: it sees the frames of a clip together, so a clip has one vector and a frame has none."""

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoint_world import TEXTS, save_videoprism
from model_world import section
from PIL import Image
from transformers import AutoTokenizer, VideoPrismClipModel
from video_files import write_pictures

from hcmi.config import WindowsConfig
from hcmi.errors import ModelError
from hcmi.index import SearchIndex
from hcmi.model import (
    describe_model,
    encode_batches,
    encode_frames,
    encode_texts,
    load_retriever,
    load_text_encoder,
    new_retriever,
    zero_shot_retriever,
)
from hcmi.search import Encoder, Retriever
from hcmi.search.folder_index import index_folder
from hcmi.video import to_square
from hcmi.video.decode import decode_clip

FRAMES, FPS = 4, 4
# As the function `canonicalize_text` of VideoPrism's own code gives them.
CLEANED = ["a dog jumps into water.", "two people talk and nobody listens.", "a red car.", "word " * 99 + "word."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_videoprism(tmp_path_factory.mktemp("videoprism"), FRAMES)
    return folder, load_retriever(folder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    colours = np.random.default_rng(0).integers(0, 255, (11 * FPS, 3)).cumsum(0) // 2 % 256
    for name, part in (("film", colours), ("short", colours[:2 * FPS])):
        write_pictures(folder / f"{name}.mp4", (np.full((48, 64, 3), colour, np.uint8) for colour in part), FPS,
                       crf="10")
    return folder


def own(folder):
    return VideoPrismClipModel.from_pretrained(folder).eval()


@torch.no_grad()
def test_pixels_ids_and_vectors_are_the_librarys_own(checkpoint):
    folder, model = checkpoint
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (50, 70, 3), np.uint8)) for _ in range(2 * FRAMES)]
    pixels = np.stack([np.asarray(picture.resize((36, 36), Image.Resampling.BICUBIC)) for picture in pictures])
    wanted = torch.from_numpy(pixels).view(2, FRAMES, 36, 36, 3).movedim(-1, 2) / 255
    frames = np.stack([to_square(np.asarray(picture), model.processor.image_size, model.processor.square)
                       for picture in pictures]).reshape(2, FRAMES, 36, 36, 3)
    assert torch.equal(model.processor.frames(frames), wanted)
    towers = own(folder)
    needed_BD = towers.get_video_features(pixel_values_videos=wanted).pooler_output[:, 0]
    found = encode_frames(model, frames)
    torch.testing.assert_close(found.video_BD, needed_BD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.frames_BTD, needed_BD[:, None].expand(-1, FRAMES, -1), atol=1e-5, rtol=1e-5)
    ids = AutoTokenizer.from_pretrained(folder)(CLEANED, padding="max_length", max_length=64, truncation=True,
                                                return_tensors="pt")
    ids_BW, mask_BW = model.processor.texts(TEXTS)
    assert torch.equal(ids_BW, ids["input_ids"]), "the last text has all 64"
    assert torch.equal(mask_BW, ids["attention_mask"])
    needed_QD = towers.get_text_features(**ids).pooler_output
    torch.testing.assert_close(encode_texts(model, TEXTS).sentence_BD, needed_QD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encode_texts(model, TEXTS[:1]).sentence_BD, needed_QD[:1], atol=1e-5, rtol=1e-5)


def test_model_is_the_same_when_it_is_saved_and_loaded_and_without_its_video_tower(checkpoint, tmp_path):
    folder, model = checkpoint
    model.save_pretrained(tmp_path / "model")
    loaded, text_side = load_retriever(tmp_path / "model"), load_text_encoder(folder)
    frames = np.random.default_rng(1).integers(0, 256, (1, FRAMES, 36, 36, 3), np.uint8)
    torch.testing.assert_close(encode_frames(loaded, frames).video_BD, encode_frames(model, frames).video_BD)
    for other in (loaded, text_side):
        torch.testing.assert_close(encode_texts(other, TEXTS).sentence_BD, encode_texts(model, TEXTS).sentence_BD)
    assert text_side.fingerprint == model.fingerprint
    described = describe_model(folder)
    assert (described["family"], described["patch"], described["num_frames"]) == ("videoprism", 18, FRAMES)


def test_windows_of_a_film_are_those_of_a_loop_that_encodes_each_alone(checkpoint, videos, tmp_path):
    _, model = checkpoint
    rule = WindowsConfig(cut="fixed", seconds=4.0, overlap_seconds=3.0, whole_seconds=5.0)
    index = SearchIndex.open(index_folder(model, videos, tmp_path, rule, num_workers=1).path)
    rows = index.live_rows()
    found = [(clip, index.tokens(row[None]).video_BD[0]) for row, clip in zip(rows, index.clips(rows), strict=True)]
    assert sorted(clip.start_s for clip, _ in found if clip.path.endswith("film.mp4")) == [*range(8)]
    for clip, vector_D in found:
        alone = decode_clip(clip.path, FRAMES, 36, clip.start_s, clip.end_s, square=model.processor.square)
        wanted_D = encode_frames(model, alone.frames[None]).video_BD[0]
        torch.testing.assert_close(vector_D, wanted_D, atol=5e-3, rtol=0)
    hit = Retriever(model, index.folder).search("a red car")[0]
    assert (hit.start_s, hit.end_s) == next((clip.start_s, clip.end_s) for clip, _ in found
                                            if clip.video_id == hit.video_id), "a moment is a whole window"


def test_encoder_gives_the_librarys_vectors_of_files(checkpoint, videos):
    folder, model = checkpoint
    frames = decode_clip(videos / "short.mp4", FRAMES, 36, square=model.processor.square).frames
    with torch.no_grad():
        wanted = own(folder).get_video_features(
            pixel_values_videos=torch.from_numpy(frames).movedim(-1, 1)[None] / 255).pooler_output[:, 0]
    np.testing.assert_allclose(Encoder(folder).encode_videos([videos / "short.mp4"]), wanted, atol=1e-5)


@pytest.mark.parametrize("make", [lambda folder: new_retriever(section(backbone=folder), 36, []),
                                  lambda folder: zero_shot_retriever(section(backbone=folder), 36)])
def test_training_and_shards_are_refused(checkpoint, make):
    with pytest.raises(ModelError, match=r"^model.backbone .*: need a backbone with a vector for each frame, got "):
        make(str(checkpoint[0]))
    with pytest.raises(ModelError, match=r"^model: need a backbone with a vector for each frame, got videoprism"):
        next(encode_batches(checkpoint[1], []))


def test_frames_that_make_no_whole_clips_are_refused(checkpoint):
    with pytest.raises(ModelError, match=r"^VideoPrism: need 4 frames of each clip, got 3 frames. Give whole clips"):
        encode_frames(checkpoint[1], np.zeros((1, 3, 36, 36, 3), np.uint8))


def test_missing_or_strange_file_of_frames_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint[0], tmp_path / "copy")
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": {"size": {"shortest_edge": 36}}}))
    with pytest.raises(ModelError, match=r"need its preprocessor_config.json.*size with height and width, got"):
        load_retriever(folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(ModelError, match=r"need preprocessor_config.json of the checkpoint, found none"):
        load_retriever(folder)
