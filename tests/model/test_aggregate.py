"""The layers that turn fine tokens into coarse ones: what they compute and ignore; they start as the identity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import mask_of, shake

from hcmi.model.aggregate import (
    AGGREGATIONS,
    Aggregation,
    FeedForward,
    NeighbourMix,
    SelfAttention,
    TemporalTransformer,
    TokenWeights,
    masked_mean,
    masked_softmax,
    time_prior,
)

D = 8


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(seed))


def prior_by_loops(num_valid: int, slots: int) -> list[list[float]]:
    """Slot c has the time from c/S to (c+1)/S of the valid tokens; 80 % of its share by overlap, 20 % spread."""
    table = []
    for token in range(num_valid):
        row = []
        for slot in range(slots):
            begin, end = slot * num_valid / slots, (slot + 1) * num_valid / slots
            overlap = max(0.0, min(token + 1, end) - max(token, begin))
            row.append(0.8 * overlap / (end - begin) + 0.2 / num_valid)
        table.append(row)
    return table


# masks

def test_masked_softmax_gives_padding_nothing_when_worked_by_hand():
    weights_BN = masked_softmax(torch.tensor([[0.0, 0.0, 50.0], [1.0, 2.0, 3.0]]).log1p(), mask_of([2, 0], 3))
    assert weights_BN.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_masked_mean_leaves_padding_out_when_worked_by_hand():
    tokens_BND = torch.tensor([[[1.0, 4.0], [3.0, 8.0], [9.0, 9.0]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    assert masked_mean(tokens_BND, mask_of([2, 0], 3)).tolist() == [[2.0, 6.0], [0.0, 0.0]]


# which token belongs to which slot

def test_time_prior_cuts_time_into_equal_parts_when_worked_by_hand():
    # 4 tokens, 2 slots: a slot has two whole tokens, 1/2 each, less 20 % spread over all four
    expected = [[0.45, 0.05], [0.45, 0.05], [0.05, 0.45], [0.05, 0.45]]
    torch.testing.assert_close(time_prior(mask_of([4], 4), 2)[0], torch.tensor(expected))


def test_time_prior_shares_a_token_when_it_lies_on_a_border():
    # 3 tokens, 2 slots of 1.5: the middle token gives a third of itself to each slot's share
    by_time = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]) / 1.5
    torch.testing.assert_close(time_prior(mask_of([3], 3), 2)[0], 0.8 * by_time + 0.2 / 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 5))
def test_time_prior_sums_to_one_over_tokens_when_lengths_vary(num_valid, slots, padding):
    prior_NS = time_prior(mask_of([num_valid], num_valid + padding), slots)[0]
    torch.testing.assert_close(prior_NS[:num_valid], torch.tensor(prior_by_loops(num_valid, slots)))
    torch.testing.assert_close(prior_NS[:num_valid].sum(0), torch.ones(slots))
    torch.testing.assert_close(prior_NS[:num_valid].sum(1), torch.full((num_valid,), slots / num_valid))
    assert (prior_NS[num_valid:] < 1e-8).all()


# layers start as the identity

@pytest.mark.parametrize("layer", [NeighbourMix(D), SelfAttention(D, 2), TemporalTransformer(D, 2, 2, 6)])
def test_layer_passes_tokens_unchanged_when_untrained(layer):
    tokens_BND = tokens(2, 5)
    torch.testing.assert_close(layer(tokens_BND, mask_of([5, 3], 5)), tokens_BND, atol=1e-6, rtol=0)


def test_feed_forward_passes_tokens_unchanged_when_untrained():
    assert torch.equal(FeedForward(D)(tokens(2, 3)), tokens(2, 3))


@pytest.mark.parametrize("kind", AGGREGATIONS)
@pytest.mark.parametrize(("length", "slots"), [(4, 2), (5, 2), (12, 5), (3, 3), (1, 1), (2, 4)])
def test_aggregation_keeps_the_mean_when_untrained(length, slots, kind):
    tokens_BND, mask_BN = tokens(2, length + 2), mask_of([length, max(length - 1, 1)], length + 2)
    coarse_BSD = Aggregation(D, 2, slots, kind)(tokens_BND, mask_BN)
    assert coarse_BSD.shape == (2, slots, D)
    torch.testing.assert_close(coarse_BSD.mean(1), masked_mean(tokens_BND, mask_BN), atol=1e-6, rtol=0)


def test_aggregation_slots_differ_when_untrained():
    coarse_BSD = Aggregation(D, 2, 3)(tokens(1, 9), mask_of([9], 9))
    assert torch.pdist(coarse_BSD[0]).min() > 0.1


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_aggregation_learns_from_the_first_step_when_untrained(kind):
    """Zero branches must not stop the gradient of the layers that end them."""
    layer, weights_SD = Aggregation(D, 2, 3, kind), torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    (layer(tokens(2, 6), mask_of([6, 4], 6)) * weights_SD).sum().backward()
    for name, weight in layer.named_parameters():
        last = name.endswith(("out.weight", "assign.3.weight", "keys.1.weight", "layers.3.weight"))
        assert (weight.grad.abs().max() > 0) == last or not last, name


# padding and order

WILD = {"neighbour_mix": NeighbourMix(D), "self_attention": SelfAttention(D, 2),
        "temporal": TemporalTransformer(D, 2, 2, 6)}


@pytest.mark.parametrize("name", WILD)
def test_layer_ignores_padding_when_every_parameter_is_random(name):
    layer, mask_BN = shake(WILD[name]), mask_of([4, 2], 6)
    tokens_BND = tokens(2, 6)
    other_BND = torch.where(mask_BN[..., None], tokens_BND, 30.0)
    before, after = (layer(given, mask_BN) for given in (tokens_BND, other_BND))
    torch.testing.assert_close(after[mask_BN], before[mask_BN])
    short = layer(tokens_BND[1:, :2], mask_of([2], 2))
    torch.testing.assert_close(before[1:, :2], short, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_aggregation_ignores_padding_when_every_parameter_is_random(kind):
    layer, mask_BN = shake(Aggregation(D, 2, 3, kind)), mask_of([4, 2], 6)
    tokens_BND = tokens(2, 6)
    found_BSD = layer(tokens_BND, mask_BN)
    torch.testing.assert_close(layer(torch.where(mask_BN[..., None], tokens_BND, 30.0), mask_BN), found_BSD)
    torch.testing.assert_close(found_BSD[1:], layer(tokens_BND[1:, :2], mask_of([2], 2)), atol=1e-5, rtol=1e-4)


def test_token_weights_follow_their_tokens_when_permuted():
    layer, order = shake(TokenWeights(D)), torch.tensor([3, 0, 2, 1])
    before = layer(tokens(2, 4), mask_of([4, 4], 4))
    torch.testing.assert_close(layer(tokens(2, 4)[:, order], mask_of([4, 4], 4)), before[:, order])
    assert before.std() > 0.01


def test_self_attention_follows_its_tokens_when_permuted():
    layer, order = shake(SelfAttention(D, 2)), torch.tensor([3, 0, 2, 1])
    before = layer(tokens(2, 4), mask_of([4, 4], 4))
    torch.testing.assert_close(layer(tokens(2, 4)[:, order], mask_of([4, 4], 4)), before[:, order])


def test_neighbour_mix_takes_the_difference_of_neighbours_when_its_weights_say_so():
    """Weights -1, 0, 1: each frame gets the frame after it minus the frame before it, both normalised."""
    layer, frames_BTD = NeighbourMix(D), tokens(2, 4)
    eye_DD = torch.eye(D)
    layer.mix.weight.data = torch.cat([-eye_DD, 0 * eye_DD, eye_DD], 1)
    normed_BTD = torch.nn.functional.layer_norm(frames_BTD, (D,))
    moved_BTD = layer(frames_BTD, mask_of([4, 3], 4)) - frames_BTD
    torch.testing.assert_close(moved_BTD[:, 1], normed_BTD[:, 2] - normed_BTD[:, 0])
    torch.testing.assert_close(moved_BTD[:, 0], normed_BTD[:, 1] - normed_BTD[:, 0])
    torch.testing.assert_close(moved_BTD[0, 3], normed_BTD[0, 3] - normed_BTD[0, 2])
    torch.testing.assert_close(moved_BTD[1, 2], normed_BTD[1, 2] - normed_BTD[1, 1])     # the last valid frame


# positions


def test_temporal_transformer_takes_given_positions_when_frames_are_left_out():
    layer, mask_BT = shake(TemporalTransformer(D, 2, 2, 6)), mask_of([3], 3)
    first = layer(tokens(1, 3), mask_BT)
    torch.testing.assert_close(layer(tokens(1, 3), mask_BT, torch.tensor([0, 1, 2])), first)
    assert (layer(tokens(1, 3), mask_BT, torch.tensor([0, 2, 4])) - first).abs().max() > 1e-3


def test_temporal_transformer_interpolates_positions_when_frames_are_many():
    layer = shake(TemporalTransformer(D, 2, 1, 2))
    longer = TemporalTransformer(D, 2, 1, 3)
    first_D, last_D = layer.positions_TD.detach()
    positions_TD = torch.stack([first_D, (first_D + last_D) / 2, last_D])
    longer.load_state_dict({**layer.state_dict(), "positions_TD": positions_TD})
    torch.testing.assert_close(layer(tokens(2, 3), mask_of([3, 2], 3)), longer(tokens(2, 3), mask_of([3, 2], 3)))
