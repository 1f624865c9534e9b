"""The sum of the loss terms against slow loops, and which terms each head is trained with."""

import math

import pytest
import torch
from loss_by_loops import contrastive_by_loops, drawn, margin_by_loops
from model_world import tiny_model, train_config

from hcmi.config import LevelWeights
from hcmi.train.denoising import denoise_mode
from hcmi.train.loss import contrastive
from hcmi.train.objective import group_size, total_loss


def levels_and_total(**changes) -> tuple[dict, torch.Tensor, dict]:
    model, config = tiny_model(), train_config(**changes)
    levels = {name: drawn(number, 5)[0].float() for number, name in enumerate(model.head.levels)}
    return levels, *total_loss(model, levels, config, None, "off")


def assert_every_level_counts(total) -> None:
    """`total(levels)` changes when the scores of any level change."""
    levels = {name: drawn(number, 5)[0] for number, name in enumerate(("frame_word", "clip_phrase", "video_sentence"))}
    before = float(total(levels))
    for name in levels:
        changed = float(total({**levels, name: 0.5 * levels[name]}))
        assert abs(changed - before) > 1e-6, f"level {name} does not count"


def test_total_loss_is_the_weighted_sum_when_levels_have_weights():
    weights = {"frame_word": 0.5, "clip_phrase": 2.0, "video_sentence": 1.0}
    levels, total, figures = levels_and_total(level_weights=weights, sum_weight=1.5, margin_weight=3.0)
    scale = 1 / 0.07
    parts = {name: weights[name] * contrastive_by_loops(levels[name].tolist(), scale, None, "off") for name in levels}
    parts["sum"] = 1.5 * contrastive_by_loops(sum(levels.values()).tolist(), scale, None, "off")
    parts["margin"] = 3 * margin_by_loops(levels["video_sentence"].tolist(), 0.2)
    assert float(total) == pytest.approx(sum(parts.values()), rel=1e-5)
    expected = {"loss": sum(parts.values())} | {f"loss_{name}": part for name, part in parts.items()}
    assert figures == pytest.approx(expected, rel=1e-5)


def test_total_loss_counts_every_level_when_all_have_weight():
    model, config = tiny_model(), train_config(margin_weight=0.0, sum_weight=0.0)
    assert_every_level_counts(lambda levels: total_loss(model, levels, config, None, "off")[0])


def test_total_loss_leaves_a_level_out_when_its_weight_is_zero():
    weights = LevelWeights(frame_word=1.0, clip_phrase=0.0, video_sentence=1.0).model_dump()
    levels, total, figures = levels_and_total(level_weights=weights, sum_weight=1.0, margin_weight=0.0)
    assert set(figures) == {"loss", "loss_frame_word", "loss_video_sentence", "loss_sum"}
    assert float(total) == pytest.approx(sum(part for name, part in figures.items() if name != "loss"), rel=1e-6)
    both_BB = levels["frame_word"] + levels["video_sentence"]
    assert figures["loss_sum"] == pytest.approx(contrastive_by_loops(both_BB.tolist(), 1 / 0.07, None, "off"), rel=1e-5)


def test_sum_is_scaled_by_the_mean_of_the_levels_scales_when_they_differ():
    model, config = tiny_model(), train_config(margin_weight=0.0, sum_weight=1.0)
    levels = {name: drawn(number, 5)[0].float() for number, name in enumerate(model.head.levels)}
    with torch.no_grad():
        for scale, parameter in zip((2.0, 3.0, 7.0), model.head.logit_scales.values(), strict=True):
            parameter.fill_(math.log(scale))
    figures = total_loss(model, levels, config, None, "off")[1]
    expected = contrastive_by_loops(sum(levels.values()).tolist(), 4.0, None, "off")
    assert figures["loss_sum"] == pytest.approx(expected, rel=1e-5)


def test_total_loss_takes_all_captions_when_clips_have_several():
    model, config = tiny_model(), train_config(sum_weight=1.0)
    levels = {name: drawn(number, 5, 2)[0].float() for number, name in enumerate(model.head.levels)}
    figures = total_loss(model, levels, config, None, "off")[1]
    both_QB = sum(levels.values())
    assert figures["loss_sum"] == pytest.approx(contrastive_by_loops(both_QB.tolist(), 1 / 0.07, None, "off"), rel=1e-5)
    assert figures["loss_margin"] == pytest.approx(margin_by_loops(levels["video_sentence"].tolist(), 0.2), rel=1e-5)


@pytest.mark.parametrize("dropped", ["frame_word", "clip_phrase", "video_sentence"])
def test_assert_every_level_counts_fails_when_one_level_is_dropped(dropped):
    model, config = tiny_model(), train_config(margin_weight=0.0, sum_weight=0.0)
    with pytest.raises(AssertionError, match=f"level {dropped} does not count"):
        assert_every_level_counts(lambda levels: total_loss(
            model, {name: sims for name, sims in levels.items() if name != dropped}, config, None, "off")[0])


def test_peers_train_plainly_when_the_parameters_ask_for_hcmis_own_parts():
    config, model = train_config(denoise="mask", marginal_group=4), tiny_model("wti")
    assert (denoise_mode(model, config, 9), group_size(model, config, 9)) == ("off", 1)
    sims_BB = torch.eye(3) / 2
    plain = contrastive(sims_BB, model.head.logit_scale("frame_word"))
    assert torch.equal(total_loss(model, {"frame_word": sims_BB}, config, None, "off")[0], plain)


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
