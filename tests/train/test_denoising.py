"""Two views of each clip, and which clips of a batch count as the same by them."""

import types
from itertools import chain

import pytest
import torch
from model_world import mask_of, tiny_model, train_config

from hcmi.train.denoising import (
    clip_meanings,
    clip_views,
    denoise_mode,
    denoising_figures,
    precision_and_recall,
    same_clips,
    video_views,
)
from hcmi.train.loss import same_meaning


def test_same_videos_finds_duplicates_when_they_share_a_batch():
    """Clips 0 and 2 show the same scene with different noise; the frames of a clip differ from each other."""
    model, generator = tiny_model("mean_pool"), torch.Generator().manual_seed(0)
    scenes_BTD = torch.randn(4, 8, 32, generator=generator)[:, :1] + 0.5 * torch.randn(4, 8, 32, generator=generator)
    scenes_BTD[2] = scenes_BTD[0, torch.randperm(8, generator=generator)]
    same_BB = same_meaning(*video_views(model, scenes_BTD, torch.ones(4, 8, dtype=torch.bool)))
    assert same_BB[0, 2] or same_BB[2, 0]
    others = same_BB & ~torch.eye(4, dtype=torch.bool)
    others[0, 2] = others[2, 0] = False
    assert not others.any()


def test_same_clips_need_what_they_are_asked_for_when_videos_or_captions_agree():
    """Clips 0 and 2 have equal pictures, clips 1 and 2 equal captions; no other pair is equal."""
    model, generator = tiny_model("hcmi", wild=True), torch.Generator().manual_seed(0)
    features_BTD = torch.randn(3, 1, 32, generator=generator) + 0.02 * torch.randn(3, 4, 32, generator=generator)
    features_BTD[2] = features_BTD[0]
    captions = ["a red film then blue", "a green film", "a green film"]
    sentence_BD = model.encode_texts(*model.processor.texts(captions)).sentence_BD
    mask_BT = torch.ones(3, 4, dtype=torch.bool)
    found = {by: same_clips(clip_views(model, by, features_BTD, mask_BT, [sentence_BD, sentence_BD]))
             for by in ("video", "text", "both")}
    assert found["video"][0, 2]
    assert not found["video"][1, 2]
    assert found["text"].tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert torch.equal(found["both"], found["video"] & found["text"])
    alone = same_clips(clip_views(model, "text", features_BTD, mask_BT, [sentence_BD]))       # clips with one caption
    assert torch.equal(alone, found["text"])
    known_BB = same_clips(clip_views(model, "tag", features_BTD, mask_BT, [], torch.tensor([4, 9, 4])))
    assert known_BB.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


@pytest.mark.parametrize("by", ["video", "text", "both"])
def test_views_have_length_1_when_sentences_have_another(by):
    """The grouping of marginal clips compares them by their products."""
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    features_BTD, sentence_BD = torch.randn(3, 4, 32, generator=generator), torch.randn(3, 32, generator=generator)
    sentences = [length * torch.nn.functional.normalize(sentence_BD, dim=1) for length in (0.5, 1.0, 1.9)]
    for view in chain(*clip_views(model, by, features_BTD, torch.ones(3, 4, dtype=torch.bool), sentences)):
        torch.testing.assert_close(view.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("longest", [1, 4])
def test_same_videos_finds_none_when_clips_of_one_frame_differ(longest):
    """A clip of one frame has no second view; padding must not become one."""
    model = tiny_model("hcmi", wild=True)
    features_BTD = torch.randn(3, longest, 32, generator=torch.Generator().manual_seed(0))
    features_BTD[:, 1:] = 0
    mask_BT = mask_of([1, 1, 1], longest)
    assert torch.equal(same_clips([video_views(model, features_BTD, mask_BT)]), torch.eye(3, dtype=torch.bool))
    features_BTD[2] = features_BTD[0]
    assert same_clips([video_views(model, features_BTD, mask_BT)])[0, 2]


def test_denoise_mode_is_off_when_still_warming_up():
    config, model = train_config(denoise="mask", warmup_epochs=2), tiny_model()
    assert [denoise_mode(model, config, epoch) for epoch in range(4)] == ["off", "off", "mask", "mask"]


def test_denoising_figures_count_what_is_true_when_worked_by_hand():
    """Clips 0, 1 and 3 are the same; denoising finds (0, 1) in one direction only, and takes 2 to be the same as 3."""
    positives_BB = torch.eye(4, dtype=torch.bool)
    positives_BB[0, 1] = positives_BB[2, 3] = True
    figures = denoising_figures(positives_BB, torch.tensor([7, 7, 5, 7]))
    assert figures == {"denoise_fired": 2 / 4, "denoise_right": 1 / 4, "denoise_true": 6 / 4}
    assert denoising_figures(positives_BB, None) == {"denoise_fired": 2 / 4}
    assert precision_and_recall({"loss": 3.0, **figures}) == {
        "loss": 3.0, "denoise_fired": 0.5, "denoise_precision": 0.5, "denoise_recall": pytest.approx(1 / 6)}


def test_precision_and_recall_are_1_when_nothing_was_found_and_nothing_is_true():
    found = precision_and_recall({"denoise_fired": 0.0, "denoise_right": 0.0, "denoise_true": 0.0})
    assert found == {"denoise_fired": 0.0, "denoise_precision": 1.0, "denoise_recall": 1.0}
    assert precision_and_recall({"loss": 2.0}) == {"loss": 2.0}


def test_clip_meanings_are_none_when_a_data_set_does_not_know_them():
    reader = types.SimpleNamespace(clips=[types.SimpleNamespace(tags={"meaning": name}) for name in ("b", "a", "b")])
    assert clip_meanings(reader).tolist() == [1, 0, 1]
    reader.clips.append(types.SimpleNamespace(tags={}))
    assert clip_meanings(reader) is None
