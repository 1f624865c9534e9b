"""The training loader against shards written here, frame by frame."""

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import SIZE, clip_and_frame, make_shards

from hcmi.errors import ConfigError, DataError
from hcmi.shards import ShardReader, TrainLoader, sampler


def joined(lists):
    return list(chain.from_iterable(lists))


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.rows == b.rows
        assert a.captions == b.captions
        assert torch.equal(a.frames_BTHXC, b.frames_BTHXC)
        assert torch.equal(a.frame_mask_BT, b.frame_mask_BT)


def test_train_loader_plans_no_epoch_when_its_length_is_asked_for(shards, monkeypatch):
    loader = TrainLoader(ShardReader(shards, "train"), batch_size=8, num_frames=3)
    monkeypatch.setattr(sampler, "plan_epoch", lambda *_: pytest.fail("planned again"))
    assert len(loader) == 3


def test_train_loader_gives_the_frames_and_captions_it_names_when_iterated(shards):
    loader = TrainLoader(ShardReader(shards, "train"), batch_size=8, num_frames=3, seed=5)
    assert len(loader) == 3
    batches = list(loader)
    assert len(batches) == 3
    assert loader.epoch == 1
    for batch in batches:
        assert batch.frames_BTHXC.shape == (8, 3, SIZE, SIZE, 3)
        assert batch.frames_BTHXC.dtype == torch.uint8
        assert batch.frame_mask_BT.all()
        assert batch.frame_mask_BT.dtype == torch.bool
        clips, frames = clip_and_frame(batch.frames_BTHXC)
        assert (clips == np.array(batch.rows)[:, None]).all()
        assert (frames // 2 == [0, 1, 2]).all()         # 6 stored, 3 segments of two
        assert [caption[:-1] for caption in batch.captions[0]] == [f"clip {row} caption " for row in batch.rows]
    second = np.concatenate([clip_and_frame(batch.frames_BTHXC)[1] % 2 for batch in batches])
    assert 0.3 < second.mean() < 0.7        # of the two in each segment


def test_train_loader_never_repeats_a_video_in_a_batch_when_videos_have_segments(segments):
    loader = TrainLoader(ShardReader(segments, "train"), batch_size=6, num_frames=2)
    paths = [clip.path for clip in loader.reader.clips]
    for _ in range(5):
        for batch in loader:
            assert len({paths[row] for row in batch.rows}) == 6
    assert loader.epoch == 5


def test_train_loader_counts_copies_as_one_video_when_their_bytes_are_equal(tmp_path):
    """Four files, two of them with the same bytes: no batch of three holds both."""
    reader = ShardReader(make_shards(tmp_path, list("abcd")), "train")
    copies = [replace(clip, sha256={"b": "a"}.get(clip.sha256, clip.sha256)) for clip in reader.clips]
    reader.clips = copies
    loader = TrainLoader(reader, batch_size=3, num_frames=1)
    rows = [set(batch.rows) for _ in range(8) for batch in loader]
    assert len(rows) == 8
    assert not [found for found in rows if {0, 1} <= found]
    reader.clips = [replace(clip, sha256="") for clip in copies]    # not known: files are told apart by their paths
    loader = TrainLoader(reader, batch_size=3, num_frames=1)
    assert [found for _ in range(8) for batch in loader if {0, 1} <= (found := set(batch.rows))]


def test_train_loader_uses_every_clip_and_caption_equally_when_run_for_many_epochs(shards):
    loader = TrainLoader(ShardReader(shards, "train"), batch_size=15, num_frames=1)
    seen: dict[str, int] = {}
    for _ in range(4):
        for batch in loader:
            for caption in batch.captions[0]:
                seen[caption] = seen.get(caption, 0) + 1
    assert seen == {f"clip {clip} caption {caption}": 2 for clip in range(30) for caption in range(2)}


def test_train_loader_takes_captions_in_turn_when_several_are_asked_for(tmp_path):
    """All but one clip have two: with three a time the first comes twice, and the next time begins where this ended."""
    folder = make_shards(tmp_path, [f"video{clip}" for clip in range(30)], num_captions=[2] * 29 + [3])
    loader = TrainLoader(ShardReader(folder, "train"), batch_size=15, num_frames=1, num_captions=3)
    times: dict[int, list[int]] = {row: [] for row in range(30)}
    for _ in range(2):
        for batch in loader:
            assert [len(captions) for captions in batch.captions] == [15] * 3
            for row, *captions in zip(batch.rows, *batch.captions, strict=True):
                assert {caption[:-1] for caption in captions} == {f"clip {row} caption "}
                times[row] += [int(caption[-1]) for caption in captions]
    assert sorted(times.pop(29)[:3]) == [0, 1, 2]
    assert all(numbers in ([0, 1] * 3, [1, 0] * 3) for numbers in times.values())
    assert len({numbers[0] for numbers in times.values()}) == 2


def test_train_loader_gives_each_caption_once_when_no_clip_has_as_many_as_are_asked_for(tmp_path):
    folder = make_shards(tmp_path, list("abcd"), num_captions=[1, 2, 1, 2])
    [batch] = TrainLoader(ShardReader(folder, "train"), batch_size=4, num_frames=1, num_captions=3)
    assert len(batch.captions) == 2


def test_train_loader_shuffles_differently_when_the_epoch_or_the_seed_changes(shards):
    reader = ShardReader(shards, "train")

    def rows(seed, epoch):
        loader = TrainLoader(reader, batch_size=10, num_frames=1, seed=seed)
        loader.epoch = epoch
        return [batch.rows for batch in loader]
    assert rows(0, 0) == rows(0, 0)
    assert len({str(rows(seed, epoch)) for seed in (0, 1, -1) for epoch in (0, 1)}) == 6


def test_train_loader_leaves_out_other_clips_each_epoch_when_they_fill_no_batch(shards):
    loader = TrainLoader(ShardReader(shards, "train"), batch_size=7, num_frames=1)
    left = [set(range(30)) - {row for batch in loader for row in batch.rows} for _ in range(12)]
    assert all(len(rows) == 2 for rows in left)
    assert len(set.union(*left)) > 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_splits_each_batch_exactly_when_there_are_several_ranks(segments, num_workers):
    reader = ShardReader(segments, "train")
    whole = list(TrainLoader(reader, 6, num_frames=2, seed=3))
    parts = [list(TrainLoader(reader, 6, num_frames=2, seed=3, rank=rank, world_size=3,
                              num_workers=num_workers)) for rank in range(3)]
    for number, batch in enumerate(whole):
        ranks = [part[number] for part in parts]
        assert [len(rank.rows) for rank in ranks] == [2, 2, 2]
        assert joined(rank.rows for rank in ranks) == batch.rows
        assert joined(rank.captions[0] for rank in ranks) == batch.captions[0]
        assert torch.equal(torch.cat([rank.frames_BTHXC for rank in ranks]), batch.frames_BTHXC)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_sees_the_same_batches_when_resumed_in_mid_epoch(segments, num_workers):
    reader = ShardReader(segments, "train")

    def make():
        return TrainLoader(reader, 5, num_frames=3, seed=9, num_workers=num_workers)
    undisturbed = make()
    oracle = [batch for _ in range(3) for batch in undisturbed]
    first = make()
    seen, states = [], []
    for _ in range(2):
        for batch in first:
            seen.append(batch)
            states.append(json.loads(json.dumps(first.state_dict())))       # as a checkpoint would keep it
    assert_same_batches(seen, oracle[:len(seen)])
    for stop in (0, len(first) - 1, len(first) + 1):
        resumed = make()
        resumed.load_state_dict(states[stop])
        again = []
        while resumed.epoch < 3:
            again += list(resumed)
        assert_same_batches(again, oracle[stop + 1:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_continues_with_the_next_batch_when_the_loop_was_left(shards, num_workers):
    reader = ShardReader(shards, "train")
    oracle = list(TrainLoader(reader, 5, num_frames=2))
    loader = TrainLoader(reader, 5, num_frames=2, num_workers=num_workers)
    seen = []
    for batch in loader:
        seen.append(batch)
        if len(seen) == 2:
            break
    assert loader.state_dict()["batch"] == 2
    assert_same_batches([*seen, *loader], oracle)


def test_train_loader_leaves_torchs_global_generator_alone_when_workers_start(shards):
    torch.manual_seed(1)
    oracle = torch.rand(3)
    torch.manual_seed(1)
    list(TrainLoader(ShardReader(shards, "train"), 15, num_frames=1, num_workers=1))
    assert torch.equal(torch.rand(3), oracle)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_reuses_memory_only_when_no_view_of_it_is_left(shards, num_workers):
    loader = TrainLoader(ShardReader(shards, "train"), 3, num_frames=2, num_workers=num_workers)
    places, kept = set(), []
    for _ in range(3):
        for batch in loader:
            places.add(batch.frames_BTHXC.data_ptr())
    assert len(places) <= 4                 # two ahead, one in use, and the one before it
    for _ in range(2):
        for batch in loader:
            kept.append((batch.rows[1], batch.frames_BTHXC[1]))     # a view of a part
    for row, frames_THXC in kept:
        assert (clip_and_frame(frames_THXC)[0] == row).all()


def test_train_loader_gives_the_same_batches_when_workers_are_not_forked(shards, monkeypatch):
    reader = ShardReader(shards, "train")
    oracle = list(TrainLoader(reader, 8, num_frames=2))
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")     # no memory to share by inheritance
    assert_same_batches(list(TrainLoader(reader, 8, num_frames=2, num_workers=1)), oracle)


def test_train_loader_pads_and_masks_when_a_clip_has_fewer_frames(tmp_path):
    reader = ShardReader(make_shards(tmp_path, list("abcd"), num_frames=[2, 4, 6, 1]), "train")
    batch = next(iter(TrainLoader(reader, 4, num_frames=4)))
    for place, row in enumerate(batch.rows):
        stored = min([2, 4, 6, 1][row], 4)
        assert batch.frame_mask_BT[place].tolist() == [True] * stored + [False] * (4 - stored)
        assert (batch.frames_BTHXC[place, stored:] == 0).all()
        assert (clip_and_frame(batch.frames_BTHXC[place, :stored])[0] == row).all()


def test_train_loader_gives_one_smaller_batch_when_the_set_is_smaller(tmp_path):
    reader = ShardReader(make_shards(tmp_path, list("abcaa")), "train")
    with pytest.warns(UserWarning, match="split train: need 128 different videos for a batch, got 3. Batches hold 3."):
        loader = TrainLoader(reader, 128, num_frames=1)
    assert (loader.batch_size, len(loader)) == (3, 1)
    with pytest.warns(UserWarning, match="Batches hold 2."):
        assert [len(batch.rows) for batch in TrainLoader(reader, 128, num_frames=1, world_size=2)] == [1, 1]


def test_train_loader_groups_marginal_clips_for_one_epoch_when_asked_to(shards):
    reader = ShardReader(shards, "train")
    angles_N = np.arange(len(reader)) % 5 * 2 * np.pi / 5           # five kinds of clips
    embeddings_ND = np.stack([np.cos(angles_N), np.sin(angles_N)], 1)

    def of_one_kind(batch):
        kinds = [row % 5 for row in batch.rows]
        return sum(kinds.count(kind) for kind in set(kinds) if kinds.count(kind) > 1)

    loader = TrainLoader(reader, 5, num_frames=2)
    plain = [of_one_kind(batch) for batch in loader]
    loader.group_marginal_clips(embeddings_ND, 5)
    grouped = list(loader)
    assert sum(map(of_one_kind, grouped)) >= sum(plain) + 6
    again = TrainLoader(reader, 5, num_frames=2)
    again.epoch = 2
    assert_same_batches(list(loader), list(again))      # the epoch after it is a plain one
    resumed, stopped = (TrainLoader(reader, 5, num_frames=2) for _ in range(2))
    stopped.epoch = 1
    stopped.group_marginal_clips(embeddings_ND, 5)
    first = next(iter(stopped))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert_same_batches([first, *resumed], grouped)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_train_loader_raises_one_line_when_a_shard_breaks_while_it_runs(fresh, num_workers):
    loader = TrainLoader(ShardReader(fresh, "train"), 3, num_frames=2, num_workers=num_workers)
    (fresh / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar: need the shard") as caught:
        list(loader)
    message = str(caught.value)
    del caught          # it holds the frame that holds the loader, whose workers would be stopped seconds later
    assert "\n" not in message


# wrong use

def test_train_loader_refuses_when_a_clip_has_no_caption(tmp_path):
    reader = ShardReader(make_shards(tmp_path, list("ab"), num_captions=0), "train")
    with pytest.raises(DataError, match=r"clip v0000 \(videos/a.mp4\): need a caption to train with, got none"):
        TrainLoader(reader, 2, num_frames=1)


def test_train_loader_refuses_when_a_batch_cannot_be_split_over_the_ranks(shards):
    with pytest.raises(ConfigError, match=r"train.batch_size: need a multiple of the 3 ranks, got 8\. Try 9\."):
        TrainLoader(ShardReader(shards, "train"), 8, num_frames=1, world_size=3)


def test_train_loader_refuses_when_there_are_fewer_videos_than_ranks(tmp_path):
    reader = ShardReader(make_shards(tmp_path, list("ab")), "train")
    with pytest.raises(DataError, match=r"need at least as many videos as ranks \(4\), got 2"):
        TrainLoader(reader, 4, num_frames=1, world_size=4)


@pytest.mark.parametrize(("key", "change"), [("seed", {"seed": 1}), ("batch_size", {"batch_size": 6}),
                                             ("num_frames", {"num_frames": 3}), ("captions", {"num_captions": 2})])
def test_train_loader_refuses_a_state_when_it_is_another_loaders(shards, key, change):
    reader, settings_ = ShardReader(shards, "train"), {"batch_size": 5, "num_frames": 2}
    state = TrainLoader(reader, **settings_).state_dict()
    with pytest.raises(ConfigError, match=f"loader state: need {key}="):
        TrainLoader(reader, **{**settings_, **change}).load_state_dict(state)


def test_train_loader_refuses_a_state_when_an_earlier_version_made_it(shards):
    loader = TrainLoader(ShardReader(shards, "train"), 5, num_frames=2)
    state = loader.state_dict()
    state["together"] = state.pop("clip_order")
    with pytest.raises(ConfigError, match=r"loader state: need one of this version, got .* Remove the checkpoint"):
        loader.load_state_dict(state)


def test_train_loader_refuses_a_state_when_the_clips_changed(shards, segments, tmp_path):
    state = TrainLoader(ShardReader(shards, "train"), 2, num_frames=2).state_dict()
    other = make_shards(tmp_path, [f"a{clip}" for clip in range(29)])
    with pytest.raises(ConfigError, match="loader state: need clips_sha256="):
        TrainLoader(ShardReader(other, "train"), 2, num_frames=2).load_state_dict(state)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(1, 3), st.integers(0, 3))
def test_train_loader_resumes_anywhere_when_ranks_change(segments, stop, world_size, seed):
    reader = ShardReader(segments, "train")
    loader = TrainLoader(reader, 6, num_frames=1, seed=seed)
    stream = (batch for _ in range(4) for batch in loader)
    for _ in range(stop):
        next(stream)
    state = loader.state_dict()
    rest = [batch.rows for batch in stream]
    ranks = [TrainLoader(reader, 6, num_frames=1, seed=seed, rank=rank, world_size=world_size)
             for rank in range(world_size)]
    parts = []
    for rank in ranks:
        rank.load_state_dict(state)
        parts.append([])
        while rank.epoch < 4:
            parts[-1] += [batch.rows for batch in rank]
    assert [joined(rows) for rows in zip(*parts, strict=True)] == rest
