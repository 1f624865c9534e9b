"""Ids, segments and splits of the clips that rows of captions become."""

import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_world import CONFIG, rows_for
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from video_files import write_pictures

from hcmi.dataset.build_clips import build_clips, clip_id
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.near_duplicates import NearDuplicate, near_duplicates
from hcmi.types import Clip, Skip


def splits_of(rows, film_of, **changes):
    """video_id -> split."""
    found = build_clips(rows, film_of, CONFIG.model_copy(update=changes))
    return {clip.video_id: clip.split for clip in found}


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=300), st.floats(0, 1e5), st.floats(0, 1e5))
def test_ids_are_plain_when_names_are_anything(name, start_s, end_s):
    for made in (clip_id(name), clip_id(name, start_s, end_s)):
        assert made
        assert set(made) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def test_splits_follow_the_fractions_and_the_name_when_not_given(film_of):
    first = splits_of(rows_for(300), film_of)
    counts = Counter(first.values())
    assert counts["test"] / 300 == pytest.approx(0.2, abs=0.07)
    assert counts["val"] / 300 == pytest.approx(0.1, abs=0.06)
    assert splits_of(rows_for(120)[::-1], film_of) == {name: split for name, split in first.items() if int(name) < 120}
    assert splits_of(rows_for(100), film_of, seed=1) != splits_of(rows_for(100), film_of)


def test_parts_of_one_video_share_a_split_when_it_is_not_given(film_of):
    rows = [CaptionRow(f"{i % 20}.mp4", "x", start_s=i * 0.01) for i in range(100)]
    splits = splits_of(rows, film_of)
    assert len(splits) == 100
    assert len({(name.split("_")[0], split) for name, split in splits.items()}) == 20


@pytest.mark.parametrize(("count", "expected"), [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "test", "val"}),
                                                 (4, {"train", "test", "val"})])
def test_every_split_has_a_video_when_there_are_few(film_of, count, expected):
    for seed in range(8):
        splits = splits_of(rows_for(count), film_of, seed=seed)
        assert (len(splits), set(splits.values())) == (count, expected) or count == 1


def test_given_splits_are_kept_when_some_are_blank(film_of):
    rows = [*rows_for(2, split="test"), CaptionRow("0000.mp4", "y"), CaptionRow("blank.mp4", "x")]
    splits = splits_of(rows, film_of)
    assert (splits["0000"], splits["0001"]) == ("test", "test")
    assert splits_of(rows_for(5, split="test"), film_of) == dict.fromkeys([f"{i:04d}" for i in range(5)], "test")


def test_no_test_split_is_made_when_its_fraction_is_zero(film_of):
    assert set(splits_of(rows_for(40), film_of, test_fraction=0.0).values()) == {"train", "val"}


def test_videos_of_equal_bytes_share_a_split_when_it_is_not_given(film_of, tmp_path):
    """60 videos, each under three names: a copy, a link, and in parts."""
    def locate(row):
        original = Path(film_of(CaptionRow(row.video.split("_")[-1], "x")))
        path = tmp_path / row.video
        if row.video.startswith("copy_"):
            shutil.copy(original, path)
        elif row.video.startswith("link_") and not path.is_symlink():
            path.symlink_to(original)
        return str(path if row.video != original.name else original)

    names = [f"{number:02d}.mp4" for number in range(60)]
    rows = [row for name in names for row in (
        CaptionRow(name, "x"), CaptionRow(f"copy_{name}", "x"), CaptionRow(f"link_{name}", "x", end_s=1.0),
        CaptionRow(f"link_{name}", "x", start_s=1.0))]
    splits = splits_of(rows, locate)
    assert len(splits) == 240
    shared = {name[:2]: {split for clip, split in splits.items() if f"{name[:2]}" in clip.split("_")[:2]}
              for name in names}
    assert [len(found) for found in shared.values()] == [1] * 60
    alone = splits_of([CaptionRow(name, "x") for name in names], locate)
    assert {name: split for name, split in splits.items() if name in alone} == alone
    assert set(alone.values()) == {"train", "val", "test"}


def test_every_split_has_a_video_of_its_own_when_copies_are_many(film_of):
    rows = [CaptionRow(f"{name}.mp4", "x") for name in ("a1", "a2", "a3", "b", "c")]
    for seed in range(8):
        splits = splits_of(rows, lambda row: film_of(CaptionRow(f"{row.video[0]}.mp4", "x")), seed=seed)
        assert len({splits[name] for name in ("a1", "a2", "a3")}) == 1
        assert {splits["a1"], splits["b"], splits["c"]} == {"train", "val", "test"}
    rows = rows[:3]
    assert len(set(splits_of(rows, lambda row: film_of(CaptionRow("a.mp4", "x"))).values())) == 1


def test_equal_bytes_are_in_one_split_whatever_splits_are_given(film_of):
    """Those of the test stay; else those of val."""
    rows = [CaptionRow(f"{name}.mp4", "x", split=split) for name, split in (
        ("v", "val"), ("t", "test"), ("t2", "test"), ("t3", "train"), ("r", "train"), ("r2", "train"), ("w", "val"),
        ("w2", "train"))]
    film = {"v": "t"}
    found = list(build_clips(rows, lambda row: film_of(CaptionRow(film.get(row.video[0], row.video[0]), "x")), CONFIG))
    splits = {clip.video_id: clip.split for clip in found if isinstance(clip, Clip)}
    assert splits == {"t": "test", "t2": "test", "r": "train", "r2": "train", "w": "val"}
    left_out = {skip.video_id: skip.detail for skip in found if isinstance(skip, Skip)}
    assert set(left_out) == {"v", "t3", "w2"}
    assert "need other videos for val than for test, got the bytes of " in left_out["v"]


def test_a_copy_that_is_encoded_again_is_named_and_kept(tmp_path):
    def picture(seed, size=(96, 128)):
        grid = np.random.default_rng(seed).integers(0, 255, (6, 8)).astype(np.uint8)
        return np.asarray(Image.fromarray(grid).resize(size[::-1]).convert("RGB"))

    write_pictures(tmp_path / "film.mp4", [picture(1)] * 20, 10, crf="12")
    write_pictures(tmp_path / "small.mkv", [picture(1, (48, 64))] * 20, 10, crf="36")
    write_pictures(tmp_path / "longer.mp4", [picture(1)] * 60, 10)
    write_pictures(tmp_path / "other.mp4", [picture(2)] * 20, 10)
    write_pictures(tmp_path / "black.mp4", [picture(2) * 0] * 20, 10)
    write_pictures(tmp_path / "black2.mp4", [picture(2, (48, 64)) * 0] * 20, 10)
    splits = {"film.mp4": "test", "small.mkv": "train", "longer.mp4": "train", "other.mp4": "train",
              "black.mp4": "test", "black2.mp4": "train"}
    rows = [CaptionRow(name, "x", split=split) for name, split in splits.items()]
    found = list(build_clips(rows, lambda row: str(tmp_path / row.video), CONFIG))
    assert sum(isinstance(one, Clip) for one in found) == 6
    assert [one for one in found if not isinstance(one, Clip)] == [
        NearDuplicate(f"{tmp_path}/small.mkv", "train", f"{tmp_path}/film.mp4", "test")]


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=7), st.floats(0, 99), st.floats(-2, 2))
def test_looks_are_alike_when_at_most_four_bits_differ(look, flipped, duration_s, later):
    other = look ^ sum(1 << bit for bit in flipped)
    signed = [value - 2**64 * (value >> 63) for value in (look, other)]
    test = ("a", "test", duration_s, signed[0])
    found = list(near_duplicates([test], [("b", "train", duration_s + later, signed[1]), test]))
    alike = len(flipped) <= 4 and abs(duration_s + later - duration_s) <= 0.5
    assert found == [NearDuplicate("b", "train", "a", "test")] * alike


@pytest.mark.parametrize("given", [("train",), ("val",), ("test",), ("train", "test")])
def test_a_copy_without_a_split_follows_the_one_that_has_it(film_of, given):
    rows = [*(CaptionRow(f"z{split}.mp4", "x", split=split) for split in given), CaptionRow("a.mp4", "x")]
    for seed in range(6):
        config = CONFIG.model_copy(update={"seed": seed})
        found = list(build_clips(rows, lambda row: film_of(CaptionRow("a.mp4", "x")), config))
        splits = {clip.video_id: clip.split for clip in found if isinstance(clip, Clip)}
        assert splits == {f"z{given[-1]}": given[-1], "a": given[-1]}
        assert len(found) == len(rows)


def test_memory_does_not_grow_with_the_rows_when_they_are_many(film):
    def peak(count):
        rows = (CaptionRow("a.mp4", f"caption {i}", start_s=(i % 1900) / 1000) for i in range(count))
        tracemalloc.start()
        captions = sum(len(clip.captions) for clip in build_clips(rows, lambda row: str(film), CONFIG))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert captions == count
        return most
    peak(100)
    assert peak(20_000) < peak(1_000) + 300_000


def test_memory_does_not_grow_with_the_files_when_many_cannot_be_hashed():
    def peak(count):
        rows = (CaptionRow(f"{i:06d}.mp4", "x") for i in range(count))
        tracemalloc.start()
        reasons = Counter(skip.reason for skip in build_clips(rows, lambda row: f"none/{row.video}", CONFIG))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reasons == {"missing": count}
        return most
    peak(100)
    assert peak(8_000) < peak(500) + 2_000_000, "Skips that wait take 1 kB each"


def test_skips_among_the_rows_are_passed_on(film):
    skip = Skip("lost", "a.tar/lost", "dataset", "no_video", "")
    rows = [CaptionRow("a.mp4", "a dog"), skip, CaptionRow("a.mp4", "a cat")]
    found = list(build_clips(rows, lambda row: str(film), CONFIG))
    assert found[0] is skip
    assert [clip.captions for clip in found[1:]] == [("a dog", "a cat")]


@pytest.mark.parametrize(("start_s", "end_s"), [(float("nan"), 1.0), (0.0, float("nan")), (-1.0, 1.0),
                                                (0.0, float("inf"))])
def test_a_row_is_left_out_when_its_times_are_no_times(film, start_s, end_s):
    rows = [CaptionRow("a.mp4", "good"), CaptionRow("a.mp4", "bad", start_s, end_s, where="row 2")]
    skip, clip = build_clips(rows, lambda row: str(film), CONFIG)
    assert (skip.reason, clip.captions) == ("bad_segment", ("good",))
    assert skip.detail.startswith("row 2: need start and end in seconds from 0, got ")


def test_a_part_is_left_out_when_it_rounds_to_nothing(film):
    rows = [CaptionRow("a.mp4", "good", 1.0004, 1.0016), CaptionRow("a.mp4", "bad", 1.0001, 1.0004, where="row 3")]
    skip, clip = build_clips(rows, lambda row: str(film), CONFIG)
    assert (skip.reason, clip.captions, clip.duration_s) == ("bad_segment", ("good",), 0.002)
    assert skip.detail == "row 3: need a part of a millisecond or more, got 1.0001 to 1.0004."
