"""The sum of the loss terms against slow loops, and which terms each head is trained with."""

import math

import pytest
import torch
from loss_by_loops import balance_by_loops, contrastive_by_loops, drawn, margin_by_loops
from model_world import tiny_model, train_config

from hcmi.config import LevelWeights
from hcmi.model.heads import HEADS
from hcmi.train import objective
from hcmi.train.denoising import denoise_mode
from hcmi.train.loss import balance, contrastive
from hcmi.train.objective import group_size, ranking_sums, total_loss
from hcmi.types import LEVELS

UNIT_5D = torch.eye(5)      # sentences of length 1, where lengths do not matter


def no_gains(levels: dict) -> dict:
    """The levels, with gains by coverage of 0."""
    return levels | {f"{name}_gain": torch.zeros_like(sims_QB) for name, sims_QB in levels.items()}


def levels_and_total(**changes) -> tuple[dict, torch.Tensor, dict]:
    model, config = tiny_model(), train_config(**changes)
    levels = {name: drawn(number, 5)[0].float() for number, name in enumerate(model.head.levels)}
    return levels, *total_loss(model, no_gains(levels), UNIT_5D, config, None, "off")


def assert_every_level_counts(total) -> None:
    """`total(levels)` changes when the scores of any level change."""
    levels = {name: drawn(number, 5)[0] for number, name in enumerate(("frame_word", "clip_phrase", "video_sentence"))}
    before = float(total(levels))
    for name in levels:
        changed = float(total({**levels, name: 0.5 * levels[name]}))
        assert abs(changed - before) > 1e-6, f"level {name} does not count"


def test_total_loss_is_the_weighted_sum_when_levels_have_weights():
    weights = {"frame_word": 0.5, "clip_phrase": 2.0, "video_sentence": 1.0}
    levels, total, figures = levels_and_total(level_weights=weights, sum_weight=1.5, balance_weight=0.3,
                                              margin_weight=3.0)
    scale = 1 / 0.07
    parts = {name: weights[name] * contrastive_by_loops(levels[name].tolist(), scale, None, "off") for name in levels}
    parts["sum"] = 1.5 * contrastive_by_loops(sum(levels.values()).tolist(), scale, None, "off")
    parts["balance"] = 0.3 * balance_by_loops(sum(levels.values()).tolist(), scale)
    parts["margin"] = 3 * margin_by_loops(levels["video_sentence"].tolist(), 0.2)
    assert total.item() == pytest.approx(sum(parts.values()), rel=1e-5)
    expected = {"loss": sum(parts.values())} | {f"loss_{name}": part for name, part in parts.items()}
    assert figures == pytest.approx(expected, rel=1e-5)


def test_total_loss_counts_every_level_when_all_have_weight():
    model, config = tiny_model(), train_config(margin_weight=0.0, sum_weight=0.0, balance_weight=0.0)
    assert_every_level_counts(lambda levels: total_loss(model, levels, UNIT_5D, config, None, "off")[0])


def test_total_loss_leaves_a_level_out_when_its_weight_is_zero():
    weights = LevelWeights(frame_word=1.0, clip_phrase=0.0, video_sentence=1.0).model_dump()
    levels, total, figures = levels_and_total(level_weights=weights, sum_weight=1.0, balance_weight=1.0,
                                              margin_weight=0.0)
    assert set(figures) == {"loss", "loss_frame_word", "loss_video_sentence", "loss_sum", "loss_balance"}
    assert float(total) == pytest.approx(sum(float(part) for name, part in figures.items() if name != "loss"), rel=1e-6)
    both_BB = levels["frame_word"] + levels["video_sentence"]
    by_loops = contrastive_by_loops(both_BB.tolist(), 1 / 0.07, None, "off")
    assert float(figures["loss_sum"]) == pytest.approx(by_loops, rel=1e-5)
    assert float(figures["loss_balance"]) == pytest.approx(balance_by_loops(both_BB.tolist(), 1 / 0.07), rel=1e-5)


def test_sum_is_scaled_by_the_mean_of_the_levels_scales_when_they_differ():
    model, config = tiny_model(), train_config(margin_weight=0.0, sum_weight=1.0)
    levels = {name: drawn(number, 5)[0].float() for number, name in enumerate(model.head.levels)}
    with torch.no_grad():
        for scale, parameter in zip((2.0, 3.0, 7.0), model.head.logit_scales.values(), strict=True):
            parameter.fill_(math.log(scale))
    figures = total_loss(model, no_gains(levels), UNIT_5D, config, None, "off")[1]
    expected = contrastive_by_loops(sum(levels.values()).tolist(), 4.0, None, "off")
    assert figures["loss_sum"] == pytest.approx(expected, rel=1e-5)


def test_total_loss_takes_all_captions_when_clips_have_several():
    model, config = tiny_model(), train_config(sum_weight=1.0)
    levels = {name: drawn(number, 5, 2)[0].float() for number, name in enumerate(model.head.levels)}
    figures = total_loss(model, no_gains(levels), UNIT_5D.repeat(2, 1), config, None, "off")[1]
    both_QB = sum(levels.values())
    assert figures["loss_sum"] == pytest.approx(contrastive_by_loops(both_QB.tolist(), 1 / 0.07, None, "off"), rel=1e-5)
    assert figures["loss_margin"] == pytest.approx(margin_by_loops(levels["video_sentence"].tolist(), 0.2), rel=1e-5)


@pytest.mark.parametrize("dropped", ["frame_word", "clip_phrase", "video_sentence"])
def test_assert_every_level_counts_fails_when_one_level_is_dropped(dropped):
    weights = {name: float(name != dropped) for name in LEVELS}
    model = tiny_model()
    config = train_config(margin_weight=0.0, sum_weight=0.0, balance_weight=0.0, level_weights=weights)
    with pytest.raises(AssertionError, match=f"level {dropped} does not count"):
        assert_every_level_counts(lambda levels: total_loss(model, levels, UNIT_5D, config, None, "off")[0])


def test_peers_train_plainly_when_the_parameters_ask_for_hcmis_own_parts():
    config, model = train_config(denoise="mask", marginal_group=4), tiny_model("wti")
    assert (denoise_mode(model, config, 9), group_size(model, config, 9)) == ("off", 1)
    sims_BB = torch.eye(3) / 2
    plain = contrastive(sims_BB, model.head.logit_scale("frame_word"))
    assert min(config.loss.sum_weight, config.loss.balance_weight, config.loss.margin_weight) > 0
    assert torch.equal(total_loss(model, {"frame_word": sims_BB}, torch.eye(3), config, None, "off")[0], plain)


def test_group_size_is_1_when_still_warming_up():
    config, model = train_config(marginal_group=4, warmup_epochs=2), tiny_model()
    assert [group_size(model, config, epoch) for epoch in range(4)] == [1, 1, 4, 4]


def test_head_decides_how_it_is_trained_when_it_is_not_called_hcmi(monkeypatch):
    """A new head needs no change here: what training adds is an attribute of the head."""
    config, model = train_config(denoise="mask", marginal_group=4), tiny_model("hcmi")
    model.config.head = "another"
    assert (denoise_mode(model, config, 9), group_size(model, config, 9)) == ("mask", 4)
    monkeypatch.setattr(type(model.head), "hcmi_training", False)
    assert (denoise_mode(model, config, 9), group_size(model, config, 9)) == ("off", 1)


# coverage

def assert_coverage_weighs_the_sum_alone(total) -> None:
    """Two clips, worked by hand: `total(model, levels, sentence_QD, config, None, "off")` of coverages 0.5 and 2.

    The cosines are 1 for a clip's own text and 0 for the other, at a logit scale of 1. With one wrong answer that is
    behind by x, the contrastive loss is log(1 + exp(-x)).
    """
    def loss(behind: float) -> float:
        return math.log(1 + math.exp(-behind))

    model = tiny_model()
    config = train_config(margin=1.2, margin_weight=1.0, sum_weight=1.0, level_weights=dict.fromkeys(LEVELS, 1.0))
    with torch.no_grad():
        for scale in model.head.logit_scales.values():
            scale.zero_()
    levels = {"frame_word": 0.3 * torch.eye(2), "clip_phrase": torch.zeros(2, 2), "video_sentence": torch.eye(2)}
    figures = total(model, no_gains(levels), torch.tensor([[0.3, 0.4], [1.2, -1.6]]), config, None, "off")[1]
    needed = {"loss_frame_word": loss(0.3), "loss_clip_phrase": math.log(2), "loss_video_sentence": loss(1),
              "loss_sum": (loss(0.3 + 0.5) + loss(0.3 + 2)) / 2,
              "loss_margin": 0.2}       # a wrong answer, 0, is to be 1.2 behind the right one, 1, and is 1 behind
    for name, value in needed.items():
        assert abs(figures[name] - value) < 1e-6, f"{name}: need {value}, got {figures[name]}"


def test_coverage_weighs_video_sentence_in_the_sum_alone():
    assert_coverage_weighs_the_sum_alone(total_loss)


def sum_of_plain_cosines(model, levels, sentence_QD, *others):
    return total_loss(model, levels, sentence_QD / sentence_QD.norm(dim=1, keepdim=True), *others)


def weighted_levels(model, levels, sentence_QD, *others):
    weighted = {"video_sentence": levels["video_sentence"] * sentence_QD.norm(dim=1, keepdim=True)}
    return total_loss(model, levels | weighted, sentence_QD / sentence_QD.norm(dim=1, keepdim=True), *others)


@pytest.mark.parametrize(("planted", "wrong"), [(sum_of_plain_cosines, "loss_sum"),
                                                (weighted_levels, "loss_video_sentence")])
def test_assert_coverage_weighs_the_sum_alone_fails_when_it_is_lost_or_weighs_more(planted, wrong):
    with pytest.raises(AssertionError, match=f"{wrong}: need"):
        assert_coverage_weighs_the_sum_alone(planted)


def assert_coverage_learns_from_texts_that_rank_videos(total) -> None:
    """The gradient of the coverages is that of the sum, as it depends on them, in the half of the rows, and of the
    balance of the videos in these rows."""
    model = tiny_model()
    with torch.no_grad():
        for scale in model.head.logit_scales.values():
            scale.fill_(math.log(2))
    bases, gains = ({name: drawn(number, 5, 2)[0].float() for number, name in enumerate(model.head.levels, first)}
                    for first in (0, 7))
    gains["video_sentence"] = drawn(2, 5, 2)[0].float()
    coverage_Q1 = torch.linspace(0.2, 1.9, 10)[:, None].requires_grad_()
    levels = {name: gains[name] if name == "video_sentence" else bases[name] + coverage_Q1.detach() * gains[name]
              for name in bases} | {f"{name}_gain": gain_QB for name, gain_QB in gains.items()}

    def gradient(**changes) -> torch.Tensor:
        sentence_QD = coverage_Q1 * UNIT_5D.repeat(2, 1)
        return torch.autograd.grad(total(model, levels, sentence_QD, train_config(**changes), None, "off")[0],
                                   coverage_Q1)[0]

    summed_QB = sum(coverage_Q1 * gains[name] + (0 if name == "video_sentence" else bases[name]) for name in bases)
    logits_QB = model.head.logit_scale("frame_word") * summed_QB
    by_text = -logits_QB.log_softmax(1)[UNIT_5D.repeat(2, 1).bool()].mean() / 2
    needed_Q1 = torch.autograd.grad(by_text, coverage_Q1, retain_graph=True)[0]
    assert needed_Q1.abs().min() > 1e-4
    torch.testing.assert_close(gradient(sum_weight=1.5, balance_weight=0.0, margin_weight=3.0), 1.5 * needed_Q1,
                               atol=1e-6, rtol=1e-4)
    assert gradient(sum_weight=1e-9, balance_weight=0.0, margin_weight=3.0).abs().max() < 1e-6
    balanced = balance(summed_QB, model.head.logit_scale("frame_word"))
    torch.testing.assert_close(gradient(sum_weight=0.0, balance_weight=0.5, margin_weight=3.0),
                               0.5 * torch.autograd.grad(balanced, coverage_Q1)[0], atol=1e-6, rtol=1e-4)


def test_coverage_learns_from_the_half_of_the_sum_in_which_texts_rank_videos():
    assert_coverage_learns_from_texts_that_rank_videos(total_loss)


def test_assert_coverage_learns_fails_when_videos_that_rank_texts_teach_it_too(monkeypatch):
    monkeypatch.setattr(objective, "ranking_sums", lambda *given: (ranking_sums(*given)[0],) * 2)
    with pytest.raises(AssertionError, match="not close"):
        assert_coverage_learns_from_texts_that_rank_videos(total_loss)


@pytest.mark.parametrize("head", [name for name in HEADS if name != "hcmi"])
def test_peers_losses_are_the_same_when_sentences_have_other_lengths(head):
    model, config = tiny_model(head), train_config(sum_weight=1.0, margin_weight=1.0)
    levels = {name: drawn(number, 5)[0].float() for number, name in enumerate(model.head.levels)}
    plain, longer = (total_loss(model, levels, length * UNIT_5D, config, None, "off")[0] for length in (1, 3))
    assert torch.equal(plain, longer)
