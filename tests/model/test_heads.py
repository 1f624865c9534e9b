"""Each head against a slow oracle written in loops, and unchanged by padding, by order and by the rest of the
batch. Heads are `wild`: every parameter is random, so that nothing hides behind a layer that starts at zero."""

import math
from dataclasses import replace

import pytest
import torch
from heads_by_loops import assert_levels_equal, oracle_scores
from model_world import mask_of, shake
from torch import Tensor

from hcmi.errors import ModelError
from hcmi.model.heads import HEADS, Head, build_head
from hcmi.model.interaction import token_interaction
from hcmi.types import LEVELS

D, T, W = 8, 5, 6
VIDEO_LENGTHS, TEXT_LENGTHS = [5, 3, 1], [6, 4, 2, 5]


def made_head(name: str, wild: bool = True, seed: int = 0, **options) -> Head:
    torch.manual_seed(seed)
    head = build_head(name, dim=D, heads=2, temporal_layers=2, num_frames=T, num_words=W, num_clips=2, num_phrases=3,
                      **options)
    return shake(head, seed, 0.3) if wild else head


def made_inputs(seed: int = 0) -> dict[str, Tensor]:
    """Features of 3 videos and states of 4 texts, of different lengths; padding is filled with noise."""
    generator = torch.Generator().manual_seed(seed)
    return {"features_BTD": torch.randn(3, T, D, generator=generator), "frame_mask_BT": mask_of(VIDEO_LENGTHS, T),
            "states_BWD": torch.randn(4, W, D, generator=generator), "word_mask_BW": mask_of(TEXT_LENGTHS, W),
            "anchor_BD": torch.randn(4, D, generator=generator)}


def scores(head: Head, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    videos = head.video(inputs["features_BTD"], inputs["frame_mask_BT"])
    texts = head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"])
    return head.similarities(texts, videos)


def assert_padding_is_invisible(head: Head) -> None:
    """More padding, and other noise in it, change no score."""
    inputs = made_inputs()
    before = scores(head, inputs)
    frames_BTD = torch.where(inputs["frame_mask_BT"][..., None], inputs["features_BTD"], 5.0)
    states_BWD = torch.where(inputs["word_mask_BW"][..., None], inputs["states_BWD"], -5.0)
    longer = {"features_BTD": frames_BTD, "frame_mask_BT": inputs["frame_mask_BT"], "anchor_BD": inputs["anchor_BD"],
              "states_BWD": torch.cat([states_BWD, torch.full((4, 3, D), 9.0)], 1),
              "word_mask_BW": mask_of(TEXT_LENGTHS, W + 3)}
    assert_levels_equal(scores(head, longer), before)


@pytest.mark.parametrize("name", HEADS)
def test_head_equals_its_oracle_when_every_parameter_is_random(name):
    head, inputs = made_head(name), made_inputs()
    assert_levels_equal(scores(head, inputs), oracle_scores(head, name, inputs))


def test_mean_pool_is_the_cosine_of_the_mean_when_worked_by_hand():
    head = build_head("mean_pool", dim=2)
    videos = head.video(torch.tensor([[[3.0, 0.0], [0.0, 0.5], [9.0, 9.0]]]), mask_of([2], 3))
    texts = head.text(torch.zeros(2, 1, 2), torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), mask_of([1, 1], 1))
    # frames count by direction, not by length: their mean points to (1, 1) / sqrt(2)
    half = math.sqrt(0.5)
    torch.testing.assert_close(head.similarities(texts, videos)["video_sentence"], torch.tensor([[half], [-half]]))


# what must not matter

@pytest.mark.parametrize("name", HEADS)
def test_head_scores_are_unchanged_when_padding_changes(name):
    assert_padding_is_invisible(made_head(name))


@pytest.mark.parametrize("name", HEADS)
def test_head_scores_are_permuted_alike_when_the_batch_is_permuted(name):
    head, inputs = made_head(name), made_inputs()
    videos, texts = torch.tensor([2, 0, 1]), torch.tensor([3, 0, 2, 1])
    moved = {key: value[videos if key in ("features_BTD", "frame_mask_BT") else texts] for key, value in inputs.items()}
    before = {level: sims_QV[texts][:, videos] for level, sims_QV in scores(head, inputs).items()}
    assert_levels_equal(scores(head, moved), before)


@pytest.mark.parametrize("name", HEADS)
def test_head_scores_a_pair_the_same_when_it_is_alone(name):
    head, inputs = made_head(name), made_inputs()
    alone = {"features_BTD": inputs["features_BTD"][1:2, :3], "frame_mask_BT": mask_of([3], 3),
             "states_BWD": inputs["states_BWD"][3:4, :5], "word_mask_BW": mask_of([5], 5),
             "anchor_BD": inputs["anchor_BD"][3:4]}
    needed = {level: sims_QV[3:4, 1:2] for level, sims_QV in scores(head, inputs).items()}
    assert_levels_equal(scores(head, alone), needed)


@pytest.mark.parametrize(("name", "matters"), [("mean_pool", False), ("seq_transf", True), ("wti", True),
                                               ("xclip", True), ("hcmi", True)])
def test_head_sees_the_order_of_frames_when_it_has_time(name, matters):
    head, inputs = made_head(name), made_inputs()
    backwards = {**inputs, "features_BTD": inputs["features_BTD"].clone()}
    backwards["features_BTD"][0] = inputs["features_BTD"][0].flip(0)
    before, after = scores(head, inputs), scores(head, backwards)
    for level in head.levels:
        assert ((before[level][:, 0] - after[level][:, 0]).abs().max() > 1e-4) == matters, level


@pytest.mark.parametrize("name", ["mean_pool", "hcmi"])     # the other peers take the tower's features as they are
def test_head_scores_are_unchanged_when_features_are_scaled(name):
    head, inputs = made_head(name), made_inputs()
    scaled = {key: value if value.dtype == torch.bool else 7 * value for key, value in inputs.items()}
    assert_levels_equal(scores(head, scaled), scores(head, inputs))


@pytest.mark.parametrize("name", HEADS)
def test_head_gives_unit_tokens_and_weights_that_sum_to_one_when_clips_are_padded(name):
    head, inputs = made_head(name), made_inputs()
    videos = head.video(inputs["features_BTD"], inputs["frame_mask_BT"])
    texts = head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"])
    assert torch.equal(videos.frame_weights_BT > 0, inputs["frame_mask_BT"])
    assert torch.equal(texts.word_weights_BW > 0, inputs["word_mask_BW"])
    for weights_BN in (videos.frame_weights_BT, videos.clip_weights_BC, texts.word_weights_BW, texts.phrase_weights_BP):
        if weights_BN.shape[1]:
            torch.testing.assert_close(weights_BN.sum(1), torch.ones(len(weights_BN)))
    for vectors in (videos.video_BD, videos.frames_BTD, videos.clips_BCD, texts.words_BWD, texts.phrases_BPD):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    lengths_B = texts.sentence_BD.norm(dim=-1)      # of HCMI's sentences: the coverage, which the oracle checks
    assert ((lengths_B > 0) & (lengths_B < 2)).all() if name == "hcmi" else torch.allclose(lengths_B, torch.ones(4))


# odd inputs

@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("num_frames", "num_words"), [(1, 3), (T, 0), (1, 0)])
def test_head_gives_finite_scores_and_gradients_when_frames_or_words_are_few(name, num_frames, num_words):
    head = made_head(name)
    features_BTD, states_BWD, anchor_BD = (torch.randn(2, *shape, D, requires_grad=True) for shape in ((T,), (W,), ()))
    videos = head.video(features_BTD, mask_of([num_frames, T], T))
    texts = head.text(states_BWD, anchor_BD, mask_of([num_words, W], W))
    levels = head.similarities(texts, videos)
    sum(sims_QV.sum() for sims_QV in levels.values()).backward()
    for tensor in (*levels.values(), features_BTD.grad, *(p.grad for p in head.parameters() if p.grad is not None)):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("name", HEADS)
def test_head_takes_more_frames_when_it_was_made_for_fewer(name):
    head = made_head(name)
    videos = head.video(torch.randn(2, 3 * T, D), mask_of([3 * T, 4], 3 * T))
    assert videos.frames_BTD.shape == (2, 3 * T, D)
    assert torch.isfinite(videos.video_BD).all()


# at the start

@pytest.mark.parametrize("name", ["mean_pool", "hcmi"])
def test_head_scores_mean_frame_against_anchor_when_untrained(name):
    """Identity at the start (decision 6), for lengths that clips do not divide."""
    head, inputs = made_head(name, wild=False), made_inputs()
    needed = oracle_scores(head, "mean_pool", inputs)["video_sentence"]
    torch.testing.assert_close(scores(head, inputs)["video_sentence"], needed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["wti", "hcmi"])
def test_head_weighs_tokens_alike_when_untrained(name):
    head, inputs = made_head(name, wild=False), made_inputs()
    weights_BT = head.video(inputs["features_BTD"], inputs["frame_mask_BT"]).frame_weights_BT
    torch.testing.assert_close(weights_BT, inputs["frame_mask_BT"] / inputs["frame_mask_BT"].sum(1, keepdim=True))


def test_coverage_is_1_when_untrained():
    """So the sentence is of length 1, and the identity at the start stays."""
    head, inputs = made_head("hcmi", wild=False), made_inputs()
    found_B1 = 2 * head.coverage(10 * inputs["anchor_BD"]).sigmoid()
    assert torch.equal(found_B1, torch.ones(4, 1))
    sentence_BD = head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"]).sentence_BD
    torch.testing.assert_close(sentence_BD.norm(dim=1), torch.ones(4))


def test_coverage_moves_the_score_from_the_words_side_to_both_sides():
    head, inputs = made_head("hcmi"), made_inputs()
    videos = head.video(inputs["features_BTD"], inputs["frame_mask_BT"])
    with torch.no_grad():
        head.coverage.weight.zero_()
        found = {}
        for coverage, bias in ((0, -100.0), (0.5, -math.log(3)), (2, 100.0)):     # 2 sigmoid(-log 3) = 2 / (1 + 3)
            head.coverage.bias.fill_(bias)
            texts = head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"])
            found[coverage] = head.similarities(texts, videos)
    shown_QV, told_QV = token_interaction(texts.words_BWD, texts.word_weights_BW, videos.frames_BTD,
                                          videos.frame_weights_BT)
    torch.testing.assert_close(found[0]["frame_word"], shown_QV)
    torch.testing.assert_close(found[0.5]["frame_word"], 7 / 8 * shown_QV + 1 / 8 * told_QV)
    torch.testing.assert_close(found[2]["frame_word"], (shown_QV + told_QV) / 2)
    torch.testing.assert_close(found[0.5]["video_sentence"], found[2]["video_sentence"] / 4)
    assert found[0]["video_sentence"].abs().max() < 1e-6


def test_training_similarities_give_the_levels_and_how_they_grow_with_coverage():
    head, inputs = made_head("hcmi"), made_inputs()
    texts = head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"])
    videos = head.video(inputs["features_BTD"], inputs["frame_mask_BT"])
    found, ranked = head.training_similarities(texts, videos), head.similarities(texts, videos)
    coverage_Q1 = texts.sentence_BD.norm(dim=1, keepdim=True).detach()
    assert coverage_Q1.std() > 0.1
    more = head.similarities(replace(texts, sentence_BD=(1 + 0.1 / coverage_Q1) * texts.sentence_BD), videos)
    for level in LEVELS:
        torch.testing.assert_close((more[level] - ranked[level]) / 0.1, found[f"{level}_gain"], atol=1e-4, rtol=0)
        weight_Q1 = coverage_Q1 if level == "video_sentence" else 1
        torch.testing.assert_close(found[level] * weight_Q1, ranked[level])
        gradient = torch.autograd.grad(found[level].square().sum(), head.coverage.weight, retain_graph=True,
                                       allow_unused=True)[0]
        assert gradient is None or gradient.abs().max() < 1e-6
        assert not found[f"{level}_gain"].requires_grad


def test_coverage_gives_the_sentence_no_gradient():
    head, inputs = made_head("hcmi"), made_inputs()
    leaves = {name: inputs[name].requires_grad_() for name in ("states_BWD", "anchor_BD")}
    lengths_B = head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"]).sentence_BD.norm(dim=1)
    assert lengths_B.std() > 0.1
    of_coverage, *of_sentence = torch.autograd.grad(lengths_B.sum(), [head.coverage.weight, *leaves.values()])
    assert of_coverage.abs().max() > 0.1
    assert all(gradient.abs().max() < 1e-6 for gradient in of_sentence)


def test_logit_scale_is_clamped_at_100_when_it_grows():
    head = made_head("hcmi", wild=False)
    level = head.levels[0]
    assert head.logit_scale(level).item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        head.logit_scales[level].fill_(9.0)
    assert head.logit_scale(level).item() == pytest.approx(100)


def test_hcmi_has_the_levels_of_the_contract_when_built():
    assert made_head("hcmi").levels == LEVELS


def test_build_head_lists_the_known_ones_when_the_name_is_unknown():
    with pytest.raises(ModelError) as caught:
        build_head("clip4clip", dim=8)
    assert str(caught.value) == (f"model.head 'clip4clip': need one of {', '.join(HEADS)}, got 'clip4clip'. "
                                 f"Correct model.head.")


# the helpers fail on planted bugs

@pytest.mark.parametrize(("name", "side"), [*((name, "video") for name in HEADS), ("wti", "text"), ("xclip", "text"),
                                            ("hcmi", "text")])
def test_assert_padding_is_invisible_fails_when_a_pad_token_is_not_masked(name, side, monkeypatch):
    head, masked = made_head(name), {}
    masked[side] = getattr(head, side)
    monkeypatch.setattr(head, side, lambda *inputs: masked[side](*inputs[:-1], torch.ones_like(inputs[-1])))
    with pytest.raises(AssertionError, match="off by"):
        assert_padding_is_invisible(head)


@pytest.mark.parametrize("name", HEADS)
def test_assert_levels_equal_fails_when_the_similarity_is_transposed(name):
    head, inputs = made_head(name), made_inputs()
    inputs["features_BTD"] = torch.cat([inputs["features_BTD"], inputs["features_BTD"][:1]])      # 4 videos, 4 texts
    inputs["frame_mask_BT"] = torch.cat([inputs["frame_mask_BT"], inputs["frame_mask_BT"][:1]])
    found = scores(head, inputs)
    with pytest.raises(AssertionError, match="off by"):
        assert_levels_equal({level: sims_QV.T for level, sims_QV in found.items()}, found)


def test_assert_levels_equal_fails_when_one_level_is_dropped():
    found = scores(made_head("hcmi"), made_inputs())
    with pytest.raises(AssertionError, match="need the levels"):
        assert_levels_equal({level: found[level] for level in LEVELS[1:]}, found)


@pytest.mark.parametrize("name", ["frame_word", "clip_phrase"])
def test_hcmi_scores_a_text_of_a_part_by_its_own_side_alone(name):
    """More frames that match nothing never lower its fine levels, and leave the level of whole videos as it is."""
    head, inputs = made_head("hcmi"), made_inputs()
    with torch.no_grad():
        head.coverage.weight.zero_()
        head.coverage.bias.fill_(-100.0)
    videos = head.video(inputs["features_BTD"], inputs["frame_mask_BT"])
    texts = head.text(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"])
    before = head.similarities(texts, videos)
    tokens, weights = ("frames_BTD", "frame_weights_BT") if name == "frame_word" else ("clips_BCD", "clip_weights_BC")
    opposite_D = torch.nn.functional.normalize(-texts.words_BWD[0].sum(0), dim=0)
    longer = replace(videos, **{
        tokens: torch.cat([getattr(videos, tokens), opposite_D.expand(3, 4, D)], 1),
        weights: torch.full((3, getattr(videos, weights).shape[1] + 4), 0.1)})
    after = head.similarities(texts, longer)
    assert (after[name] >= before[name] - 1e-6).all()
    for level in set(LEVELS) - {name}:
        assert torch.equal(after[level], before[level])


def test_coarse_levels_reach_frames_and_words_by_their_share_alone():
    inputs = made_inputs()

    def gradients(share: float, level: str) -> list[Tensor]:
        head = made_head("hcmi", coarse_gradient=share)
        leaves = {name: inputs[name].clone().requires_grad_() for name in ("features_BTD", "states_BWD", "anchor_BD")}
        scored = scores(head, inputs | leaves)[level]
        assert torch.equal(scored, scores(made_head("hcmi"), inputs)[level])
        return torch.autograd.grad(scored.square().sum(), list(leaves.values()), allow_unused=True)

    for level in LEVELS:
        share = 1.0 if level == "frame_word" else 0.3
        for whole, part in zip(gradients(1.0, level), gradients(0.3, level), strict=True):
            assert (whole is None) == (part is None)
            if whole is not None:
                torch.testing.assert_close(part, share * whole)
                assert whole.any()
