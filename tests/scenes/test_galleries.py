"""The galleries: what each promises, and hashes that keep figures comparable over the years."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from scene_clips_world import steps_of

from hcmi.config import load_params
from hcmi.dataset import read_folder
from hcmi.errors import ConfigError
from hcmi.scenes import LONG, STANDARD, VERSION, scene_clips, write_gallery
from hcmi.scenes.galleries import SIZES, gallery
from hcmi.scenes.vocabulary import parts_of, split_of
from hcmi.scenes.write import annotation_line

ROOT = Path(__file__).resolve().parents[2]
# sha256 of annotation.jsonl. A change makes published figures incomparable: raise galleries.VERSION with it.
PINNED = {
    "main": "a1168e3812a1f0624ac55979658a46eaeeaa6d66f80c781b130d84d95f14da55",
    "attribute": "acbd72aa4d4946d660da190756116b673200cb28eb9c8fc10eacdc54f56889d1",
    "order": "74e1ead8bd7bc545c70a832415c16d5bfe08d039e44d454499a0be5ca1b05164",
    "count": "ed0f7d5f450813686abca3e1024d5cc82f9253fe29385c36c10dd79dd1cc4f7f",
    "long": "86c9afb075b5ac5e3a8d809259631d15a964dfa6bd6b67179f5d4e0c40ab0204",
    "paraphrase": "4f1910f77b18477070407146d1c43fb7c0279be7cee20fafe50493b7c4ec0267",
}


@pytest.fixture(scope="module")
def galleries():
    return {name: gallery(name) for name in SIZES}


@pytest.mark.parametrize("name", SIZES)
def test_annotation_is_the_published_one_when_made_again(galleries, name):
    text = "".join(map(annotation_line, galleries[name]))
    assert (VERSION, hashlib.sha256(text.encode()).hexdigest()) == ("1", PINNED[name])
    assert len(galleries[name]) == SIZES[name]


def test_default_test_split_is_the_main_gallery_when_parameters_are_the_shipped_ones(galleries):
    config = load_params(ROOT / "params.yaml").dataset
    assert list(scene_clips(config.scenes, "test", config.seed, config.scenes.num_test)) == galleries["main"]


@pytest.mark.parametrize("name", SIZES)
def test_captions_belong_to_one_clip_when_in_a_gallery(galleries, name):
    captions = Counter(caption for clip in galleries[name] for caption in clip.captions)
    assert max(captions.values()) == 1
    if name == "count":         # its captions say how many things happen: parts are not the whole
        assert all("happen" in caption for caption in captions)
        assert len({clip.meaning for clip in galleries[name]}) == SIZES[name]
    else:
        true_of = Counter(part for clip in galleries[name] for part in parts_of(steps_of(clip)))
        assert {true_of[clip.meaning] for clip in galleries[name]} == {1}


@pytest.mark.parametrize("name", SIZES)
def test_events_are_never_trained_on_when_in_a_gallery(galleries, name):
    assert {split_of(steps_of(clip)) for clip in galleries[name]} == {"test"}


def test_clips_of_a_group_differ_as_the_gallery_says(galleries):
    groups = {name: {} for name in ("attribute", "order", "count")}
    for name, found in groups.items():
        for clip in galleries[name]:
            found.setdefault(clip.tags["group"], []).append(clip)
    for group in groups["order"].values():
        assert len(group) == 6
        assert len({frozenset(event.name for event in clip.events) for clip in group}) == 1
    for group in groups["count"].values():
        assert [len(clip.events) for clip in group] == [1, 2, 3, 4]
    for group in groups["attribute"].values():
        kind = group[0].tags["near"]
        bags = [Counter((event.colour, event.shape, event.action) for event in clip.events) for clip in group]
        for bag in bags[1:]:
            (before,), (after,) = (bags[0] - bag), (bag - bags[0])
            changed = [k for k, a, b in zip(("colour", "shape", "action"), before, after, strict=True) if a != b]
            assert changed == [kind]


def test_long_films_have_four_to_six_events_in_paragraphs_when_read(galleries):
    assert {len(clip.events) for clip in galleries["long"]} == {4, 5, 6}
    assert min(clip.captions[0].count(".") for clip in galleries["long"]) >= 2
    trained = {clip.meaning for clip in scene_clips(LONG, "train", 5, 300)}
    assert trained.isdisjoint(clip.meaning for clip in galleries["long"])


def test_paraphrases_use_no_wording_of_training_when_read(galleries):
    openings = {caption.split()[0] for clip in scene_clips(STANDARD, "train", 0, 300) for caption in clip.captions}
    assert openings.isdisjoint({caption.split()[0] for clip in galleries["paraphrase"] for caption in clip.captions})


def test_unknown_gallery_is_refused_when_asked_for():
    with pytest.raises(ConfigError, match=r"gallery: need one of main, attribute, .*, got 'colour'"):
        gallery("colour")


def test_gallery_is_a_folder_data_set_when_written(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "order", 6)
    clips = write_gallery("order", tmp_path / "order")
    found, skipped = read_folder(tmp_path / "order", load_params(ROOT / "params.yaml").dataset)
    assert skipped == []
    assert [(clip.video_id, clip.captions, clip.split) for clip in found] == [
        (clip.video_id, clip.captions, "test") for clip in clips]
