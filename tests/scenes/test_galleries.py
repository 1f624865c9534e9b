"""The galleries: what each promises, and hashes that keep figures comparable over the years."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from scene_clips_world import TWO, steps_of

from hcmi.config import load_params
from hcmi.dataset import read_folder
from hcmi.errors import ConfigError
from hcmi.scenes import (
    LONG,
    STANDARD,
    Event,
    event_queries,
    gallery_queries,
    phrase,
    scene_clips,
    single_events,
    write_gallery,
)
from hcmi.scenes.galleries import MAX_DRAWS, SIZES, TWIN_SIZES, Query, gallery
from hcmi.scenes.sampling import change_word
from hcmi.scenes.vocabulary import VOCABULARIES, meaning_of, parts_of, split_of, wholes_of
from hcmi.scenes.write import annotation_line

ROOT = Path(__file__).resolve().parents[2]
# sha256 of annotation.jsonl. A change makes published figures incomparable.
PINNED = {
    "main": "a1168e3812a1f0624ac55979658a46eaeeaa6d66f80c781b130d84d95f14da55",
    "event": "a1168e3812a1f0624ac55979658a46eaeeaa6d66f80c781b130d84d95f14da55",
    "brief": "a1168e3812a1f0624ac55979658a46eaeeaa6d66f80c781b130d84d95f14da55",
    "crowd": "c17d72db5bdce2210c3ab966bc9aba6529577d8c1dc832c2e06bc140dbc66329",
    "attribute": "acbd72aa4d4946d660da190756116b673200cb28eb9c8fc10eacdc54f56889d1",
    "order": "74e1ead8bd7bc545c70a832415c16d5bfe08d039e44d454499a0be5ca1b05164",
    "count": "ed0f7d5f450813686abca3e1024d5cc82f9253fe29385c36c10dd79dd1cc4f7f",
    "long": "86c9afb075b5ac5e3a8d809259631d15a964dfa6bd6b67179f5d4e0c40ab0204",
    "paraphrase": "4f1910f77b18477070407146d1c43fb7c0279be7cee20fafe50493b7c4ec0267",
}
PINNED_2 = {        # of version 2
    "main": "4977200ffa33f1e596426f2116a8ddc14ce6d7d11a58c63b50f65953d8f16db0",
    "event": "4977200ffa33f1e596426f2116a8ddc14ce6d7d11a58c63b50f65953d8f16db0",
    "brief": "4977200ffa33f1e596426f2116a8ddc14ce6d7d11a58c63b50f65953d8f16db0",
    "crowd": "42ca95eafdd509552dedaca3051f6791653db5e40020a50ae31c0fc231979b3a",
    "attribute": "c071fb1efea93a51f7e91ebac6d1bccf9ac40be64e138de8336238f324fda948",
    "order": "2612f88b1d5cd64c6f9f2e79a399f62cb844ca6c358f6d97323bfcdef809b476",
    "count": "291f4afc46ef610070ffc562938485acce99d7c1c1d2ac70f4b3b4a94c4afaab",
    "long": "30b7e1ad27ec52fcb61255eeb5f4b6c8c96181267036f5a53cbbbfb30e41ba24",
    "paraphrase": "d517c4e84396fa96ade6d607a885b0f871365803102d7edb220aab1687b55552",
    "number": "73e207eab47912d227cc918462c5089a2c8e8e0ad4fddec6195bcba936b29155",
}
SECOND = STANDARD.model_copy(update=TWO)
# Number of queries, and sha256 of their lines, where they are not the captions of the gallery.
PINNED_QUERIES = {
    "event": (2599, "e85833df7405ae12fd0822df2739a26b5d1f9b031f843c101bbfc45024be8472"),
    "brief": (256, "35afc8444d8c4f16fa135b1a307a3094a9bef3915a71bf17f4ec19fd7d05a9e9"),
    "crowd": (3000, "472227fd9e966067d95f36993b043c3197f33ee722f79b220b96585754e1cd8f"),
}
PINNED_QUERIES_2 = {
    "event": (2604, "ad57c9a8fed8b732e07500885892af75ac0ef6806c94f1cceb81a8c724f3b2f0"),
    "brief": (576, "023cb221fe106d3c3c13507aca0fa65dfa05c2ec4802e264305f9921f31f6525"),
    "crowd": (3000, "6aec301d417f5d01223682331681eefe4447f50e12c70abc5fe08311141ddeec"),
}


@pytest.fixture(scope="module")
def galleries():
    return {name: gallery(name) for name in SIZES}


@pytest.fixture(scope="module")
def galleries_2():
    return {name: gallery(name, SECOND) for name in {**SIZES, **TWIN_SIZES}}


@pytest.fixture
def galleries_of(request):
    return lambda version: request.getfixturevalue("galleries" if version == 1 else "galleries_2")


NAMES = [(1, name) for name in SIZES] + [(2, name) for name in {**SIZES, **TWIN_SIZES}]


@pytest.mark.parametrize("name", SIZES)
def test_annotation_is_the_published_one_when_made_again(galleries, name):
    text = "".join(map(annotation_line, galleries[name]))
    assert (STANDARD.version, hashlib.sha256(text.encode()).hexdigest()) == (1, PINNED[name])
    assert len(galleries[name]) == SIZES[name]


@pytest.mark.parametrize("name", PINNED_2)
def test_annotation_of_version_2_is_the_same_when_made_again(galleries_2, name):
    text = "".join(map(annotation_line, galleries_2[name]))
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED_2[name]
    assert len(galleries_2[name]) == {**SIZES, **TWIN_SIZES}[name]


@pytest.mark.parametrize(("config", "pinned"), [(STANDARD, PINNED_QUERIES), (SECOND, PINNED_QUERIES_2)])
@pytest.mark.parametrize("name", PINNED_QUERIES)
def test_queries_are_the_published_ones_when_made_again(name, config, pinned):
    queries = gallery_queries(name, config)
    text = "".join(f'{{"text": "{query.text}", "right": {json.dumps(query.right)}}}\n' for query in queries)
    assert (len(queries), hashlib.sha256(text.encode()).hexdigest()) == pinned[name]


def test_default_test_split_is_the_main_gallery_when_parameters_are_the_shipped_ones(galleries):
    config = load_params(ROOT / "params.yaml").dataset
    assert list(scene_clips(config.scenes, "test", config.seed, config.scenes.num_test)) == galleries["main"]


@pytest.mark.parametrize(("version", "name"), NAMES)
def test_captions_belong_to_one_clip_when_in_a_gallery(galleries_of, version, name):
    clips = galleries_of(version)[name]
    captions = Counter(caption for clip in clips for caption in clip.captions)
    assert max(captions.values()) == 1
    if name == "count":         # its captions say how many things happen: parts are not the whole
        assert all("happen" in caption for caption in captions)
    true = wholes_of if name == "count" else parts_of
    true_of = Counter(part for clip in clips for part in true(steps_of(clip)))
    assert {true_of[clip.meaning] for clip in clips} == {1}


@pytest.mark.parametrize(("version", "name"), NAMES)
def test_events_are_never_trained_on_when_in_a_gallery(galleries_of, version, name):
    steps = [steps_of(clip) for clip in galleries_of(version)[name]]
    assert {split_of(step) for step in steps} == {"test"}
    assert all(map(VOCABULARIES[version].allows, steps))


@pytest.mark.parametrize("name", ["main", "order", "paraphrase", "long"])     # `attribute` takes 20 s
def test_gallery_of_the_split_val_has_other_clips_and_what_test_has_when_settings_are_chosen(galleries, name):
    clips, published = gallery(name, split="val"), galleries[name]
    assert {(clip.split, split_of(steps_of(clip))) for clip in clips} == {("val", "val")}
    assert not {clip.meaning for clip in clips} & {clip.meaning for clip in published}
    true_of = Counter(part for clip in clips for part in parts_of(steps_of(clip)))
    assert {true_of[clip.meaning] for clip in clips} == {1}
    assert [clip.tags.get("group") for clip in clips] == [clip.tags.get("group") for clip in published]
    queries = gallery_queries(name, split="val")
    assert [query.text for query in queries] == [caption for clip in clips for caption in clip.captions]


def test_split_with_too_few_meanings_is_refused_when_a_gallery_is_asked_of_it(monkeypatch):
    monkeypatch.setattr("hcmi.scenes.galleries.MAX_DRAWS", MAX_DRAWS // 20)
    with pytest.raises(ConfigError, match=r"gallery count, split val: need 100 groups, got \d+: the split has too few "
                                          r"meanings\. Choose the split test, or another gallery\."):
        gallery("count", split="val")


def test_another_event_is_two_of_a_kind_in_each_clip_of_a_group(galleries_2):
    groups = {}
    for clip in galleries_2["number"]:
        groups.setdefault(clip.tags["group"], []).append(clip)
    assert len(groups) == 200
    for group in groups.values():
        assert [[event.number for event in clip.events] for clip in group] == [[2, 1, 1], [1, 2, 1], [1, 1, 2]]
        assert len({tuple(event.kind for event in clip.events) for clip in group}) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_clips_of_a_group_differ_as_the_gallery_says(galleries_of, version):
    groups, fields = {name: {} for name in ("attribute", "order", "count")}, ("colour", "shape", "action", "number")
    for name, found in groups.items():
        for clip in galleries_of(version)[name]:
            found.setdefault(clip.tags["group"], []).append(clip)
    for group in groups["order"].values():
        assert len(group) == 6
        assert len({frozenset(event.name for event in clip.events) for clip in group}) == 1
    for group in groups["count"].values():
        assert [len(clip.events) for clip in group] == [1, 2, 3, 4]
    for group in groups["attribute"].values():
        kind = group[0].tags["near"]
        bags = [Counter(tuple(getattr(event, name) for name in fields) for event in clip.events) for clip in group]
        for bag in bags[1:]:
            (before,), (after,) = (bags[0] - bag), (bag - bags[0])
            changed = [k for k, a, b in zip(fields, before, after, strict=True) if a != b]
            assert changed == [kind]


def test_long_films_have_four_to_six_events_in_paragraphs_when_read(galleries):
    assert {len(clip.events) for clip in galleries["long"]} == {4, 5, 6}
    assert min(clip.captions[0].count(".") for clip in galleries["long"]) >= 2
    trained = {clip.meaning for clip in scene_clips(LONG, "train", 5, 300)}
    assert trained.isdisjoint(clip.meaning for clip in galleries["long"])


def test_paraphrases_use_no_wording_of_training_when_read(galleries):
    openings = {caption.split()[0] for clip in scene_clips(STANDARD, "train", 0, 300) for caption in clip.captions}
    assert openings.isdisjoint({caption.split()[0] for clip in galleries["paraphrase"] for caption in clip.captions})


def assert_right_answers_are_complete(queries, clips):
    """Each query asks for one event of a clip of several, and its right answers are the clips that show this event."""
    for query in queries:
        showing = [clip for clip in clips if any(f"a {e.name}" == query.text.replace("an ", "a ") for e in clip.events)]
        assert query.right == tuple(clip.video_id for clip in showing)
        assert any(len(clip.events) > 1 for clip in showing)


def test_right_answers_are_all_clips_that_show_the_event_when_one_event_is_asked_for(galleries):
    assert galleries["event"] == galleries["main"]
    queries = gallery_queries("event")
    assert_right_answers_are_complete(queries[::20], galleries["event"])
    assert len({query.text for query in queries}) == 602
    chance = sum(len(query.right) for query in queries) / len(queries) / SIZES["event"]
    assert chance == pytest.approx(0.0059, abs=1e-4)


def test_assert_right_answers_are_complete_fails_when_one_is_left_out(galleries):
    query = next(query for query in gallery_queries("event") if len(query.right) > 1)
    with pytest.raises(AssertionError):
        assert_right_answers_are_complete([Query(query.text, query.right[1:])], galleries["event"])


def test_two_of_a_kind_answer_a_question_for_one_when_in_the_event_gallery(galleries_2):
    queries = {query.text: query.right for query in gallery_queries("event", SECOND)}
    answers = Counter()
    for clip in galleries_2["event"]:
        for event in clip.events:
            one = phrase(replace(event, number=1))
            if one in queries:
                assert clip.video_id in queries[one]
                answers[event.number] += 1
            if event.number == 1 and phrase(replace(event, number=2)) in queries:
                shown = {other.number for other in clip.events if other.kind == event.kind}
                assert (clip.video_id in queries[phrase(replace(event, number=2))]) == (2 in shown)
    assert answers[2] > 100
    two, one = Event("red", "ring", "grows", number=2), Event("red", "ring", "grows", order=1)
    star = Event("blue", "star", "jumps", order=2)
    assert single_events([two, one, star]) == [star], "a question for one ring would have two answers in the clip"
    assert event_queries({"one": [one, star], "two": [two, star]}) == [
        Query("a red ring grows", ("one", "two")), Query("a blue star jumps", ("one", "two")),
        Query("two red rings grow", ("two",)), Query("a blue star jumps", ("one", "two"))]


@pytest.mark.parametrize("version", [1, 2])
def test_right_answers_are_all_clips_of_which_a_brief_query_is_true(galleries_of, version):
    clips = galleries_of(version)["brief"]
    queries = gallery_queries("brief", STANDARD.model_copy(update={"version": version}))
    words = VOCABULARIES[version]
    texts = [query.text for query in queries]
    assert texts == sorted(set(texts))
    colours, shapes, actions = map(len, (words.colours, words.shapes, words.actions))
    assert len(texts) <= colours * shapes + shapes * actions + colours * actions
    for query in queries:
        told = [word for word in query.text.split() if word not in ("a", "an", "something")]
        showing = [clip.video_id for clip in clips
                   if any(f" {' '.join(told)} " in f" {text} " for event in clip.events for text in (
                       f"{event.colour} {event.shape}", f"{event.shape} {event.action}",
                       f"{event.colour} {event.action}"))]
        assert query.right == tuple(showing)


def test_event_is_asked_for_when_its_words_are_unique_in_a_clip_of_several():
    grows, blinks = (Event("red", "ring", action) for action in ("grows", "blinks"))
    jumps = Event("orange", "ring", "jumps")
    again = Event("red", "ring", "grows", order=2, start_s=1.0, end_s=2.0)
    assert single_events([grows]) == []
    assert single_events([grows, again]) == []
    assert single_events([grows, jumps, again]) == [jumps]
    shown = {"one": [grows], "two": [grows, jumps, again], "three": [grows, blinks], "four": [jumps, blinks]}
    assert event_queries(shown) == [
        Query("an orange ring jumps", ("two", "four")), Query("a red ring grows", ("one", "two", "three")),
        Query("a red ring blinks", ("three", "four")), Query("an orange ring jumps", ("two", "four")),
        Query("a red ring blinks", ("three", "four"))]


def test_crowd_is_main_among_others_for_which_no_caption_of_main_is_true(galleries):
    main, crowd = galleries["main"], galleries["crowd"]
    assert crowd[:len(main)] == main
    assert gallery_queries("crowd") == gallery_queries("main") == [
        Query(caption, (clip.video_id,)) for clip in main for caption in clip.captions]
    shown_by_others = {part for clip in crowd[len(main):] for part in parts_of(steps_of(clip))}
    assert shown_by_others.isdisjoint(clip.meaning for clip in main)
    numbers = [len(clip.events) for clip in crowd]
    assert set(numbers) == {1, 2, 3, 4}
    for number in (2, 3, 4):        # of one event there are not enough
        assert numbers[len(main):].count(number) / 9000 == pytest.approx(1 / 3, abs=0.03)


def test_crowd_has_near_neighbours_of_main_as_the_page_says(galleries):
    main, others = galleries["crowd"][:1000], galleries["crowd"][1000:]
    near = set()
    for steps in map(steps_of, main):
        places = [(step, event) for step, events in enumerate(steps) for event in range(len(events))]
        near |= {meaning_of(change_word(steps, place, kind, word))
                 for place in places for kind, words in VOCABULARIES[1].words.items() for word in words}
        for one, other in combinations(range(len(steps)), 2):
            swapped = list(steps)
            swapped[one], swapped[other] = steps[other], steps[one]
            near.add(meaning_of(tuple(swapped)))
    assert sum(clip.meaning in near for clip in others) == 771


def test_unknown_gallery_is_refused_when_asked_for():
    with pytest.raises(ConfigError, match=r"gallery: need one of main, event, brief, crowd, .*, got 'colour'"):
        gallery("colour")
    with pytest.raises(ConfigError, match="need one of main"):
        gallery_queries("colour")
    with pytest.raises(ConfigError, match=r"need one of main, .*, paraphrase, got 'number'"):
        gallery("number")
    with pytest.raises(ConfigError, match=r"gallery order: need a split that no model .*, test or val, got 'train'"):
        gallery("order", split="train")


def test_queries_are_of_the_version_when_a_gallery_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(TWIN_SIZES, "number", 3)
    clips = write_gallery("number", tmp_path / "number", SECOND)
    lines = [json.loads(line) for line in (tmp_path / "number" / "queries.jsonl").read_text("utf-8").splitlines()]
    assert [line["text"] for line in lines] == [caption for clip in clips for caption in clip.captions]
    assert all("two " in line["text"] for line in lines)


@pytest.mark.parametrize("split", ["test", "val"])
def test_gallery_is_a_folder_data_set_when_written(tmp_path, monkeypatch, split):
    monkeypatch.setitem(SIZES, "order", 6)
    clips = write_gallery("order", tmp_path / "order", split=split)
    found, skipped = read_folder(tmp_path / "order", load_params(ROOT / "params.yaml").dataset)
    assert skipped == []
    assert [(clip.video_id, clip.captions, clip.split) for clip in found] == [
        (clip.video_id, clip.captions, split) for clip in clips]
    lines = [json.loads(line) for line in (tmp_path / "order" / "queries.jsonl").read_text("utf-8").splitlines()]
    assert lines == [{"text": caption, "right": [clip.video_id]} for clip in clips for caption in clip.captions]


def test_everything_to_score_a_model_is_there_when_the_event_gallery_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "event", 8)
    clips = write_gallery("event", tmp_path / "event")
    lines = [json.loads(line) for line in (tmp_path / "event" / "queries.jsonl").read_text("utf-8").splitlines()]
    assert [Query(line["text"], tuple(line["right"])) for line in lines] == gallery_queries("event")
    assert {video_id for line in lines for video_id in line["right"]} <= {clip.video_id for clip in clips}
    assert len(list((tmp_path / "event" / "videos").iterdir())) == 8
