"""The loader against shards written here, frame by frame: the left half of frame f of clip c is grey level c, the right
half f, so that a wrong clip or a wrong frame is a wrong pixel."""

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hcmi.errors import ConfigError, DataError
from hcmi.shards import ShardReader, TrainLoader, eval_batches, pick_frames
from hcmi.shards.sampler import _same_meaning_as, marginal_order, plan_epoch
from hcmi.train.loss import same_meaning
from hcmi.types import Clip

SIZE = 16


def jpeg(clip: int, frame: int, size: int = SIZE) -> bytes:
    pixels = np.full((size, size, 3), clip, np.uint8)
    pixels[:, size // 2:] = frame
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def clip_and_frame(frames_HXC) -> tuple[np.ndarray, np.ndarray]:
    """Which clip and frame these pixels show [...]."""
    frames = np.asarray(frames_HXC)
    return frames[..., SIZE // 2, SIZE // 4, 0], frames[..., SIZE // 2, -SIZE // 4, 0]


def make_shards(folder, videos, num_frames=6, num_captions=2, split="train", per_shard=4):
    """Write `len(videos)` clips; `videos[clip]` names the video a clip comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = num_frames if isinstance(num_frames, list) else [num_frames] * len(videos)
    held = num_captions if isinstance(num_captions, list) else [num_captions] * len(videos)
    for number, start in enumerate(range(0, len(videos), per_shard)):
        with wds.TarWriter(str(folder / f"{split}-{number:06d}.tar"), mtime=0) as writer:
            for clip in range(start, min(start + per_shard, len(videos))):
                captions = [f"clip {clip} caption {caption}" for caption in range(held[clip])]
                writer.write({"__key__": f"v{clip:04d}", "json": json.dumps({
                    "video_id": f"v{clip:04d}", "captions": captions, "path": f"videos/{videos[clip]}.mp4",
                    "split": split, "start_s": 0.0, "end_s": 1.0, "duration_s": 1.0, "sha256": "s", "tags": {},
                    "times_s": [0.1 * f for f in range(stored[clip])], "decoder": "decord", "num_decodable": 9,
                    "width": 640, "height": 360}).encode(),
                    **{f"{f:02d}.jpg": jpeg(clip, f) for f in range(stored[clip])}})
    write_index(folder)
    return folder


def write_index(folder):
    rows = []
    for path in sorted(folder.glob("*.tar")):
        clips = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                clips.setdefault(key, {})[kind] = (member.offset_data, member.size)
        for key, members in clips.items():
            offsets, sizes = zip(*(members[kind] for kind in sorted(members) if kind != "json"), strict=True)
            rows.append({"split": path.name.rsplit("-", 1)[0], "shard": path.name, "video_id": key,
                         "json_offset": members["json"][0], "json_size": members["json"][1],
                         "frame_offsets": offsets, "frame_sizes": sizes})
    schema = pa.schema([("split", pa.string()), ("shard", pa.string()), ("video_id", pa.string()),
                        ("json_offset", pa.int64()), ("json_size", pa.int64()),
                        ("frame_offsets", pa.list_(pa.int64())), ("frame_sizes", pa.list_(pa.int32()))])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "index.parquet")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """30 clips of 30 videos, 6 frames, 2 captions."""
    return make_shards(tmp_path_factory.mktemp("shards"), [f"a{clip}" for clip in range(30)])


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """30 clips of 12 videos: 10 of one, 5 of another, 2 or 1 of the others."""
    videos = ["long"] * 10 + ["half"] * 5 + [f"a{clip // 2}" for clip in range(15)]
    return make_shards(tmp_path_factory.mktemp("segments"), videos)


def joined(lists):
    return list(chain.from_iterable(lists))


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.rows == b.rows
        assert a.video_ids == b.video_ids
        assert a.captions == b.captions
        assert torch.equal(a.frames_KBTHXC, b.frames_KBTHXC)
        assert torch.equal(a.frame_mask_BT, b.frame_mask_BT)


# which frames

def test_pick_frames_takes_the_middle_of_equal_segments_when_evaluating():
    assert pick_frames(24, 12) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    assert pick_frames(9, 3) == [1, 4, 7]
    assert pick_frames(5, 2) == [1, 3]          # segments [0, 2.5) and [2.5, 5): middles 1.25 and 3.75
    assert pick_frames(24, 1) == [12]


def test_pick_frames_takes_every_frame_once_when_there_are_no_more():
    assert pick_frames(3, 3) == [0, 1, 2]
    assert pick_frames(2, 5) == [0, 1]
    assert pick_frames(2, 5, np.random.default_rng(0)) == [0, 1]


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**32))
def test_pick_frames_draws_one_of_each_segment_when_training(num_stored, num_frames, seed):
    picks = pick_frames(num_stored, num_frames, np.random.default_rng(seed))
    assert len(picks) == min(num_stored, num_frames)
    assert picks == sorted(picks)
    for segment, pick in enumerate(picks):      # frame p covers [p, p + 1), which must meet the segment
        assert pick + 1 > segment * num_stored / len(picks) - 1e-9
        assert pick < (segment + 1) * num_stored / len(picks) + 1e-9
    assert picks[-1] < num_stored


def test_pick_frames_draws_all_frames_equally_often_when_segments_end_within_a_frame():
    generator = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([pick_frames(5, 2, generator) for _ in range(20_000)]), minlength=5)
    np.testing.assert_allclose(counts / 20_000, 0.4, atol=0.015)        # 4.3 standard deviations


# which clips together

def test_plan_epoch_deals_clips_in_order_when_each_is_a_video_of_its_own():
    batches = plan_epoch(np.array([4, 0, 3, 1, 2]), np.arange(5), 2)
    assert batches.tolist() == [[4, 3], [0, 1]]         # 4 to the first, 0 to the second, 3 to the first ...; 2 is left


def test_plan_epoch_keeps_clips_of_a_video_apart_when_a_video_has_several():
    videos = np.array([7, 7, 7, 8, 9, 9])
    batches = plan_epoch(np.array([3, 0, 4, 1, 2, 5]), videos, 2)
    # by first place in the order: video 8 (clip 3), 7 (clips 0 1 2), 9 (clips 4 5), dealt to three batches in turn
    assert batches.tolist() == [[3, 2], [0, 4], [1, 5]]


def test_plan_epoch_leaves_out_the_surplus_when_one_video_has_more_clips_than_batches():
    videos = np.array([0, 0, 0, 0, 0, 0, 1, 2])
    # 8 // 2 = 4 batches would need 4 + 1 + 1 = 6 clips for 3; 3 batches: 3 + 1 + 1 = 5 for 2; 2 batches: 2 + 1 + 1 = 4
    batches = plan_epoch(np.arange(8), videos, 2)
    assert batches.tolist() == [[0, 6], [1, 7]]


def most_batches(videos, batch_size):
    """Oracle: take the videos with most clips left, again and again."""
    left = np.bincount(videos)
    done = 0
    while np.count_nonzero(left) >= batch_size:
        left[np.argsort(-left)[:batch_size]] -= 1
        done += 1
    return done


@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(1, 12), st.integers(0, 2**32), st.booleans())
def test_plan_epoch_makes_the_most_full_batches_of_different_videos_when_videos_repeat(videos, batch_size, seed,
                                                                                       together):
    videos = np.array(videos)
    batch_size = min(batch_size, len(set(videos.tolist())))
    batches = plan_epoch(np.random.default_rng(seed).permutation(len(videos)), videos, batch_size, together)
    assert batches.shape == (most_batches(videos, batch_size), batch_size)
    assert len(set(batches.ravel().tolist())) == batches.size
    for batch in batches:
        assert len(set(videos[batch].tolist())) == batch_size


def test_plan_epoch_keeps_neighbours_in_a_batch_when_they_belong_together():
    order = np.array([4, 0, 3, 1, 2, 5, 6])
    assert plan_epoch(order, np.arange(7), 3, together=True).tolist() == [[4, 0, 3], [1, 2, 5]]
    videos = np.array([0, 1, 2, 3, 4, 5, 5])        # clips 5 and 6 are of one video, dealt to two batches first
    order = np.array([4, 0, 3, 5, 6, 1, 2])
    assert plan_epoch(order, videos, 3, together=True).tolist() == [[4, 0, 5], [3, 6, 1]]


def test_marginal_order_groups_what_is_near_when_worked_by_hand():
    angles_N = np.radians([0, 90, 2, 91, 180, 4, 93])
    embeddings_ND = np.stack([np.cos(angles_N), np.sin(angles_N)], 1)
    embeddings_ND[4] = 0                                # never seen by the model: stands alone
    for seed in range(5):
        order = marginal_order(embeddings_ND, 3, np.random.default_rng(seed)).tolist()
        alone = order.index(4)
        groups = order[:alone] + order[alone + 1:]
        assert {frozenset(groups[:3]), frozenset(groups[3:])} == {frozenset({0, 2, 5}), frozenset({1, 3, 6})}


def test_marginal_order_keeps_apart_what_denoising_takes_for_the_same():
    """Eight near clips in four pairs whose captions say the same; views of clip 7 are not known."""
    angles_N = np.radians(np.arange(8))
    embeddings_ND = np.stack([np.cos(angles_N), np.sin(angles_N)], 1)
    views_2ND = np.eye(5)[[[0, 0, 1, 1, 2, 2, 3, 3]] * 2]
    views_2ND[1] = views_2ND[1] * 0.8 + 0.6 * np.eye(5)[4]      # the two views agree to 0.8, as do those of a pair
    views_2ND[:, 7] = 0
    for seed in range(20):
        order = marginal_order(embeddings_ND, 4, np.random.default_rng(seed), views_2ND)
        assert sorted(order.tolist()) == list(range(8))
        pairs = [clip // 2 if clip < 6 else clip for clip in order[:4].tolist()]
        assert len(set(pairs)) == 4, order


def test_marginal_order_agrees_with_the_loss_when_it_takes_clips_for_the_same():
    generator = torch.Generator().manual_seed(0)
    base_ND = torch.randn(40, 6, generator=generator)[torch.randint(0, 12, (40,), generator=generator)]
    views = [torch.nn.functional.normalize(base_ND + 0.3 * torch.randn(40, 6, generator=generator), dim=1)
             for _ in range(2)]
    one_way_BB = same_meaning(*views).numpy()
    views_2ND, others = torch.stack(views).numpy(), np.arange(40)
    found_BB = np.stack([_same_meaning_as(clip, others, views_2ND) for clip in range(40)])
    np.fill_diagonal(found_BB, True)
    assert 0.05 < one_way_BB.mean() < 0.5
    assert (found_BB == (one_way_BB | one_way_BB.T)).all()


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32))
def test_marginal_order_takes_each_clip_once_whatever_the_vectors(num_clips, size, seed):
    generator = np.random.default_rng(seed)
    embeddings_ND = generator.standard_normal((num_clips, 4))
    order = marginal_order(embeddings_ND / np.linalg.norm(embeddings_ND, axis=1, keepdims=True), size, generator)
    assert sorted(order.tolist()) == list(range(num_clips))


def test_train_loader_gathers_marginal_clips_for_one_epoch_when_told_to(shards):
    reader = ShardReader(shards, "train")
    angles_N = np.arange(len(reader)) % 5 * 2 * np.pi / 5           # five kinds of clips
    embeddings_ND = np.stack([np.cos(angles_N), np.sin(angles_N)], 1)

    def of_one_kind(batch):
        kinds = [row % 5 for row in batch.rows]
        return sum(kinds.count(kind) for kind in set(kinds) if kinds.count(kind) > 1)

    loader = TrainLoader(reader, 5, num_frames=2)
    plain = [of_one_kind(batch) for batch in loader]
    loader.group_marginal_clips(embeddings_ND, 5)
    gathered = list(loader)
    assert sum(map(of_one_kind, gathered)) >= sum(plain) + 6
    again = TrainLoader(reader, 5, num_frames=2)
    again.epoch = 2
    assert_same_batches(list(loader), list(again))      # the epoch after it is any epoch again
    resumed, stopped = (TrainLoader(reader, 5, num_frames=2) for _ in range(2))
    stopped.epoch = 1
    stopped.group_marginal_clips(embeddings_ND, 5)
    first = next(iter(stopped))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert_same_batches([first, *resumed], gathered)


def test_plan_epoch_puts_any_two_videos_together_equally_often_when_order_is_random():
    together, draws = np.zeros((8, 8)), 4000
    for seed in range(draws):
        for batch in plan_epoch(np.random.default_rng(seed).permutation(8), np.arange(8), 4):
            together[np.ix_(batch, batch)] += 1
    np.testing.assert_allclose(together[~np.eye(8, dtype=bool)] / draws, 3 / 7, atol=0.035)


# reading

def test_reader_returns_the_pixels_webdataset_reads_when_frames_are_asked_for(shards):
    reader = ShardReader(shards, "train")
    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [clip.video_id for clip in reader.clips]
    for row, sample in enumerate(samples):
        assert reader.clips[row] == Clip.from_row(sample["json"])
        oracle = np.stack([sample[f"{frame:02d}.jpg"] for frame in (4, 0, 4)])
        np.testing.assert_array_equal(reader.frames(row, [4, 0, 4]), oracle)


def test_reader_works_the_same_when_pickled_or_used_from_threads(shards):
    reader = pickle.loads(pickle.dumps(ShardReader(shards, "train")))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: clip_and_frame(reader.frames(row, [row % 6])[0]), list(range(30)) * 10))
    assert [(int(clip), int(frame)) for clip, frame in answers] == [(row, row % 6) for row in range(30)] * 10


def test_reader_refuses_a_frame_when_it_is_not_stored(shards):
    with pytest.raises(IndexError, match="clip v0003: need a frame below 6, got 6"):
        ShardReader(shards, "train").frames(3, [0, 6])


# training

def test_train_loader_gives_the_frames_and_captions_it_names_when_iterated(shards):
    loader = TrainLoader(ShardReader(shards, "train"), batch_size=8, num_frames=3, views=2, seed=5)
    assert len(loader) == 3
    batches = list(loader)
    assert len(batches) == 3
    assert loader.epoch == 1
    for batch in batches:
        assert batch.frames_KBTHXC.shape == (2, 8, 3, SIZE, SIZE, 3)
        assert batch.frames_KBTHXC.dtype == torch.uint8
        assert batch.frame_mask_BT.all()
        assert batch.frame_mask_BT.dtype == torch.bool
        clips, frames = clip_and_frame(batch.frames_KBTHXC)
        assert (clips == np.array(batch.rows)[None, :, None]).all()
        assert (frames // 2 == [0, 1, 2]).all()         # 6 stored, 3 segments of two
        assert batch.video_ids == [f"v{row:04d}" for row in batch.rows]
        assert [caption[:-1] for caption in batch.captions[0]] == [f"clip {row} caption " for row in batch.rows]
    views = np.concatenate([clip_and_frame(batch.frames_KBTHXC)[1] for batch in batches], axis=1)
    assert 0.3 < (views[0] == views[1]).mean() < 0.7    # two of two, drawn independently: a half


def test_train_loader_never_repeats_a_video_in_a_batch_when_videos_have_segments(segments):
    loader = TrainLoader(ShardReader(segments, "train"), batch_size=6, num_frames=2)
    paths = [clip.path for clip in loader.reader.clips]
    for _ in range(5):
        for batch in loader:
            assert len({paths[row] for row in batch.rows}) == 6
    assert loader.epoch == 5


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


def test_train_loader_shuffles_anew_when_the_epoch_or_the_seed_changes(shards):
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
    whole = list(TrainLoader(reader, 6, num_frames=2, views=2, seed=3))
    parts = [list(TrainLoader(reader, 6, num_frames=2, views=2, seed=3, rank=rank, world_size=3,
                              num_workers=num_workers)) for rank in range(3)]
    for number, batch in enumerate(whole):
        ranks = [part[number] for part in parts]
        assert [len(rank.rows) for rank in ranks] == [2, 2, 2]
        assert joined(rank.rows for rank in ranks) == batch.rows
        assert joined(rank.captions[0] for rank in ranks) == batch.captions[0]
        assert torch.equal(torch.cat([rank.frames_KBTHXC for rank in ranks], dim=1), batch.frames_KBTHXC)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_sees_the_same_batches_when_resumed_in_mid_epoch(segments, num_workers):
    reader = ShardReader(segments, "train")

    def make():
        return TrainLoader(reader, 5, num_frames=3, views=2, seed=9, num_workers=num_workers)
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
def test_train_loader_goes_on_with_the_next_batch_when_the_loop_was_left(shards, num_workers):
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
def test_train_loader_uses_memory_again_only_when_nothing_looks_at_it_any_more(shards, num_workers):
    loader = TrainLoader(ShardReader(shards, "train"), 3, num_frames=2, views=2, num_workers=num_workers)
    places, kept = set(), []
    for _ in range(3):
        for batch in loader:
            places.add(batch.frames_KBTHXC.data_ptr())
    assert len(places) <= 4                 # two ahead, one in use, one just left
    for _ in range(2):
        for batch in loader:
            kept.append((batch.rows[1], batch.frames_KBTHXC[1, 1]))     # a view of a part
    for row, frames_THXC in kept:
        assert (clip_and_frame(frames_THXC)[0] == row).all()


def test_train_loader_gives_the_same_batches_when_workers_are_not_forked(shards, monkeypatch):
    reader = ShardReader(shards, "train")
    oracle = list(TrainLoader(reader, 8, num_frames=2, views=2))
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")     # no memory to share by inheritance
    assert_same_batches(list(TrainLoader(reader, 8, num_frames=2, views=2, num_workers=1)), oracle)


def test_train_loader_pads_and_masks_when_a_clip_has_fewer_frames(tmp_path):
    reader = ShardReader(make_shards(tmp_path, list("abcd"), num_frames=[2, 4, 6, 1]), "train")
    batch = next(iter(TrainLoader(reader, 4, num_frames=4, views=2)))
    for place, row in enumerate(batch.rows):
        stored = min([2, 4, 6, 1][row], 4)
        assert batch.frame_mask_BT[place].tolist() == [True] * stored + [False] * (4 - stored)
        assert (batch.frames_KBTHXC[:, place, stored:] == 0).all()
        assert (clip_and_frame(batch.frames_KBTHXC[:, place, :stored])[0] == row).all()


def test_train_loader_gives_one_smaller_batch_when_the_set_is_smaller(tmp_path):
    reader = ShardReader(make_shards(tmp_path, list("abcaa")), "train")
    with pytest.warns(UserWarning, match="split train: need 128 different videos for a batch, got 3. Batches hold 3."):
        loader = TrainLoader(reader, 128, num_frames=1)
    assert (loader.batch_size, len(loader)) == (3, 1)
    with pytest.warns(UserWarning, match="Batches hold 2."):
        assert [len(batch.rows) for batch in TrainLoader(reader, 128, num_frames=1, world_size=2)] == [1, 1]


# evaluating

@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_eval_batches_give_each_clip_once_in_order_when_split_over_ranks(shards, world_size, num_workers):
    reader = ShardReader(shards, "train")
    batches = [batch for rank in range(world_size)
               for batch in eval_batches(reader, 4, 3, rank, world_size, num_workers)]
    assert joined(batch.rows for batch in batches) == list(range(30))
    assert joined(batch.video_ids for batch in batches) == [clip.video_id for clip in reader.clips]
    clips, frames = clip_and_frame(torch.cat([batch.frames_BTHXC for batch in batches]))
    assert (clips == np.arange(30)[:, None]).all()
    assert (frames == [1, 3, 5]).all()
    assert all(len(batch.rows) <= 4 and batch.frame_mask_BT.all() for batch in batches)


def test_eval_batches_give_nothing_to_a_rank_when_there_are_more_ranks_than_clips(tmp_path):
    reader = ShardReader(make_shards(tmp_path, ["a", "b"], split="test"), "test")
    parts = [list(eval_batches(reader, 2, 1, rank, 3)) for rank in range(3)]
    assert [sum(len(batch.rows) for batch in part) for part in parts] == [0, 1, 1]


# broken shards

@pytest.fixture
def fresh(tmp_path):
    return make_shards(tmp_path / "shards", list("abcdef"))


def assert_refused(folder, message, split="train"):
    def read_all():
        reader = ShardReader(folder, split)
        return [reader.frames(row, range(reader.num_stored[row])) for row in range(len(reader))]
    with pytest.raises(DataError, match=message) as caught:
        read_all()
    assert "\n" not in str(caught.value)


def test_assert_refused_fails_when_shards_are_sound(fresh):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_refused(fresh, "any")


def test_reader_names_the_splits_when_the_one_asked_for_is_unknown(fresh):
    assert_refused(fresh, r"index.parquet: need clips of the split 'val', got splits: train\. Name another", "val")


def test_reader_says_so_when_every_clip_was_skipped(fresh):
    table = pq.read_table(fresh / "index.parquet")
    pq.write_table(table.slice(0, 0), fresh / "index.parquet")
    assert_refused(fresh, "got splits: none: every clip was skipped")


def test_reader_says_what_to_run_when_there_are_no_shards(tmp_path):
    assert_refused(tmp_path, r"index.parquet: need the index of the shards, got no file\. Run `hcmi shards` first\.")


@pytest.mark.parametrize("content", [b"", b"no parquet at all"])
def test_reader_refuses_an_index_when_it_is_not_one(fresh, content):
    (fresh / "index.parquet").write_bytes(content)
    assert_refused(fresh, "need an index as `hcmi shards` writes it, got: ")


def test_reader_refuses_an_index_when_a_column_is_missing(fresh):
    pq.write_table(pq.read_table(fresh / "index.parquet").drop(["frame_sizes"]), fresh / "index.parquet")
    assert_refused(fresh, "need an index as `hcmi shards` writes it, got: .*frame_sizes")


def test_reader_names_the_shard_when_it_is_missing(fresh):
    (fresh / "train-000001.tar").unlink()
    assert_refused(fresh, r"train-000001.tar: need the shard that index.parquet names, got: No such file")


def test_reader_names_the_shard_when_only_half_was_copied(fresh):
    shard = fresh / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    assert_refused(fresh, r"train-000000.tar: need at least \d+ bytes, got 20000: it was cut short\. Run")


def test_reader_refuses_when_a_shard_is_another_runs(fresh, tmp_path):
    other = make_shards(tmp_path / "other", list("abcdef"), num_frames=9)
    (fresh / "train-000000.tar").write_bytes((other / "train-000000.tar").read_bytes())
    assert_refused(fresh, "train-000000.tar: need .* in|where index.parquet")


def test_reader_refuses_when_the_index_names_another_clip(fresh):
    table = pq.read_table(fresh / "index.parquet").to_pylist()
    table[0]["video_id"], table[1]["video_id"] = table[1]["video_id"], table[0]["video_id"]
    pq.write_table(pa.Table.from_pylist(table), fresh / "index.parquet")
    assert_refused(fresh, "need clip v0001 with 6 frames as in index.parquet, got clip v0000 with 6")


def test_reader_refuses_when_the_index_lists_sizes_for_other_frames(fresh):
    table = pq.read_table(fresh / "index.parquet").to_pylist()
    table[0]["frame_sizes"].pop()
    pq.write_table(pa.Table.from_pylist(table), fresh / "index.parquet")
    assert_refused(fresh, "need an offset and a size for each frame of each clip, got 36 and 35")


@pytest.mark.parametrize("frame", [0, 3])
def test_reader_names_clip_and_frame_when_a_jpeg_is_broken(fresh, frame):
    place = pq.read_table(fresh / "index.parquet").to_pylist()[0]
    shard = fresh / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[place["frame_offsets"][frame]:place["frame_offsets"][frame] + 100] = bytes(100)
    shard.write_bytes(data)
    assert_refused(fresh, f"train-000000.tar: need a .*JPEG as frame {frame} of clip v0000, got ")


def test_reader_names_clip_and_frame_when_a_frame_has_another_size(tmp_path):
    with wds.TarWriter(str(tmp_path / "train-000000.tar"), mtime=0) as writer:
        writer.write({"__key__": "v0", "json": json.dumps({
            "video_id": "v0", "captions": ["x"], "path": "p", "split": "train", "start_s": 0, "end_s": 1,
            "duration_s": 1, "sha256": "s", "tags": {}, "times_s": [0, 0.5], "decoder": "decord", "num_decodable": 2,
            "width": 640, "height": 360}).encode(), "00.jpg": jpeg(0, 0), "01.jpg": jpeg(0, 1, size=8)})
    write_index(tmp_path)
    assert_refused(tmp_path, "need a 16x16 JPEG as frame 1 of clip v0, got 8x8 pixels")


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
                                             ("num_frames", {"num_frames": 3}), ("views", {"views": 2})])
def test_train_loader_refuses_a_state_when_it_is_another_loaders(shards, key, change):
    reader, settings_ = ShardReader(shards, "train"), {"batch_size": 5, "num_frames": 2}
    state = TrainLoader(reader, **settings_).state_dict()
    with pytest.raises(ConfigError, match=f"loader state: need {key}="):
        TrainLoader(reader, **{**settings_, **change}).load_state_dict(state)


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
