"""Which clips share a batch, and which of their captions and frames are taken: pure functions of the seed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Names of the independent random streams; they are first in the seed because NumPy pads short seeds with zeros.
_ORDER, _PICKS, _CAPTIONS, _GROUPS = 1, 2, 3, 4
NEIGHBOURS_TRIED = 16       # times the size of a group: most of a clip's nearest may be taken already


@dataclass(frozen=True)
class BatchPlan:
    """All that a batch depends on; what remains is decoding."""

    rows: np.ndarray                # clips [B]
    captions_NB: np.ndarray         # numbers of N captions of each clip
    frame_indices_BT: np.ndarray    # the stored frame for each place, -1 for padding


def pick_frames(num_stored: int, num_frames: int) -> list[int]:
    """Cut the stored frames into `num_frames` equal segments and take the middle one of each, ascending. When there
    are no more than `num_frames` frames, each of them once.

    Segments need not begin at whole frames. When a segment has an even number of frames, the later one of the two in
    the middle is taken.

    Source: one frame of each segment as in TSN, which takes the middle one for evaluation.
    """
    return [int(frame) for frame in middle_frames(np.array([num_stored]), num_frames)[0] if frame >= 0]


def middle_frames(num_stored_B: np.ndarray, num_frames: int) -> np.ndarray:
    """`pick_frames` for many clips, int [B,T]; -1 where a clip has no frame left."""
    return spread_frames(num_stored_B, np.full((len(num_stored_B), num_frames), 0.5))


def spread_frames(num_stored_B: np.ndarray, uniform_BT: np.ndarray) -> np.ndarray:
    """The frame of each segment of `pick_frames` at a place in [0, 1) of it, int [B,T]; -1 where a clip has no frame
    left. Over many random places every frame is taken equally often.
    """
    num_frames = uniform_BT.shape[-1]
    segments_B1 = np.minimum(num_stored_B, num_frames)[:, None]
    segment_T = np.arange(num_frames)
    frames_BT = ((segment_T + uniform_BT) * num_stored_B[:, None] / segments_B1).astype(np.int64)
    # rounding can carry (T - 1) + 0.999... to T
    frames_BT = np.minimum(frames_BT, num_stored_B[:, None] - 1)
    return np.where(segment_T < segments_B1, frames_BT, -1)


def plan_epoch(clip_order: np.ndarray, videos: np.ndarray, batch_size: int, keep_neighbours: bool = False
               ) -> np.ndarray:
    """Deal the clips, in `clip_order`, into the most full batches that never hold a video twice.

    `videos[clip]` is the video that a clip belongs to. Clips of one video go to consecutive batches. A clip is in at
    most one batch. Clips are left out only where they cannot be placed: of a video with more clips than there are
    batches those that come last in `clip_order`, and then the last few that fill no batch. With `keep_neighbours`,
    clips next to each other in `clip_order` share a batch, unless their video has several clips.

    Returns: clips, int [batches, batch_size]; `batch_size` may be as large as the number of videos, not larger.
    """
    clips_of_video = np.bincount(videos[clip_order])
    num_videos = np.count_nonzero(clips_of_video)
    assert 0 < batch_size <= num_videos, f"batches of {batch_size} from {num_videos} videos"
    num_batches = _most_batches(clips_of_video, batch_size)
    _, first_places, video_of_place = np.unique(videos[clip_order], return_index=True, return_inverse=True)
    video_place = first_places[video_of_place]      # for each place in the order, the first one with the same video
    kept = np.flatnonzero(_rank_within(video_place) < num_batches)[:num_batches * batch_size]
    clips = clip_order[kept[np.argsort(video_place[kept], kind="stable")]]      # clips of one video side by side
    if not keep_neighbours:
        return clips.reshape(batch_size, num_batches).T
    # clips whose video has several are dealt out first; the others fill the batches in order
    shares_video = clips_of_video[videos[clips]] > 1
    batch_of_clip = np.empty(len(clips), np.int64)
    batch_of_clip[shares_video] = np.arange(shares_video.sum()) % num_batches
    taken = np.bincount(batch_of_clip[shares_video], minlength=num_batches)
    batch_of_clip[~shares_video] = np.repeat(np.arange(num_batches), batch_size - taken)
    return clips[np.argsort(batch_of_clip, kind="stable")].reshape(num_batches, batch_size)


def _most_batches(clips_of_video: np.ndarray, batch_size: int) -> int:
    """How many full batches there can be: a video has at most one clip in each."""
    num_batches = int(clips_of_video.sum()) // batch_size
    while (possible := int(np.minimum(clips_of_video, num_batches).sum()) // batch_size) < num_batches:
        num_batches = possible
    return num_batches


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """For each place the number of earlier places with the same value."""
    by_group = np.argsort(groups, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(groups[by_group])) + 1]
    ranks = np.empty(len(groups), np.int64)
    ranks[by_group] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return ranks


def marginal_order(embeddings_ND: np.ndarray, size: int, generator: np.random.Generator,
                   views_2ND: np.ndarray | None = None) -> np.ndarray:
    """A random order of all clips in which clips that are hard to tell apart are next to each other, int [N].

    A group is a clip drawn at random and the up to `size` - 1 nearest clips that are still free. Groups are drawn until
    no clip is left and follow each other in that order. Vectors have length 1; a clip with a zero vector is a group by
    itself. With `views_2ND`, no two clips of a group are ones that label denoising would take for the same, in either
    direction.
    Source: ours, for marginal sample enhancement: a random batch holds few marginal samples, and
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
                near = near[~_same_meaning_as(group[-1], near, views_2ND)]
            group += near[:1].tolist()
            near = near[1:]
        free[group] = False
        order += group
    return np.array(order)


def _same_meaning_as(clip: int, others: np.ndarray, views_2ND: np.ndarray) -> np.ndarray:
    """The rule of `hcmi.train.loss.same_meaning` in either direction, for one clip and some others, bool [others].

    False for clips without views.
    """
    cross = (views_2ND[0, others] + views_2ND[1, others]) @ (views_2ND[0, clip] + views_2ND[1, clip]) / 4
    own = np.minimum((views_2ND[0, others] * views_2ND[1, others]).sum(1), views_2ND[0, clip] @ views_2ND[1, clip])
    return (cross >= own - 1e-6) & views_2ND[0, others].any(1) & views_2ND[0, clip].any()


def _nearest(embeddings_ND: np.ndarray, count: int, rows: int = 1024) -> np.ndarray:
    """The `count` rows nearest to each row, nearest first, the row itself among them; in bounded memory."""
    found = [np.empty((0, count), np.int64)]
    for start in range(0, len(embeddings_ND) if count else 0, rows):
        sims_RN = embeddings_ND[start:start + rows] @ embeddings_ND.T
        best_RK = np.argpartition(-sims_RN, count - 1, axis=1)[:, :count]
        by_score = np.argsort(-np.take_along_axis(sims_RN, best_RK, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(best_RK, by_score, 1))
    return np.concatenate(found) if count else np.empty((len(embeddings_ND), 0), np.int64)


@dataclass(frozen=True)
class TrainOrder:
    """The order of training. Its randomness is a pure function of (seed, epoch, batch number)."""

    videos: np.ndarray          # of each clip, the number of its video
    num_captions: np.ndarray    # of each clip
    num_stored: np.ndarray      # frames of each clip
    batch_size: int             # over all ranks
    num_frames: int
    captions_taken: int         # of each clip, each time
    seed: int

    @property
    def num_batches(self) -> int:
        """Of an epoch, the same for each."""
        return len(plan_epoch(np.arange(len(self.videos)), self.videos, self.batch_size))

    def marginal(self, epoch: int, embeddings_ND: np.ndarray, size: int, views_2ND: np.ndarray | None) -> np.ndarray:
        """A `clip_order` for `plans` in which clips that are hard to tell apart are next to each other."""
        return marginal_order(embeddings_ND, size, self._generator(_GROUPS, epoch), views_2ND)

    def plans(self, epoch: int, first: int, rank: int, world_size: int,
              clip_order: np.ndarray | None = None) -> Iterator[BatchPlan]:
        """This rank's part of the batches of an epoch, from batch number `first` on.

        With a `clip_order`, clips that are next to each other in it share a batch; without one the order is random.
        """
        generator = self._generator(_ORDER, epoch)
        order = generator.permutation(len(self.videos)) if clip_order is None else clip_order
        batches = plan_epoch(order, self.videos, self.batch_size, clip_order is not None)
        batches = batches[generator.permutation(len(batches))]     # else consecutive batches would share videos
        first_caption = self._generator(_CAPTIONS).integers(self.num_captions)
        numbers_N1 = (epoch * self.captions_taken + np.arange(self.captions_taken))[:, None]
        part = slice(self.batch_size * rank // world_size, self.batch_size * (rank + 1) // world_size)
        for number in range(first, len(batches)):
            # drawn for the global batch, then cut: the frames do not depend on the number of ranks
            draw_BT = self._generator(_PICKS, epoch, number).random((self.batch_size, self.num_frames))
            rows = batches[number, part]
            yield BatchPlan(rows, (first_caption[rows] + numbers_N1) % self.num_captions[rows],
                            spread_frames(self.num_stored[rows], draw_BT[part]))

    def _generator(self, stream: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([stream, self.seed % 2**32, *numbers])
