"""Which frames are picked, and which clips share a batch."""


import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hcmi.shards import pick_frames
from hcmi.shards.sampler import _same_meaning_as, marginal_order, plan_epoch, spread_frames
from hcmi.train.loss import same_meaning


def test_pick_frames_takes_the_middle_of_equal_segments_when_evaluating():
    assert pick_frames(24, 12) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    assert pick_frames(9, 3) == [1, 4, 7]
    assert pick_frames(5, 2) == [1, 3]          # segments [0, 2.5) and [2.5, 5): middles 1.25 and 3.75
    assert pick_frames(24, 1) == [12]


def test_pick_frames_takes_every_frame_once_when_there_are_no_more():
    assert pick_frames(3, 3) == [0, 1, 2]
    assert pick_frames(2, 5) == [0, 1]
    assert spread_frames(np.array([2]), np.random.default_rng(0).random((1, 5))).tolist() == [[0, 1, -1, -1, -1]]


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**32))
def test_spread_frames_gives_one_of_each_segment_wherever_it_is_drawn(num_stored, num_frames, seed):
    drawn_BT = np.random.default_rng(seed).random((1, num_frames))
    picks = [pick for pick in spread_frames(np.array([num_stored]), drawn_BT)[0].tolist() if pick >= 0]
    assert len(picks) == min(num_stored, num_frames)
    assert picks == sorted(picks)
    for segment, pick in enumerate(picks):      # frame p covers [p, p + 1), which must meet the segment
        assert pick + 1 > segment * num_stored / len(picks) - 1e-9
        assert pick < (segment + 1) * num_stored / len(picks) + 1e-9
    assert picks[-1] < num_stored


def test_spread_frames_gives_all_frames_equally_often_when_segments_end_within_a_frame():
    drawn_BT = np.random.default_rng(0).random((20_000, 2))
    counts = np.bincount(spread_frames(np.full(20_000, 5), drawn_BT).ravel(), minlength=5)
    np.testing.assert_allclose(counts / 20_000, 0.4, atol=0.015)        # 4.3 standard deviations


# which clips share a batch

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
                                                                                       keep_neighbours):
    videos = np.array(videos)
    batch_size = min(batch_size, len(set(videos.tolist())))
    batches = plan_epoch(np.random.default_rng(seed).permutation(len(videos)), videos, batch_size, keep_neighbours)
    assert batches.shape == (most_batches(videos, batch_size), batch_size)
    assert len(set(batches.ravel().tolist())) == batches.size
    for batch in batches:
        assert len(set(videos[batch].tolist())) == batch_size


def test_plan_epoch_keeps_neighbours_in_a_batch_when_asked_to():
    order = np.array([4, 0, 3, 1, 2, 5, 6])
    assert plan_epoch(order, np.arange(7), 3, keep_neighbours=True).tolist() == [[4, 0, 3], [1, 2, 5]]
    videos = np.array([0, 1, 2, 3, 4, 5, 5])        # clips 5 and 6 are of one video, dealt to two batches first
    order = np.array([4, 0, 3, 5, 6, 1, 2])
    assert plan_epoch(order, videos, 3, keep_neighbours=True).tolist() == [[4, 0, 5], [3, 6, 1]]


def test_marginal_order_groups_what_is_near_when_worked_by_hand():
    angles_N = np.radians([0, 90, 2, 91, 180, 4, 93])
    embeddings_ND = np.stack([np.cos(angles_N), np.sin(angles_N)], 1)
    embeddings_ND[4] = 0                                # never seen by the model: a group by itself
    for seed in range(5):
        order = marginal_order(embeddings_ND, 3, np.random.default_rng(seed)).tolist()
        alone = order.index(4)
        groups = order[:alone] + order[alone + 1:]
        assert {frozenset(groups[:3]), frozenset(groups[3:])} == {frozenset({0, 2, 5}), frozenset({1, 3, 6})}


def test_marginal_order_keeps_apart_clips_that_denoising_would_take_for_the_same():
    """Eight near clips in four pairs with captions of equal meaning; the views of clip 7 are not known."""
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


def test_plan_epoch_puts_any_two_videos_together_equally_often_when_order_is_random():
    together, draws = np.zeros((8, 8)), 4000
    for seed in range(draws):
        for batch in plan_epoch(np.random.default_rng(seed).permutation(8), np.arange(8), 4):
            together[np.ix_(batch, batch)] += 1
    np.testing.assert_allclose(together[~np.eye(8, dtype=bool)] / draws, 3 / 7, atol=0.035)
