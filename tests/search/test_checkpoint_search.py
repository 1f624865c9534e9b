"""Searching a folder with a CLIP checkpoint that nothing was trained on: one command, and from Python."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from model_world import save_small_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from search_world import call_hcmi, write_grey_videos
from transformers import BertConfig
from video_files import claim_seconds, write_grey, write_no_frames

from hcmi import Encoder, Retriever
from hcmi.errors import DataError, DecodeError, ModelError, SearchIndexError
from hcmi.model import load_retriever
from hcmi.search.folder_index import index_folder

QUERY = "a grey room gets darker"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with clip/, a checkpoint, and videos/."""
    root = tmp_path_factory.mktemp("world")
    save_small_clip(root / "clip")
    write_grey_videos(root / "videos")
    return root


@pytest.fixture
def run(world, monkeypatch, tmp_path):
    monkeypatch.setenv("HCMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return call_hcmi


def search(run, world, *arguments, model="clip", code=0):
    return run("search", QUERY, "--videos", world / "videos", "--model", world / model, *arguments, code=code)


def test_search_ranks_by_the_cosine_alone_and_shows_no_other_level(run, world):
    hits = json.loads(search(run, world, "--json").stdout)
    encoder = Encoder(world / "clip")
    cosines = encoder.encode_texts([QUERY]) @ encoder.encode_videos([hit["path"] for hit in hits]).T
    for hit, cosine in zip(hits, cosines[0], strict=True):
        assert hit["levels"] == {"video_sentence": hit["score"]}
        assert hit["score"] == pytest.approx(cosine, abs=1e-3)      # the index stores vectors in float16
        assert 0 <= hit["start_s"] < hit["end_s"] <= 2.01
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert "frame-word" not in search(run, world).stdout


def test_index_of_one_precision_is_not_used_for_another(world, tmp_path):
    whole, half = (load_retriever(world / "clip", precision=name) for name in ("float32", "bfloat16"))
    places = [index_folder(model, world / "videos", tmp_path).path for model in (whole, half)]
    assert places[0] != places[1]
    Retriever(world / "clip", places[0], precision="bfloat16")      # the fingerprint is that of the weights


def test_index_made_by_another_checkpoint_is_refused(world, tmp_path):
    place = index_folder(load_retriever(world / "clip"), world / "videos", tmp_path).path
    save_small_clip(tmp_path / "other", image_size=48)
    with pytest.raises(SearchIndexError, match="need an index made by this model"):
        Retriever(tmp_path / "other", place)


def test_why_compares_frames_with_the_whole_query(run, world, tmp_path):
    search(run, world, "--explain", "why.png")
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 1000
    search(run, world, "--explain", "why.json")
    why = json.loads((tmp_path / "why.json").read_text())
    assert (why["words"], why["word_weights"], why["word_shares"], why["phrases"]) == ([QUERY], [1.0], [], [])
    assert [row[0] for row in why["frame_word"]] == pytest.approx(why["relevance"])
    assert why["frame_word"][why["word_frames"][0]] == [max(row[0] for row in why["frame_word"])]
    # the cosine of the mean of unit vectors is the mean of their cosines over the length of the mean
    retriever = Retriever.from_folder(world / "videos", world / "clip")
    tokens, _ = retriever.video(why["hit"]["video_id"])
    length = float(tokens.frames_BTD[0].mean(0).norm())
    assert np.mean(why["relevance"]) / length == pytest.approx(why["hit"]["score"], abs=2e-3)


def test_bfloat16_search_finds_the_same(run, world):
    whole, half = (json.loads(search(run, world, "--json", "--precision", name).stdout)
                   for name in ("float32", "bfloat16"))
    scores = [{hit["path"]: hit["score"] for hit in hits} for hits in (whole, half)]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "preprocessor_config.json").unlink(), "need preprocessor_config.json of the checkpoint"),
    (lambda folder: (folder / "config.json").unlink(), "need config.json, found none. Train first"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "need tokenizer.json of the checkpoint"),
    (lambda folder: BertConfig().save_pretrained(folder), "need a dual tower of family clip or")])
def test_wrong_model_is_refused_in_one_line_and_nothing_is_written(run, world, tmp_path, damage, message):
    damage(shutil.copytree(world / "clip", tmp_path / "broken"))
    for verb in (("search", QUERY), ("serve", "--port", 0)):
        result = run(*verb, "--videos", world / "videos", "--model", tmp_path / "broken", code=1)
        assert message in result.stderr
        assert (len(result.stderr.splitlines()), result.stdout) == (1, "")
    assert not (tmp_path / "cache").exists()


def test_files_of_no_seconds_are_named_and_the_others_are_searched(run, world, tmp_path):
    """Headers that claim a length of zero, none, or one that is no number: the frames that are there count."""
    videos = tmp_path / "videos"
    good = {name: claim_seconds(write_grey(videos / f"{name}.mkv"), float(name)).name for name in ("0", "nan", "-5")}
    bad = [write_no_frames(videos / f"none.{ending}") for ending in ("mkv", "mp4", "flv", "avi")]
    (videos / "empty.mp4").touch()
    found = run("search", QUERY, "--videos", videos, "--model", world / "clip", "--json")
    assert {Path(hit["path"]).name for hit in json.loads(found.stdout)} == set(good.values())
    assert all(0 <= hit["start_s"] < hit["end_s"] <= 2.01 for hit in json.loads(found.stdout))
    notes = [line for line in found.stderr.splitlines() if line.startswith(f"note: {videos}")]
    assert len(notes) == len(bad) + 1
    assert all("need a video that can be decoded, got " in line for line in notes)
    for name in good.values():
        (videos / name).unlink()
    for verb in (("search", QUERY), ("serve", "--port", 0)):
        failed = run(*verb, "--videos", videos, "--model", world / "clip", code=1)
        assert "need a video that can be decoded, got 5 that cannot. The first: " in failed.stderr.splitlines()[-1]


def test_file_of_one_frame_is_a_moment(run, world, tmp_path):
    write_grey(tmp_path / "videos/one.mp4", num_frames=1)
    hit, = json.loads(run("search", QUERY, "--videos", tmp_path / "videos", "--model", world / "clip", "--json").stdout)
    assert (hit["start_s"], hit["end_s"]) == (0.0, 0.1)


def test_query_in_letters_that_the_tokenizer_spells_in_bytes_is_refused_before_videos_are_read(run, world, tmp_path):
    result = run("search", "一只狗跳进水里", "--videos", world / "videos", "--model", world / "clip", code=1)
    assert "need words of a language the model knows" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def test_model_says_what_the_checkpoint_holds(run, world):
    text = run("model", world / "clip").stdout
    assert "not trained by hcmi" in text
    assert json.loads(run("model", world / "clip", "--json").stdout)["family"] == "clip"
    assert "need config.json, found none" in run("model", "nowhere", code=1).stderr


@pytest.mark.parametrize("tower", ["visual_projection", "text_projection"])
def test_search_says_that_the_model_is_broken_when_its_vectors_are_no_numbers(run, world, tmp_path, tower):
    shutil.copytree(world / "clip", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights[f"{tower}.weight"].fill_(float("nan"))
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    broken = "model: need finite vectors of videos and texts, got NaN or infinity"
    assert broken in search(run, world, model=tmp_path / "broken", code=1).stderr
    encoder = Encoder(tmp_path / "broken")
    with pytest.raises(ModelError, match=broken):
        (encoder.encode_texts if tower == "text_projection" else encoder.encode_videos)(
            sorted((world / "videos").glob("*.mp4")) if tower == "visual_projection" else ["one"])


# from Python

def test_encoder_gives_unit_vectors_in_the_order_that_was_asked(world):
    encoder, paths = Encoder(world / "clip"), sorted((world / "videos").glob("*.mp4"))
    videos_VD, texts_QD = encoder.encode_videos(paths), encoder.encode_texts(["one", "two"])
    assert (videos_VD.dtype, videos_VD.shape, texts_QD.shape) == (np.float32, (3, encoder.dim), (2, encoder.dim))
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([videos_VD, texts_QD]), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_videos(paths[::-1]), videos_VD[::-1], atol=1e-6)
    assert encoder.encode_videos([]).shape == encoder.encode_texts([]).shape == (0, encoder.dim)


def test_encoder_names_the_file_that_cannot_be_decoded(world, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        Encoder(world / "clip").encode_videos([next((world / "videos").glob("*")), tmp_path / "broken.mp4"])


@pytest.mark.parametrize("kind", [str, Path])
def test_encoder_refuses_a_single_file(world, kind):
    with pytest.raises(DataError, match=r"^files: need a list of files, got the file 'plain\.mp4'\. Put it"):
        Encoder(world / "clip").encode_videos(kind("plain.mp4"))


def test_encoder_refuses_a_single_text(world):
    with pytest.raises(DataError, match="texts: need a list of texts, got the text 'a dog'"):
        Encoder(world / "clip").encode_texts("a dog")


def test_encoder_uses_the_level_of_the_whole_video_of_a_trained_model(world, tmp_path):
    from search_world import searchable_model

    searchable_model().save_pretrained(tmp_path / "model")
    encoder, path = Encoder(tmp_path / "model"), next((world / "videos").glob("*"))
    retriever = Retriever.from_folder(world / "videos", tmp_path / "model", cache=tmp_path / "cache")
    hit = next(hit for hit in retriever.search("a red ring") if hit.path == str(path))
    product = encoder.encode_texts(["a red ring"])[0] @ encoder.encode_videos([path])[0]
    assert product == pytest.approx(hit.levels["video_sentence"], abs=2e-3)
