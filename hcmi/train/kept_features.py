"""Training on frozen towers: each stored frame and each caption passes the towers once, and its features are kept.

    model, (train_reader, val_reader) = keep_features(model, [train_reader, val_reader], "float32")

After that an epoch reads features instead of pixels. Random frames of a clip stay random, because the features of all
stored frames are kept. There is a file for the frames of each shard and one for its captions, so that a run which was
stopped continues, and new videos leave those of other shards as they are.
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hcmi.encode import EncodedSplit, captions_of, encode_split
from hcmi.errors import ModelError
from hcmi.model import HcmiModel, HeadOnFeatures, encode_texts, encode_videos, token_states, towers_hash
from hcmi.progress import track
from hcmi.ranks import ALONE, Ranks
from hcmi.runtime import count_cores
from hcmi.shards import ShardReader, frame_keys, middle_frames
from hcmi.train.feature_files import ask_for_room, features_folder, make_array, open_array
from hcmi.types import EvalBatch

FORMAT = 2              # raise it when the same weights, pixels and words are to give other features
FRAMES_AT_ONCE, TEXTS_AT_ONCE = 64, 64
FRAMES_TIMED = 8
VALIDATION_BATCH = 64


class FeatureReader(ShardReader):
    """The clips of a split with the towers' features in place of pixels: `frame_shape` are the bytes of one of them."""

    def __init__(self, reader: ShardReader, parts: Sequence[np.ndarray]):
        vars(self).update(vars(reader))     # the shards have been read and checked already
        self._parts = parts
        self._first_frames = np.cumsum([0, *(len(part) for part in parts)])
        self.frame_shape = (2 * parts[0].shape[1],)

    def read_into(self, row: int, which: Sequence[int], slots_TN: np.ndarray) -> None:
        """The features of the stored frames `which` of a clip, as bytes; -1 leaves a slot 0."""
        slots_TN[:] = 0
        frames_T = np.asarray(which)
        first = self.index.first_frames[row]
        part = int(np.searchsorted(self._first_frames, first, side="right")) - 1
        found_TD = self._parts[part][frames_T[frames_T >= 0] + (first - self._first_frames[part])]
        slots_TN[frames_T >= 0] = found_TD.view(np.uint8)

    def batches(self, batch_size: int, num_frames: int) -> Iterator[EvalBatch]:
        """As `eval_batches`: each clip once, in order, the middle frame of each segment."""
        picks_VT = middle_frames(self.num_stored, num_frames)
        for start in range(0, len(self), batch_size):
            picks_BT = picks_VT[start:start + batch_size]
            features_BTN = np.empty((*picks_BT.shape, *self.frame_shape), np.uint8)
            rows = list(range(start, start + len(picks_BT)))
            for row, picks_T, slots_TN in zip(rows, picks_BT, features_BTN, strict=True):
                self.read_into(row, picks_T.tolist(), slots_TN)
            yield EvalBatch(rows, torch.from_numpy(features_BTN), torch.from_numpy(picks_BT >= 0))


def encode_clips(model: HcmiModel, reader: ShardReader) -> EncodedSplit:
    """`encode_split`, from kept features where there are some."""
    if not isinstance(reader, FeatureReader):
        return encode_split(model, reader, VALIDATION_BATCH)
    videos = encode_videos(model, reader.batches(VALIDATION_BATCH, model.config.num_frames), len(reader))
    return EncodedSplit.of(reader, videos, encode_texts(model, captions_of(reader)))


def keep_features(model: HcmiModel, readers: Sequence[ShardReader], precision: str, ranks: Ranks = ALONE
                  ) -> tuple[HeadOnFeatures, list[FeatureReader]]:
    """The model's head, and the readers with features in place of pixels; what is not on disk yet is computed.

    `precision` is the one that the towers compute in. The head is that of `model`, which is as before.
    Raises: MachineError when features cannot be written, which is checked before the work; DataError for a broken
    shard; ModelError for features that are not finite.
    """
    if ranks.size > 1:      # the other ranks of the machine find the first one's files
        ranks.from_first(lambda: len(keep_features(model, readers, precision)))
    shards = _shards(model, readers, precision)
    missing = _missing(shards)
    ask_for_room(2 * model.head.dim * (missing.frames + missing.states))
    training = model.training
    model.eval()
    encode = partial(_encoded, model, precision)
    with track(description="features of towers", total=missing.clips, unit="clip", shown=missing.clips > 0) as bar:
        frames = [make_array(path, (rows, shard.dim), partial(shard.encode_frames, encode, bar))
                  for shard in shards for path, rows in shard.files()[:1]]
    texts = [make_array(path, (rows, shard.dim), partial(shard.encode_texts, encode))
             for shard in shards for path, rows in shard.files()[1:]]
    model.train(training)
    captions: dict[str, tuple[int, int]] = {}
    first = 0
    for shard in shards:
        for caption, (ids_W, row) in shard.captions.items():
            captions.setdefault(caption, (first + row, len(ids_W)))
        first += shard.num_states
    of_reader = iter(zip(shards, frames, strict=True))
    kept = [FeatureReader(reader, [array for _, array in islice(of_reader, len(set(reader.index.shard_names)))])
            for reader in readers]
    return HeadOnFeatures(model, captions, texts), kept


@dataclass(frozen=True, eq=False)
class _Shard:
    """The clips of one shard, and the names of the files that hold their features."""

    reader: ShardReader
    rows: list[int]
    dim: int
    pad_id: int
    frames_key: str
    texts_key: str
    captions: dict[str, tuple[list[int], int]]      # caption -> its token ids, and the row of the first one's state

    @property
    def num_states(self) -> int:
        return sum(len(ids_W) + 1 for ids_W, _ in self.captions.values())

    def files(self) -> list[tuple[Path, int]]:
        """File and number of rows, of the frames and of the captions."""
        num_frames = int(self.reader.num_stored[self.rows].sum())
        return [(features_folder() / f"{key}.npy", rows)
                for key, rows in ((self.frames_key, num_frames), (self.texts_key, self.num_states))]

    def encode_frames(self, encode, bar) -> Iterator[np.ndarray]:
        """Features of all stored frames, clip by clip, in parts [N, D]."""
        waiting: list[np.ndarray] = []
        for frames_THXC in _decoded_ahead(self.reader, self.rows):
            waiting.append(frames_THXC)
            bar.update(1)
            if sum(map(len, waiting)) >= FRAMES_AT_ONCE:
                yield encode(_frame_features, torch.from_numpy(np.concatenate(waiting)))
                waiting = []
        if waiting:
            yield encode(_frame_features, torch.from_numpy(np.concatenate(waiting)))

    def encode_texts(self, encode) -> Iterator[np.ndarray]:
        """The states of each caption's tokens, and its anchor after them, in parts [N, D]."""
        waiting = iter(self.captions.values())
        while some := [ids_W for ids_W, _ in islice(waiting, TEXTS_AT_ONCE)]:
            # the text tower of SigLIP attends to padding too: another id there gives other states
            ids_BW = pad_sequence([torch.tensor(ids_W) for ids_W in some], True, self.pad_id)
            lengths_B = torch.tensor([len(ids_W) for ids_W in some])
            yield encode(_states_and_anchors, ids_BW, torch.arange(ids_BW.shape[1]) < lengths_B[:, None])


def _frame_features(model: HcmiModel, frames_NHXC: Tensor) -> Tensor:
    return model.frame_features(model.processor.frames(frames_NHXC)[None])[0]


def _states_and_anchors(model: HcmiModel, ids_BW: Tensor, mask_BW: Tensor) -> Tensor:
    states_BWD, anchor_BD = token_states(model, ids_BW, mask_BW)
    return torch.cat([torch.cat([states_WD[:length], anchor_D[None]]) for states_WD, anchor_D, length
                      in zip(states_BWD, anchor_BD, mask_BW.sum(1).tolist(), strict=True)])


@torch.inference_mode()
def _encoded(model: HcmiModel, precision: str, function, *inputs: Tensor) -> np.ndarray:
    """Features as float16 [N, D]. Raises: ModelError when one is not finite."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found_ND = function(model, *(tensor.to(model.device) for tensor in inputs)).half().cpu()
    if not bool(found_ND.isfinite().all()):
        raise ModelError(f"model.backbone {model.config.backbone!r}: need features that float16 holds, got larger ones "
                         f"or NaN. Set train.towers to lora or train, or choose another checkpoint.")
    return found_ND.numpy()


@dataclass(frozen=True)
class Missing:
    """What is not kept yet: clips whose frames are missing, their frames, and states of tokens and captions."""

    clips: int
    frames: int
    states: int


def missing_features(model: HcmiModel, readers: Sequence[ShardReader], precision: str) -> Missing:
    """What `keep_features` would compute."""
    return _missing(_shards(model, readers, precision))


def _missing(shards: Iterable["_Shard"]) -> Missing:
    clips = frames = states = 0
    for shard in shards:
        (of_frames, num_frames), (of_texts, num_states) = shard.files()
        if open_array(of_frames, (num_frames, shard.dim)) is None:
            clips, frames = clips + len(shard.rows), frames + num_frames
        if open_array(of_texts, (num_states, shard.dim)) is None:
            states += num_states
    return Missing(clips, frames, states)


def encoding_seconds(model: HcmiModel, precision: str, missing: Missing, frame_shape: Sequence[int], caption: str
                     ) -> float:
    """How long `keep_features` would take for what is missing, from a few black frames and one caption."""
    frames_NHXC = torch.zeros(FRAMES_TIMED, *frame_shape, dtype=torch.uint8)
    ids_1W, mask_1W = model.processor.texts([caption])
    seconds = 0.0
    for count, each, function, inputs in ((missing.frames, FRAMES_TIMED, _frame_features, (frames_NHXC,)),
                                          (missing.states, int(mask_1W.sum()) + 1, _states_and_anchors,
                                           (ids_1W, mask_1W))):
        if count:
            _encoded(model, precision, function, *inputs)       # the first call makes what later ones use again
            started = time.perf_counter()
            _encoded(model, precision, function, *inputs)
            seconds += (time.perf_counter() - started) * count / each
    return seconds


def _shards(model: HcmiModel, readers: Sequence[ShardReader], precision: str) -> list["_Shard"]:
    """The shards of the splits in order. What is kept of each is named by all that it depends on."""
    towers = f"{FORMAT} {precision} {towers_hash(model)}"
    return [shard for reader in readers for shard in _shards_of(model, reader, towers)]


def _shards_of(model: HcmiModel, reader: ShardReader, towers: str) -> list["_Shard"]:
    keys = frame_keys(reader.index)
    found = []
    for _, group in groupby(range(len(reader)), key=lambda row: reader.index.shard_names[row]):
        rows = list(group)
        captions: dict[str, tuple[list[int], int]] = {}
        at = 0
        for caption, ids_W in _token_ids(model, [text for row in rows for text in reader.clips[row].captions]):
            if caption not in captions:
                captions[caption] = (ids_W, at)
                at += len(ids_W) + 1
        of_frames = [(keys[row], int(reader.num_stored[row])) for row in rows]
        of_texts = [ids_W for ids_W, _ in captions.values()]
        found.append(_Shard(reader, rows, model.head.dim, model.processor.pad_id, _key(towers, "frames", of_frames),
                            _key(towers, "texts", of_texts), captions))
    return found


def _token_ids(model: HcmiModel, texts: list[str]) -> Iterator[tuple[str, list[int]]]:
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start:start + TEXTS_AT_ONCE]
        ids_BW, mask_BW = model.processor.texts(some)
        for text, ids_W, length in zip(some, ids_BW.tolist(), mask_BW.sum(1).tolist(), strict=True):
            yield text, ids_W[:max(length, 1)]


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _decoded_ahead(reader: ShardReader, rows: Iterable[int]) -> Iterator[np.ndarray]:
    """All stored frames of each clip [T, H, X, C], decoded by threads while the towers are at work."""
    threads = min(8, count_cores())
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for row in rows:
            waiting.append(pool.submit(reader.frames, row, range(int(reader.num_stored[row]))))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
