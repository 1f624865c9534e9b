"""Which clips share a batch, which captions and which frames are taken: pure functions of the seed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Names of the independent random streams; they are first in the seed because NumPy pads short seeds with zeros.
_ORDER, _PICKS, _CAPTIONS, _GROUPS = 1, 2, 3, 4
NEIGHBOURS_TRIED = 16       # times the size of a group: most of a clip's nearest may be taken already


@dataclass(frozen=True)
class Plan:
    """All that a batch depends on, so that whoever has it only decodes."""

    rows: np.ndarray            # clips [B]
    captions_NB: np.ndarray     # numbers of N captions of each clip
    picks_KBT: np.ndarray       # number of the stored frame of each slot, -1 for padding


def pick_frames(num_stored: int, num_frames: int, generator: np.random.Generator | None = None) -> list[int]:
    """Cut the stored frames into `num_frames` equal segments; take the middle one of each, or with a generator a
    random one. Ascending; all the frames, once each, when there are no more than `num_frames`.

    Segments need not begin at whole frames, so over many draws every frame comes up equally often. With an even
    number of frames in a segment the later one of the two in the middle is taken.

    Source: method section 5 (segments and views); TSN's evaluation rule for the middle.
    """
    uniform_T = np.full(num_frames, 0.5) if generator is None else generator.random(num_frames)
    return [int(frame) for frame in spread_frames(np.array([num_stored]), uniform_T[None])[0] if frame >= 0]


def spread_frames(num_stored_B: np.ndarray, uniform_BT: np.ndarray) -> np.ndarray:
    """`pick_frames` for many clips [..., B, T], given numbers in [0, 1); -1 where a clip has no frame left."""
    num_frames = uniform_BT.shape[-1]
    segments_B1 = np.minimum(num_stored_B, num_frames)[:, None]
    segment_T = np.arange(num_frames)
    picks_BT = ((segment_T + uniform_BT) * num_stored_B[:, None] / segments_B1).astype(np.int64)
    # rounding can carry (T - 1) + 0.999... to T
    picks_BT = np.minimum(picks_BT, num_stored_B[:, None] - 1)
    return np.where(segment_T < segments_B1, picks_BT, -1)


def plan_epoch(order: np.ndarray, videos: np.ndarray, batch_size: int, together: bool = False) -> np.ndarray:
    """Deal the clips, taken in `order`, into as many full batches as there can be without a video twice in one.

    `videos[clip]` is the video a clip belongs to. Clips of one video are dealt to consecutive batches, so each clip
    is in at most one batch, and only what cannot be placed is left out: of a video with more clips than there are
    batches those that come last in `order`, and then the last few that fill no batch. With `together` clips that are
    next to each other in `order` share a batch, unless they are of a video with several clips.

    Returns: clips, int [batches, batch_size]; `batch_size` may be as large as the number of videos, not larger.
    """
    counts = np.bincount(videos[order])
    assert 0 < batch_size <= np.count_nonzero(counts), f"batches of {batch_size} from {np.count_nonzero(counts)} videos"
    num_batches = len(order) // batch_size
    while (possible := int(np.minimum(counts, num_batches).sum()) // batch_size) < num_batches:
        num_batches = possible
    # rank of each clip among its video's, and rank of its video, both by first place in `order`
    _, first, code = np.unique(videos[order], return_index=True, return_inverse=True)
    by_video = np.argsort(first[code], kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(code[by_video])) + 1]
    within = np.empty(len(order), np.int64)
    within[by_video] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    kept = np.flatnonzero(within < num_batches)[:num_batches * batch_size]
    dealt = order[kept[np.argsort(first[code[kept]], kind="stable")]]
    if not together:
        return dealt.reshape(batch_size, num_batches).T
    several = counts[videos[dealt]] > 1
    batch = np.empty(len(dealt), np.int64)
    batch[several] = np.arange(several.sum()) % num_batches
    batch[~several] = np.repeat(np.arange(num_batches), batch_size - np.bincount(batch[several], minlength=num_batches))
    return dealt[np.argsort(batch, kind="stable")].reshape(num_batches, batch_size)


def marginal_order(embeddings_ND: np.ndarray, size: int, generator: np.random.Generator,
                   views_2ND: np.ndarray | None = None) -> np.ndarray:
    """A random order of all clips in which clips that are hard to tell apart are next to each other, int [N].

    A clip drawn at random and the up to `size` - 1 clips nearest to it that are still free form a group, until none is
    left; groups follow one another as they were drawn. Unit vectors; a clip with a zero vector stands alone. With
    `views_2ND` no two clips of a group are ones that label denoising takes for the same, one way round or the other.
    Source: ours, for marginal sample enhancement (method section 6): a random batch holds few marginal samples, and
    pairs that denoising calls positive are never mined.
    """
    num_clips = len(embeddings_ND)
    near_NK = _nearest(np.asarray(embeddings_ND, np.float32), min(num_clips - 1, NEIGHBOURS_TRIED * size))
    free = np.ones(num_clips, bool)
    order: list[int] = []
    for clip in generator.permutation(num_clips):
        if not free[clip]:
            continue
        group, near = [clip], near_NK[clip] if embeddings_ND[clip].any() else near_NK[clip, :0]
        near = near[free[near] & (near != clip)]
        while len(group) < size and len(near):
            if views_2ND is not None:
                near = near[~_taken_for_same(group[-1], near, views_2ND)]
            group += near[:1].tolist()
            near = near[1:]
        free[group] = False
        order += group
    return np.array(order)


def _taken_for_same(clip: int, others: np.ndarray, views_2ND: np.ndarray) -> np.ndarray:
    """The rule of `hcmi.train.loss.same_meaning` for one clip and some others, either way round; false where a clip has no
    views yet."""
    cross = (views_2ND[0, others] + views_2ND[1, others]) @ (views_2ND[0, clip] + views_2ND[1, clip]) / 4
    own = np.minimum((views_2ND[0, others] * views_2ND[1, others]).sum(1), views_2ND[0, clip] @ views_2ND[1, clip])
    return (cross >= own - 1e-6) & views_2ND[0, others].any(1) & views_2ND[0, clip].any()


def _nearest(embeddings_ND: np.ndarray, count: int, rows: int = 1024) -> np.ndarray:
    """The `count` rows nearest to each row, nearest first, itself among them; in bounded memory."""
    found = [np.empty((0, count), np.int64)]
    for start in range(0, len(embeddings_ND) if count else 0, rows):
        sims_RN = embeddings_ND[start:start + rows] @ embeddings_ND.T
        best_RK = np.argpartition(-sims_RN, count - 1, axis=1)[:, :count]
        by_score = np.argsort(-np.take_along_axis(sims_RN, best_RK, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(best_RK, by_score, 1))
    return np.concatenate(found) if count else np.empty((len(embeddings_ND), 0), np.int64)


@dataclass(frozen=True)
class TrainOrder:
    """The order of training: all its randomness is a pure function of (seed, epoch, batch number)."""

    videos: np.ndarray          # of each clip, the number of its video
    num_captions: np.ndarray    # of each clip
    num_stored: np.ndarray      # frames of each clip
    batch_size: int             # over all ranks
    num_frames: int
    views: int
    captions_taken: int         # of each clip, each time
    seed: int

    @property
    def num_batches(self) -> int:
        """Of an epoch, the same for each."""
        return len(plan_epoch(np.arange(len(self.videos)), self.videos, self.batch_size))

    def marginal(self, epoch: int, embeddings_ND: np.ndarray, size: int, views_2ND: np.ndarray | None) -> np.ndarray:
        """An order for `plans` that brings clips together which are hard to tell apart."""
        return marginal_order(embeddings_ND, size, self._generator(_GROUPS, epoch), views_2ND)

    def plans(self, epoch: int, first: int, rank: int, world_size: int,
              together: np.ndarray | None = None) -> Iterator[Plan]:
        """This rank's part of the batches of an epoch, from batch number `first` on; clips next to each other in the
        order `together` share a batch."""
        generator = self._generator(_ORDER, epoch)
        order = generator.permutation(len(self.videos)) if together is None else together
        batches = plan_epoch(order, self.videos, self.batch_size, together is not None)
        batches = batches[generator.permutation(len(batches))]     # else neighbours would share videos
        first_caption = self._generator(_CAPTIONS).integers(self.num_captions)
        numbers_N1 = (epoch * self.captions_taken + np.arange(self.captions_taken))[:, None]
        part = slice(self.batch_size * rank // world_size, self.batch_size * (rank + 1) // world_size)
        for number in range(first, len(batches)):
            # drawn for the global batch, then cut: the picks do not depend on the number of ranks
            draw = self._generator(_PICKS, epoch, number).random((self.views, self.batch_size, self.num_frames))
            rows = batches[number, part]
            yield Plan(rows, (first_caption[rows] + numbers_N1) % self.num_captions[rows],
                       spread_frames(self.num_stored[rows], draw[:, part]))

    def _generator(self, stream: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([stream, self.seed % 2**32, *numbers])


def eval_plans(num_stored: np.ndarray, batch_size: int, num_frames: int, rank: int, world_size: int) -> Iterator[Plan]:
    """The rank's contiguous part of the clips, in order, the middle frame of each segment."""
    first, last = (len(num_stored) * part // world_size for part in (rank, rank + 1))
    for start in range(first, last, batch_size):
        rows = np.arange(start, min(start + batch_size, last))
        picks_BT = spread_frames(num_stored[rows], np.full((len(rows), num_frames), 0.5))
        yield Plan(rows, np.zeros_like(rows)[None], picks_BT[None])
