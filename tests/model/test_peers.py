"""The peers against the formulas of their public code, for several shapes and with padding."""

import copy
import math

import pytest
import torch
from heads_by_loops import assert_levels_equal, oracle_scores
from model_world import mask_of, shake
from torch import Tensor, nn
from torch.nn.functional import normalize

from hcmi.model import heads
from hcmi.model.aggregate import frame_positions, masked_mean
from hcmi.model.heads import Head, build_head
from hcmi.model.interaction import padded_token_interaction
from hcmi.model.peers import ReluTokenWeights, ResidualTransformer, SimilarityAttention

PEERS = ("mean_pool", "seq_transf", "wti", "xclip")
# dim, attention heads, temporal layers, frames and words that the head was made for, lengths of videos and of texts
SHAPES = [(8, 2, 2, 5, 6, [5, 3, 1], [6, 4, 2, 5]),
          (12, 3, 1, 7, 9, [6, 5], [8, 3]),             # the longest of the batch is shorter than what DRL pads to
          (16, 1, 3, 3, 4, [3, 3], [4, 4, 4]),          # no padding
          (8, 4, 1, 4, 5, [4, 2, 3, 1], [5, 1])]
MATRICES = ("sentence_to_video_DD", "word_to_frame_DD", *(f"over_{name}.matrix_NN" for name in (
    "video_words", "sentence_frames", "frame_words", "word_frames", "best_words", "best_frames")))


def made(name: str, shape=SHAPES[0], seed: int = 0) -> tuple[Head, dict[str, Tensor]]:
    """A head whose every parameter is random, and features whose padding is noise."""
    dim, num_heads, layers, num_frames, num_words, video_lengths, text_lengths = shape
    torch.manual_seed(seed)
    head = shake(build_head(name, dim=dim, heads=num_heads, temporal_layers=layers, num_frames=num_frames,
                            num_words=num_words), seed, 0.3)
    frame_mask_BT, word_mask_BW = mask_of(video_lengths, max(video_lengths)), mask_of(text_lengths, max(text_lengths))
    return head, {"features_BTD": torch.randn(*frame_mask_BT.shape, dim), "frame_mask_BT": frame_mask_BT,
                  "states_BWD": torch.randn(*word_mask_BW.shape, dim), "word_mask_BW": word_mask_BW,
                  "anchor_BD": torch.randn(len(word_mask_BW), dim)}


def scores(head: Head, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return head.similarities(head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"]),
                             head.video(inputs["features_BTD"], inputs["frame_mask_BT"]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PEERS)
def test_peer_equals_its_public_code_when_every_parameter_is_random(name, shape):
    for seed in range(3):
        head, inputs = made(name, shape, seed)
        assert_levels_equal(scores(head, inputs), oracle_scores(head, name, inputs), 1e-5)


# planted bugs: what the heads computed before, and what is easily forgotten

def leave_positions_out_of_the_residual(head, patch):
    whole, positions_TD = head.temporal.forward, head.temporal.positions_TD
    patch.setattr(head.temporal, "forward", lambda frames_BTD, *rest: (
        whole(frames_BTD, *rest) - frames_BTD - frame_positions(positions_TD, frames_BTD.shape[1])))


def leave_out_the_outer_residual(head, patch):
    whole = head.temporal.forward
    patch.setattr(head.temporal, "forward", lambda frames_BTD, *rest: whole(frames_BTD, *rest) - frames_BTD)


def take_the_tanh_gelu(head, patch):
    for _, feed_forward in head.temporal.layers:
        feed_forward.layers[2] = nn.GELU(approximate="tanh")


def take_the_mean_before_normalising(head, patch):
    patch.setattr(heads, "_mean_direction", masked_mean)


def let_padding_into_the_mean(head, patch):
    patch.setattr(heads, "masked_mean", lambda tokens_BND, _: tokens_BND.mean(1))


def leave_padding_out_of_the_maxima(head, patch):
    patch.setattr(heads, "padded_token_interaction", lambda *given: padded_token_interaction(*given[:4], 0, 0))


def pad_to_the_longest_of_the_batch(head, patch):
    patch.setattr(head, "num_words", 5)
    patch.setattr(head, "num_frames", 3)


def weigh_unit_tokens(head, patch):
    for layer in (head.frame_weights, head.word_weights):
        layer.layers.insert(0, nn.LayerNorm(8, elementwise_affine=False))


def leave_out_the_relu(head, patch):
    head.frame_weights.layers[1] = nn.Identity()


def compare_frames_after_the_temporal_transformer(head, patch):
    patch.setattr(head, "video", super(type(head), head).video)


def leave_padding_in_the_attention(head, patch):
    whole = SimilarityAttention.forward
    patch.setattr(SimilarityAttention, "forward",
                  lambda layer, sims, mask: whole(layer, sims, torch.ones_like(mask)))


def transpose_a_matrix(head, patch):
    with torch.no_grad():
        head.over_word_frames.matrix_NN.copy_(head.over_word_frames.matrix_NN.T.clone())


@pytest.mark.parametrize(("name", "plant"), [
    ("mean_pool", take_the_mean_before_normalising), ("mean_pool", let_padding_into_the_mean),
    ("seq_transf", leave_positions_out_of_the_residual), ("seq_transf", leave_out_the_outer_residual),
    ("seq_transf", take_the_tanh_gelu), ("seq_transf", take_the_mean_before_normalising),
    ("wti", leave_positions_out_of_the_residual), ("wti", leave_padding_out_of_the_maxima),
    ("wti", pad_to_the_longest_of_the_batch), ("wti", weigh_unit_tokens), ("wti", leave_out_the_relu),
    ("xclip", take_the_mean_before_normalising), ("xclip", compare_frames_after_the_temporal_transformer),
    ("xclip", leave_padding_in_the_attention), ("xclip", transpose_a_matrix)])
def test_the_comparison_fails_when_a_bug_is_planted(name, plant, monkeypatch):
    head, inputs = made(name)
    published = oracle_scores(copy.deepcopy(head), name, inputs)
    plant(head, monkeypatch)
    with pytest.raises(AssertionError, match="off by"):
        assert_levels_equal(scores(head, inputs), published, 1e-3)


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_comparison_fails_when_one_of_the_eight_matrices_is_left_out(matrix):
    head, inputs = made("xclip")
    published = oracle_scores(head, "xclip", inputs)
    with torch.no_grad():
        head.get_parameter(matrix).copy_(torch.eye(len(head.get_parameter(matrix))))
    with pytest.raises(AssertionError, match="off by"):
        assert_levels_equal(scores(head, inputs), published, 1e-3)


# parts, worked by hand

def test_padding_scores_0_in_the_maxima_of_drl_when_worked_by_hand():
    words_QWD = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])      # the first text has one word
    frames_VTD = torch.tensor([[[-0.6, 0.8], [-1.0, 0.0]]])
    word_weights_QW, frame_weights_VT = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.25, 0.75]])

    def found(num_words: int, num_frames: int) -> list[float]:
        return padded_token_interaction(words_QWD, word_weights_QW, frames_VTD, frame_weights_VT, num_words,
                                        num_frames)[:, 0].tolist()

    # words: -0.6 for the first text; -0.6 and 0.8 for the second. Frames: -0.6, -1 for the first; 0.8, 0 for the second
    assert found(1, 2) == pytest.approx([(-0.6 - 0.9) / 2, (0.1 + 0.2) / 2])
    assert found(2, 2) == pytest.approx([(-0.6 + 0.0) / 2, (0.1 + 0.2) / 2])    # the first text is padded to 2 words
    assert found(2, 3) == pytest.approx([(0.0 + 0.0) / 2, (0.4 + 0.2) / 2])     # and the video to 3 frames
    empty = padded_token_interaction(words_QWD, 0 * word_weights_QW, frames_VTD, 0 * frame_weights_VT, 2, 2)
    assert empty.tolist() == [[0.0], [0.0]]


def test_similarity_attention_weighs_by_softmax_times_matrix_when_worked_by_hand():
    layer = SimilarityAttention(3)
    sims, mask = torch.tensor([0.02, 0.01, 5.0]), torch.tensor([True, True, False])
    larger = math.e / (math.e + 1)      # softmax of 2 and 1
    assert layer(sims, mask).item() == pytest.approx(0.02 * larger + 0.01 * (1 - larger))
    with torch.no_grad():
        layer.matrix_NN.copy_(torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    assert layer(sims, mask).item() == pytest.approx(0.02 * (1 - larger) + 0.01 * 2 * larger)
    assert layer(sims, torch.zeros(3, dtype=torch.bool)).item() == 0
    two = layer(sims[:2], mask[:2])
    torch.testing.assert_close(layer(sims, mask), two)


def test_similarity_attention_goes_on_as_the_identity_when_there_are_more_than_it_was_made_for():
    small, large = SimilarityAttention(2), SimilarityAttention(5)
    with torch.no_grad():
        small.matrix_NN.copy_(torch.tensor([[0.0, 2.0], [1.0, 0.5]]))
        large.matrix_NN[:2, :2] = small.matrix_NN
    sims = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) / 50
    torch.testing.assert_close(small(sims, mask_of([5, 4, 3, 1], 5)), large(sims, mask_of([5, 4, 3, 1], 5)))


def test_xclips_matrices_start_as_the_identity():
    head = build_head("xclip", dim=8, heads=2, temporal_layers=1, num_frames=4, num_words=6)
    matrices = {name: weight for name, weight in head.named_parameters() if name.endswith(("_DD", "_NN"))}
    assert sorted(matrices) == sorted(MATRICES)
    assert all(torch.equal(weight, torch.eye(len(weight))) for weight in matrices.values())


def test_residual_transformer_gives_twice_the_frame_and_its_position_when_untrained():
    layer, frames_BTD = ResidualTransformer(8, 2, 2, 5), torch.randn(2, 4, 8)
    torch.testing.assert_close(layer(frames_BTD, mask_of([4, 2], 4)), 2 * frames_BTD + layer.positions_TD[:4])
    assert ResidualTransformer(8, 2, 0, 5)(frames_BTD, mask_of([4, 2], 4)) is frames_BTD


def test_residual_transformer_takes_given_positions_when_frames_are_left_out():
    layer, frames_BTD, mask_BT = shake(ResidualTransformer(8, 2, 2, 6)), torch.randn(1, 3, 8), mask_of([3], 3)
    torch.testing.assert_close(layer(frames_BTD, mask_BT, torch.arange(3)), layer(frames_BTD, mask_BT))
    assert (layer(frames_BTD, mask_BT, torch.tensor([0, 2, 4])) - layer(frames_BTD, mask_BT)).abs().max() > 1e-3


def test_relu_token_weights_follow_the_length_of_tokens():
    layer, tokens_BND = shake(ReluTokenWeights(8), 1, 1.0), torch.randn(2, 4, 8)
    mask_BN = mask_of([4, 3], 4)
    assert (layer(tokens_BND, mask_BN) - layer(normalize(tokens_BND, dim=-1), mask_BN)).abs().max() > 1e-3
