"""Encoding and scoring whole splits: batches, padding and tiles change no number."""

from dataclasses import replace

import model_world
import numpy as np
import pytest
import torch
from search_world import searchable_model, text_tokens, video_tokens

from hcmi.encode import encode_split
from hcmi.model import bucketed_similarities, encode_texts, encode_videos, score
from hcmi.model.heads import HEADS
from hcmi.shards import ShardReader
from hcmi.types import EvalBatch


def cut(weights_BN: torch.Tensor) -> torch.Tensor:
    """The same weights with the first rows as they are, and all others cut to 1, 2, 3 ... tokens."""
    lengths = [weights_BN.shape[1]] * 2 + [1 + row % weights_BN.shape[1] for row in range(len(weights_BN) - 2)]
    kept_BN = weights_BN * model_world.mask_of(lengths, weights_BN.shape[1])
    return kept_BN / kept_BN.sum(1, keepdim=True)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_score_agrees_with_the_head_when_it_works_in_parts(head, padded):
    model, generator = model_world.shake(searchable_model(head=head)), np.random.default_rng(0)
    videos, texts = video_tokens(20, generator), text_tokens(15, generator)
    if padded:
        videos = replace(videos, frame_weights_BT=cut(videos.frame_weights_BT))
        texts = replace(texts, word_weights_BW=cut(texts.word_weights_BW))
    with torch.no_grad():
        expected = model.similarities(texts, videos)
    found = score(model, texts, videos, part=4)
    assert list(found) == list(expected)
    for level, sims_QV in found.items():
        assert sims_QV.dtype == torch.float32
        assert (sims_QV - expected[level]).abs().max() < 1e-5


def test_score_of_a_head_without_tiles_differs_when_tiles_are_used(monkeypatch):
    """What the test above would not see if no score depended on padding."""
    model, generator = searchable_model(head="wti"), np.random.default_rng(0)
    videos, texts = video_tokens(20, generator), text_tokens(15, generator)
    videos = replace(videos, frame_weights_BT=cut(videos.frame_weights_BT))
    own = score(model, texts, videos)["frame_word"]
    monkeypatch.setattr(model.head, "scored_in_tiles", True)
    assert (score(model, texts, videos)["frame_word"] - own).abs().max() > 0.01


CAPTIONS = ["a red film", "a", "first blue and then much later white and black", "a green film then yellow", ""]


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_encode_split_is_the_model_clip_by_clip_when_batches_end_anywhere(films, head):
    model, reader = model_world.tiny_model(head, wild=True), ShardReader(films, "train")
    encoded = encode_split(model, reader, batch_size=7)
    assert encoded.video_ids == [clip.video_id for clip in reader.clips]
    assert encoded.captions == [caption for clip in reader.clips for caption in clip.captions]
    assert encoded.caption_video.tolist() == [row for row in range(24) for _ in range(2)]
    for row in (0, 6, 7, 23):
        frames_THXC = reader.frames(row, [1, 3, 5, 7])      # the middle frames of four parts of eight
        alone = model.encode_videos(model.processor.frames(frames_THXC)[None], model_world.mask_of([4], 4))
        torch.testing.assert_close(encoded.videos.video_BD[row], alone.video_BD[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(encoded.videos.frames_BTD[row], alone.frames_BTD[0], atol=1e-5, rtol=0)
        one = model.encode_texts(*model.processor.texts([encoded.captions[2 * row]]))
        length = one.words_BWD.shape[1]
        torch.testing.assert_close(encoded.texts.sentence_BD[2 * row], one.sentence_BD[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(encoded.texts.words_BWD[2 * row, :length], one.words_BWD[0], atol=1e-5, rtol=0)
        assert (encoded.texts.word_weights_BW[2 * row, length:] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_encode_texts_gives_the_same_scores_when_batches_are_small(head):
    model, videos = model_world.tiny_model(head, wild=True), video_tokens(6, np.random.default_rng(0))
    whole, by_one = encode_texts(model, CAPTIONS), encode_texts(model, CAPTIONS, batch_size=1)
    assert len(by_one) == len(CAPTIONS)
    for level, sims_QV in score(model, whole, videos).items():
        torch.testing.assert_close(score(model, by_one, videos)[level], sims_QV, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("num_buckets", [1, 3, 9])      # 9: more buckets than captions
def test_bucketed_similarities_equal_those_of_all_texts_at_once_with_their_gradients(head, num_buckets):
    model, videos = model_world.tiny_model(head, wild=True), video_tokens(6, np.random.default_rng(0))
    ids_QW, mask_QW = model.processor.texts(CAPTIONS)
    assert len(set(mask_QW.sum(1).tolist())) > 3

    def found(levels, sentence_BD):
        loss = sum(sims_QV.square().sum() for sims_QV in levels.values()) + sentence_BD[:, 0].sum()
        leaves = [weight for weight in model.parameters() if weight.requires_grad]
        return {**levels, "sentence": sentence_BD}, torch.autograd.grad(loss, leaves, allow_unused=True)

    texts = model.encode_texts(ids_QW, mask_QW)
    plain, plain_gradients = found(model.head.training_similarities(texts, videos), texts.sentence_BD)
    bucketed, gradients = found(*bucketed_similarities(model, ids_QW, mask_QW, videos, num_buckets))
    assert list(bucketed) == list(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(bucketed[name], tensor, atol=1e-6, rtol=0)
    for one, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_bucketed_similarities_cut_each_bucket_to_its_longest_text(monkeypatch):
    model, seen = model_world.tiny_model(), []
    ids_QW, mask_QW = model.processor.texts(CAPTIONS)
    whole = model.encode_texts
    monkeypatch.setattr(model, "encode_texts", lambda ids, mask: seen.append(mask.sum(1).tolist()) or whole(ids, mask))
    bucketed_similarities(model, ids_QW, mask_QW, video_tokens(2, np.random.default_rng(0)), 3)
    lengths = sorted(mask_QW.sum(1).tolist())
    assert seen == [lengths[:2], lengths[2:4], lengths[4:]]


def test_encode_videos_joins_batches_when_their_numbers_of_frames_differ():
    model, generator = model_world.tiny_model(), np.random.default_rng(0)
    batches = []
    for lengths, longest in (([2, 1], 2), ([4], 4), ([3, 3, 2], 3)):
        frames = torch.from_numpy(generator.integers(0, 256, (len(lengths), longest, 16, 16, 3), np.uint8))
        batches.append(EvalBatch(list(range(len(lengths))), frames,
                                 model_world.mask_of(lengths, longest)))
    videos = encode_videos(model, batches)
    assert (len(videos), videos.frames_BTD.shape[1]) == (6, 4)
    assert (videos.frame_weights_BT > 0).sum(1).tolist() == [2, 1, 4, 3, 3, 2]
    assert {tensor.dtype for tensor in vars(videos).values()} == {torch.float32}
    assert not videos.video_BD.requires_grad
