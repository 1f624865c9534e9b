"""`hcmi search` as a user types it: answers, JSON, pictures, and one line for each mistake."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from search_world import call_hcmi, clips, searchable_model, times, video_tokens, write_grey_videos, write_video

from hcmi.cli import main
from hcmi.index import add_videos, create_index, model_card
from hcmi.model import load_retriever


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with model/, videos/ and a cache."""
    root = tmp_path_factory.mktemp("world")
    searchable_model().save_pretrained(root / "model")
    write_grey_videos(root / "videos")
    return root


@pytest.fixture
def run(world, monkeypatch, tmp_path):
    monkeypatch.setenv("HCMI_CACHE", str(world / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        return call_hcmi("search", *arguments, "--model", world / "model", code=code)

    return call


def test_search_prints_json_for_programs(run, world):
    hits = json.loads(run("a red ring", "--videos", world / "videos", "--top", 2, "--json").stdout)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert set(hits[0]) == {"rank", "video_id", "path", "score", "start_s", "end_s", "levels", "more"}
    assert set(hits[0]["levels"]) == {"frame_word", "clip_phrase", "video_sentence"}


def test_search_prints_a_table_for_people(run, world):
    lines = run("a red ring", "--videos", world / "videos").stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("  1  ")
    assert "video-sentence" in lines[0]


def test_search_names_the_words_it_left_out(run, world):
    result = run("a splendid red ring", "--videos", world / "videos")
    assert "note: left out, since no training caption has them: splendid.\n" in result.stderr


def test_search_draws_why(run, world, tmp_path):
    run("a red ring slides", "--videos", world / "videos", "--explain", "why.png")
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 1000
    run("a red ring slides", "--videos", world / "videos", "--explain", "why.json")
    why = json.loads((tmp_path / "why.json").read_text())
    assert why["words"] == ["a", "red", "ring", "slides"]
    assert len(why["frame_word"]) == len(why["times_s"]) == 6
    assert len(why["frame_word"][0]) == 4


def test_search_names_a_video_that_is_missing(run, world, tmp_path):
    folder = tmp_path / "videos"
    write_video(folder / "a.mp4", 100)
    found = json.loads(run("a red ring", "--videos", folder, "--json").stdout)
    assert [hit["path"] for hit in found] == [str(folder / "a.mp4")]
    home = next(path.parent / "index" for path in (world / "cache").rglob("files.json")
                if str(folder) in path.read_text())
    (folder / "a.mp4").unlink()
    result = run("a red ring", "--index", home)
    assert "note: " in result.stderr
    assert "a.mp4: need the video, got no such file" in result.stderr
    assert "a.mp4: need a video that can be decoded, got no such file" in run(
        "a red ring", "--index", home, "--explain", "why.png", code=1).stderr
    assert not (tmp_path / "why.png").exists()


def test_search_finds_the_files_of_a_project_from_any_folder(run, world, tmp_path):
    """Paths in its index are relative to the project, which is the nearest folder with a dvc.yaml."""
    project = tmp_path / "project"
    write_video(project / "data/a.mp4", 100)
    (project / "dvc.yaml").touch()
    create_index(project / "export/index", model_card(load_retriever(world / "model")))
    add_videos(project / "export/index", clips(["a"], path="data/a.mp4"),
               [(video_tokens(1, np.random.default_rng(0)), times(1))])
    result = run("a red ring", "--index", project / "export/index", "--json")
    assert [hit["path"] for hit in json.loads(result.stdout)] == [str(project / "data/a.mp4")]
    assert "note: " not in result.stderr
    run("a red ring", "--index", project / "export/index", "--explain", tmp_path / "why.png")
    (project / "dvc.yaml").unlink()
    result = run("a red ring", "--index", project / "export/index")
    assert "note: data/a.mp4: need the video, got no such file" in result.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    ([""], "query: need some words, got none"),
    (["x" * 100_000], "need at most 2000 characters, got 100000"),
    (["\x01\x02"], "need readable text"),
    (["ring", "--top", "0"], "--top: need 1 to 1000, got 0"),
    (["ring", "--top", "1000000"], "--top: need 1 to 1000, got 1000000"),
    (["ring"], "export/index: need a search index, got no index.json there. Run `hcmi export`"),
    (["ring", "--videos", "nowhere"], "nowhere: need a folder of videos, got nothing there"),
    (["ring", "--index", "a", "--videos", "b"], "need one place to search"),
    (["ring", "--tag", "place"], "--tag: need NAME=VALUE, got 'place'"),
    (["ring", "--tag", "a=1", "--tag", "a=2"], "--tag: need one value of a, got '1' and '2'"),
    (["ring", "--min-seconds", "nan"], "--min-seconds: need a number from 0, got nan"),
    (["ring", "--max-seconds", "inf"], "--max-seconds: need a number from 0, got inf"),
    (["ring", "--params", "nowhere.yaml"], "nowhere.yaml: need "),
    (["ring", "--explain", "why.txt"], "need a name ending in .png, .svg, .pdf or .json, got '.txt'"),
])
def test_search_says_what_is_wrong_in_one_line(run, arguments, message):
    result = run(*arguments, code=1)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_search_refuses_an_index_of_another_model(run, tmp_path):
    create_index(tmp_path / "index", model_card(searchable_model(seed=1)))
    assert "need an index made by this model" in run("ring", "--index", tmp_path / "index", code=1).stderr


def test_search_says_so_when_nothing_is_there(run, world, tmp_path):
    create_index(tmp_path / "index", model_card(searchable_model()))
    assert run("ring", "--index", tmp_path / "index").stdout.startswith("Nothing found")
    assert run("ring", "--index", tmp_path / "index", "--json").stdout.strip() == "[]"


@pytest.mark.parametrize("verb", ["search", "export"])
def test_help_shows_an_example(verb):
    result = CliRunner().invoke(main, [verb, "--help"])
    assert result.exit_code == 0
    assert f"hcmi {verb} " in result.output.split("Example")[1]
